#include "moe/planner/bench_operands.h"

#include <algorithm>

#include "moe/planner/random_weights.h"

namespace moe {

MatView<float> BenchOperands::Zeros(int64_t rows, int64_t cols) {
  matrices.push_back(std::make_unique<Tensor>(std::vector<int64_t>{rows, cols}));
  return matrices.back()->mat();
}

MatView<float> BenchOperands::Matrix(int64_t rows, int64_t cols, ExecContext& ctx) {
  const MatView<float> out = Zeros(rows, cols);
  FillRandomValues(matrices.back()->span(), 1.0f, matrices.size(), ctx);
  return out;
}

AnyMat BenchOperands::Outputs(int64_t rows, int64_t cols, DType format) {
  bytes.push_back(AllocateAligned(static_cast<size_t>(rows * cols * SizeOf(format))));
  std::fill_n(bytes.back().get(), rows * cols * SizeOf(format), std::byte{0});
  return {bytes.back().get(), format, rows, cols, cols};
}

AnyMat BenchOperands::Activations(int64_t rows, int64_t cols, DType format, ExecContext& ctx) {
  const MatView<float> x = Matrix(rows, cols, ctx);
  if (format == DType::kF32) return x;
  const AnyMat out = Like(x, format, ctx);
  matrices.back()->Free();
  return out;
}

AnyMat BenchOperands::Like(MatView<float> values, DType format, ExecContext& ctx) {
  if (format == DType::kF32) return values;
  const AnyMat out = Outputs(values.rows, values.cols, format);
  for (int64_t r = 0; r < values.rows; ++r) ctx.kernels.to_bf16(values.row(r), values.cols, static_cast<Bf16*>(out.row(r)));
  return out;
}

void BenchOperands::AddWeight(int64_t N, int64_t K, DType format, ExecContext& ctx) {
  const auto size = static_cast<size_t>(PackedWeight::Bytes(format, N, K));
  bytes.push_back(AllocateAligned(size));
  FillRandomWeights({bytes.back().get(), size}, bytes.size(), ctx);
  weights.push_back({.format = format, .N = N, .K = K, .data = bytes.back().get()});
}

double GemmFlop(int64_t M, int64_t N, int64_t K) {
  return 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K);
}

Ceiling PeakOf(DType format) {
  return format == DType::kBf16 ? Ceiling::kPeakBf16 : Ceiling::kPeakF32;
}

int64_t ColdCount(int64_t bytes, int64_t cold_bytes) {
  return std::clamp<int64_t>((cold_bytes < 0 ? CeilingProbe::DefaultBytes() : cold_bytes) / bytes + 1, 2, 4096);
}

}  // namespace moe
