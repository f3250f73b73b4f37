#pragma once

#include <vector>

#include "moe/planner/bench.h"
#include "moe/planner/bench_shapes.h"
#include "moe/tensor/dtype.h"

namespace moe {

// Group "adamw": one step over so many values without packs, with both packs in `format`, and over all experts of a layer.
std::vector<BenchCase> OptimizerCases(const BenchShapes& shapes, DType format);

}  // namespace moe
