#pragma once
// What keeps the load even without a gradient.

#include <cstdint>
#include <span>

#include "moe/mixture/router_config.h"

namespace moe {

// Once per optimizer step, after its weights moved. tokens_per_expert [E]: of the whole step, before dropping, all its
// micro-batches together. bias [E]. A step without tokens changes nothing.
void UpdateSelectionBias(const RouterConfig& config, std::span<const int64_t> tokens_per_expert, std::span<float> bias);

// The factor of the next optimizer step: `factor` plus half of how much more, or less, was dropped than the target, within the
// bounds. A step without slots changes nothing.
double NextCapacityFactor(const CapacityConfig& config, int64_t num_slots, int64_t num_dropped, double factor);

}  // namespace moe
