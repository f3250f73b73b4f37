#pragma once

#include <vector>

#include "moe/planner/bench.h"
#include "moe/planner/bench_shapes.h"
#include "moe/tensor/dtype.h"

namespace moe {

// Group "attention": prefill of C positions and its backward, beside our matrix product of `format` (attention itself computes
// in float32); decode of one position for each of 8 sequences whose C keys and values come from memory.
std::vector<BenchCase> AttentionCases(const BenchShapes& shapes, DType format);

}  // namespace moe
