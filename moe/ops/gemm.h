#pragma once
// Matrix products of a step: y = x W^T, d_x = d_y W, dW += d_y^T x, one or many at once. M rows, N outputs, K inputs.

#include <cstdint>
#include <span>

#include "moe/ops/exec_context.h"
#include "moe/tensor/any_mat.h"
#include "moe/tensor/packed_weight.h"

namespace moe {

enum class Epilogue : uint8_t {
  kStore,       // c = product
  kAccumulate,  // c += product
  kSwiglu,      // c = silu(gate) * up, with gate and up interleaved in groups of 16 along N: c is [M, N/2]
};

// One product c [M,N] (op)= bias + a [M,K] * weight [N,K]^T. M may be 0: nothing is written.
struct GemmProblem {
  ConstAnyMat a;                         // [M,K], or any number of rows when a_rows is given; bf16 only with such a weight
  std::span<const int32_t> a_rows;       // [M] row i of the product reads a[a_rows[i]]: a gather without a copy; empty: i
  const PackedWeight* weight = nullptr;  // [N,K]; its format decides the arithmetic: f32, or bf16 inputs with float32 sums
  std::span<const float> bias;           // [N] what every row's sums start from, so before the activation; empty: 0
  Epilogue epilogue = Epilogue::kStore;  // kAccumulate starts from c and has no bias
  AnyMat c;                              // [M,N]; [M,N/2] for kSwiglu; bf16 is rounded when written, and cannot accumulate
  AnyMat pre_activation;                 // [M,N] kSwiglu only: the product itself, kept for backward; may be empty
};

// All products of the list, on one work list of tiles: a hot expert cannot stall the others. Results do not depend on M, on the
// other problems, or on the number of threads, bit for bit.
void GroupedGemm(std::span<const GemmProblem> problems, ExecContext& ctx);
// Output of a list that the threads' L2 keep, see KernelSwitches.
int64_t CachedOutputBytes(int num_threads);
inline void Gemm(const GemmProblem& problem, ExecContext& ctx) {
  GroupedGemm({&problem, 1}, ctx);
}

// One weight gradient d_w [N,K] += d_y [M,N]^T * x [M,K]; the contraction runs over rows, M may be 0 (then nothing changes).
struct WeightGradProblem {
  ConstAnyMat d_y;                  // [M,N]
  ConstAnyMat x;                    // [M,K], or more rows when x_rows is given
  std::span<const int32_t> x_rows;  // [M] gather, as in GemmProblem; empty: i
  MatView<float> d_w;               // [N,K]
  DType format = DType::kF32;       // kBf16: operands rounded to bf16 unless they are, float32 sums
};
void GroupedWeightGrad(std::span<const WeightGradProblem> problems, ExecContext& ctx);

// Packs w [N,K] (kForward: y = x w^T) or its transpose (kTransposed: a weight of N' = K outputs and K' = N inputs, for d_x =
// d_y w).
enum class PackSide : uint8_t { kForward, kTransposed };
int64_t PackedBytes(DType format, int64_t N, int64_t K, PackSide side);
// `bytes` has PackedBytes(...) bytes at kAlignment and outlives the result.
PackedWeight Pack(MatView<const float> w, DType format, PackSide side, std::span<std::byte> bytes, ExecContext& ctx);

}  // namespace moe
