#pragma once
// The products of all experts of an MoE layer, each beside our dense product of the same FLOP: groups "grouped" (ragged lists,
// and padded buckets beside them), "backward" and "block_sparse".

#include <string>
#include <vector>

#include "moe/planner/bench.h"
#include "moe/planner/bench_routing.h"
#include "moe/tensor/dtype.h"

namespace moe {

// "T1024.D512.F256.E8.k2"
std::string NameOf(const MoeShape& shape);

// 16 rows an expert at least: with fewer it is a decode.
bool ManyRowsPerExpert(const MoeShape& shape);

// Of the shapes with many rows per expert.
std::vector<BenchCase> GroupedCases(const BenchShapes& shapes, DType format);
std::vector<BenchCase> BlockSparseCases(const BenchShapes& shapes, DType format);

}  // namespace moe
