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

// "256 rows an expert and more", or "fewer than 256 rows an expert".
std::string KindOfRows(const MoeShape& shape, int64_t rows);

// Of the shapes with many rows per expert.
std::vector<BenchCase> GroupedCases(const BenchShapes& shapes, DType format);
std::vector<BenchCase> BlockSparseCases(const BenchShapes& shapes, DType format);

}  // namespace moe
