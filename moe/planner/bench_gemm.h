#pragma once
// The matrix products of a step, to be measured.

#include <vector>

#include "moe/planner/bench.h"
#include "moe/tensor/dtype.h"

namespace moe {

struct GemmShape {
  int64_t M, N, K;
};

// y [M,N] = x [M,K] W^T with W packed once; groups "dense" (warm: the same weight again and again) and "decode" (cold: as many
// weights as it takes to leave the last-level cache, in turn; its work is the bytes of one weight).
BenchCase DenseCase(const GemmShape& shape, DType format);
BenchCase DecodeCase(const GemmShape& shape, DType format);
// Group "backward": d_w += d_y^T x, and d_x = d_y W.
BenchCase WeightGradCase(const GemmShape& shape, DType format);
BenchCase InputGradCase(const GemmShape& shape, DType format);

}  // namespace moe
