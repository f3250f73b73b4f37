#pragma once
// Values that make a step take the time it would take with real ones, made faster than memory can be written.

#include <cstdint>
#include <span>

#include "moe/model/model.h"
#include "moe/ops/exec_context.h"

namespace moe {

// Fills packed weights of either format, f32 or bf16: read as bf16, and read as f32, every value has a random sign and a
// magnitude in [2^-7, 2^-5), rms 0.019, so that rows of unit rms stay near it through any number of layers. No zeros, denormals
// or NaNs. bytes.size() a multiple of 8. A function of seed alone.
void FillRandomWeights(std::span<std::byte> bytes, uint64_t seed, ExecContext& ctx);

// Uniform with the given root mean square and mean 0: keys and values of positions nobody computed. A function of seed alone.
void FillRandomValues(std::span<float> values, float rms, uint64_t seed, ExecContext& ctx);

// A model for inference: norms 1, embedding and router uniform, packs in `storage` (PackedStorageBytes of it at least, which
// outlive the model) as they are: fill them with FillRandomWeights first.
void GiveRandomWeights(Model& model, std::span<std::byte> storage, uint64_t seed, ExecContext& ctx);

}  // namespace moe
