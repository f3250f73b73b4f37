#pragma once
// What cases multiply: random, owned by the case's runs.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "moe/planner/ceilings.h"
#include "moe/tensor/any_mat.h"
#include "moe/tensor/packed_weight.h"
#include "moe/tensor/tensor.h"

namespace moe {

// Matrices, and weights in their packs. Values do not depend on the number of threads.
struct BenchOperands {
  std::vector<std::unique_ptr<Tensor>> matrices;
  std::vector<AlignedBytes> bytes;
  std::vector<PackedWeight> weights;
  size_t next = 0;  // weight

  MatView<float> Matrix(int64_t rows, int64_t cols, ExecContext& ctx);  // values of rms 1
  MatView<float> Zeros(int64_t rows, int64_t cols);
  // What products with weights of `format` read: random values, rounded to it; and where they write what others read.
  AnyMat Activations(int64_t rows, int64_t cols, DType format, ExecContext& ctx);
  AnyMat Like(MatView<float> values, DType format, ExecContext& ctx);  // in a copy, for bf16
  AnyMat Outputs(int64_t rows, int64_t cols, DType format);
  // A weight of random bytes that are values of rms 0.02.
  void AddWeight(int64_t N, int64_t K, DType format, ExecContext& ctx);
  const PackedWeight& NextWeight() { return weights[next++ % weights.size()]; }
};

// Of 2 M N K.
double GemmFlop(int64_t M, int64_t N, int64_t K);
// What products of this format are a fraction of.
Ceiling PeakOf(DType format);
// How many things of so many bytes, used in turn, come from memory every time: four last-level caches of them, unless
// cold_bytes says how much. (At most 4096: things of a few kilobytes stay in the caches.)
int64_t ColdCount(int64_t bytes, int64_t cold_bytes = -1);

}  // namespace moe
