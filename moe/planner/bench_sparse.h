#pragma once
// What blocks cost that nothing can be merged with: the products with a checkerboard of them, for every size of blocks, each
// beside our dense product of the same FLOP. Group "block_sparse". (A layer's blocks lie side by side: bench_grouped.h.)

#include <vector>

#include "moe/planner/bench.h"
#include "moe/planner/bench_shapes.h"
#include "moe/tensor/dtype.h"

namespace moe {

// Of every `sparse` shape.
std::vector<BenchCase> CheckerboardCases(const BenchShapes& shapes, DType format);

}  // namespace moe
