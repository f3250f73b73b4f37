#pragma once
// The matrix products of a step, to be measured. Dense ones: groups "dense", "decode" and "backward".

#include <vector>

#include "moe/planner/bench.h"
#include "moe/planner/bench_shapes.h"
#include "moe/tensor/dtype.h"
#include "moe/tensor/mat_view.h"

namespace moe {

// A product that another library is to do too.
struct PeerProduct {
  GemmShape shape;
  DType format;
  MatView<const float> x;                                 // [M,K]
  int64_t num_weights = 1;                                // to be used in turn
  std::function<MatView<const float>(int64_t i)> weight;  // [N,K]; valid until the next call
  MatView<const float> y;                                 // [M,N] our result with weight 0
  int threads = 1;
};
using GemmPeers = std::function<std::vector<BenchPeer>(const PeerProduct&)>;

// y [M,N] = x [M,K] W^T with W packed once; groups "dense" (warm: the same weight again and again) and "decode" (cold: as many
// weights as it takes to leave the last-level cache, in turn; its work is the bytes of one weight).
BenchCase DenseCase(const GemmShape& shape, DType format, const GemmPeers& peers);
BenchCase DecodeCase(const GemmShape& shape, DType format, const GemmPeers& peers, int64_t cold_bytes = -1);
// Group "backward", beside the forward product: d_w += d_y^T x, and d_x = d_y W.
BenchCase WeightGradCase(const GemmShape& shape, DType format);
BenchCase InputGradCase(const GemmShape& shape, DType format);

// Everything above for every shape. peers may be empty.
std::vector<BenchCase> DenseCases(const BenchShapes& shapes, DType format, const GemmPeers& peers);

}  // namespace moe
