#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "moe/planner/bench.h"
#include "moe/planner/bench_shapes.h"
#include "moe/tensor/dtype.h"

namespace moe {

// What one step reads and writes of a value: itself, gradient, two moments; both packs are written.
inline double AdamwBytes(DType packs) {
  return 8 * sizeof(float) + 2 * static_cast<double>(SizeOf(packs));
}
// One step over matrices of such shapes, with packs or without; its operands live in it.
std::function<void()> AdamwOver(const std::vector<std::vector<int64_t>>& shapes, std::optional<DType> packs, ExecContext& ctx);

// Group "adamw": one step over so many values without packs, with both packs in `format`, and over all experts of a layer.
std::vector<BenchCase> OptimizerCases(const BenchShapes& shapes, DType format);

}  // namespace moe
