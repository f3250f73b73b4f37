#include "moe/planner/bench_gemm.h"

#include <algorithm>

#include "moe/base/cpu_info.h"
#include "moe/ops/gemm.h"
#include "moe/planner/random_weights.h"
#include "moe/tensor/tensor.h"

namespace moe {
namespace {

// Matrices, and weights in their packs, all random.
struct Operands {
  std::vector<Tensor> matrices;
  std::vector<AlignedBytes> bytes;
  std::vector<PackedWeight> weights;
  size_t next = 0;  // weight

  MatView<float> Matrix(int64_t rows, int64_t cols, ExecContext& ctx) {
    matrices.emplace_back(std::vector<int64_t>{rows, cols});
    FillRandomValues(matrices.back().span(), 1.0f, matrices.size(), ctx);
    return matrices.back().mat();
  }
  void AddWeight(int64_t N, int64_t K, DType format, ExecContext& ctx) {
    const int64_t size = PackedWeight::Bytes(format, N, K);
    bytes.push_back(AllocateAligned(static_cast<size_t>(size)));
    FillRandomWeights({bytes.back().get(), static_cast<size_t>(size)}, bytes.size(), ctx);
    weights.push_back({.format = format, .N = N, .K = K, .data = bytes.back().get()});
  }
  const PackedWeight& NextWeight() { return weights[next++ % weights.size()]; }
};

double Flop(const GemmShape& s) {
  return 2.0 * static_cast<double>(s.M) * static_cast<double>(s.N) * static_cast<double>(s.K);
}

std::string NameOf(const GemmShape& s, DType format) {
  return fmt::format("{}/{}x{}x{}", Name(format), s.M, s.N, s.K);
}

Ceiling PeakOf(DType format) {
  return format == DType::kBf16 ? Ceiling::kPeakBf16 : Ceiling::kPeakF32;
}

// y [M,N] = x [M,K] W^T with `count` weights in turn.
BenchRun Products(const GemmShape& s, DType format, int64_t count, ExecContext& ctx) {
  const auto operands = std::make_shared<Operands>();
  operands->matrices.reserve(2);
  const MatView<float> x = operands->Matrix(s.M, s.K, ctx), y = operands->Matrix(s.M, s.N, ctx);
  for (int64_t i = 0; i < count; ++i) operands->AddWeight(s.N, s.K, format, ctx);
  return {.run = [=, &ctx] { Gemm({.a = x, .weight = &operands->NextWeight(), .c = y}, ctx); }};
}

}  // namespace

BenchCase DenseCase(const GemmShape& s, DType format) {
  return {.group = "dense",
          .name = NameOf(s, format),
          .ceiling = PeakOf(format),
          .work = Flop(s),
          .prepare = [=](ExecContext& ctx) { return Products(s, format, 1, ctx); }};
}

BenchCase DecodeCase(const GemmShape& s, DType format) {
  const int64_t bytes = PackedWeight::Bytes(format, s.N, s.K);
  return {.group = "decode",
          .name = NameOf(s, format),
          .ceiling = Ceiling::kReadChunks,
          .work = static_cast<double>(bytes),
          .prepare = [=](ExecContext& ctx) {
            return Products(s, format, std::max<int64_t>(2, 4 * GetCpuInfo().l3_bytes / bytes), ctx);
          }};
}

BenchCase InputGradCase(const GemmShape& s, DType format) {
  BenchCase out = DenseCase({s.M, s.K, s.N}, format);
  out.group = "backward";
  out.name = "dX/" + NameOf(s, format);
  return out;
}

BenchCase WeightGradCase(const GemmShape& s, DType format) {
  return {.group = "backward",
          .name = "dW/" + NameOf(s, format),
          .ceiling = PeakOf(format),
          .work = Flop(s),
          .prepare = [=](ExecContext& ctx) {
            const auto operands = std::make_shared<Operands>();
            operands->matrices.reserve(3);
            const MatView<float> d_y = operands->Matrix(s.M, s.N, ctx), x = operands->Matrix(s.M, s.K, ctx);
            const MatView<float> d_w = operands->Matrix(s.N, s.K, ctx);
            return BenchRun{.run = [=, &ctx] {
              const WeightGradProblem problem{.d_y = d_y, .x = x, .d_w = d_w, .format = format};
              GroupedWeightGrad({&problem, 1}, ctx);
              (void)operands;
            }};
          }};
}

}  // namespace moe
