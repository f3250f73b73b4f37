#include "moe/planner/bench_gemm.h"

#include <algorithm>

#include "moe/ops/gemm.h"
#include "moe/planner/bench_operands.h"
#include "moe/planner/random_weights.h"

namespace moe {
namespace {

std::string NameOf(const GemmShape& s, DType format) {
  return fmt::format("{}/{}x{}x{}", Name(format), s.M, s.N, s.K);
}

// Values of weight i, the same for us and for peers.
MatView<const float> FillWeight(int64_t i, Tensor& w, ExecContext& ctx) {
  FillRandomValues(w.span(), 0.02f, 1000 + static_cast<uint64_t>(i), ctx);
  return w.mat();
}

void AddPacked(const GemmShape& s, DType format, int64_t i, Tensor& w, BenchOperands& operands, ExecContext& ctx) {
  const auto size = static_cast<size_t>(PackedBytes(format, s.N, s.K, PackSide::kForward));
  operands.bytes.push_back(AllocateAligned(size));
  operands.weights.push_back(Pack(FillWeight(i, w, ctx), format, PackSide::kForward, {operands.bytes.back().get(), size}, ctx));
}

// y [M,N] = x [M,K] W^T with `count` weights in turn.
BenchRun Products(const GemmShape& s, DType format, int64_t count, const GemmPeers& peers, ExecContext& ctx) {
  const auto operands = std::make_shared<BenchOperands>();
  const MatView<float> values = operands->Matrix(s.M, s.K, ctx), y = operands->Zeros(s.M, s.N);
  const AnyMat x = operands->Like(values, format, ctx);
  const auto w = std::make_shared<Tensor>(std::vector<int64_t>{s.N, s.K});
  for (int64_t i = 0; i < count; ++i) AddPacked(s, format, i, *w, *operands, ctx);
  BenchRun out{.run = [=, &ctx] { Gemm({.a = x, .weight = &operands->NextWeight(), .c = y}, ctx); }};
  if (!peers) return out;
  out.run();
  out.peers = peers({.shape = s,
                     .format = format,
                     .x = values,
                     .num_weights = count,
                     .weight = [=, &ctx](int64_t i) { return FillWeight(i, *w, ctx); },
                     .y = y,
                     .threads = ctx.pool.num_threads()});
  return out;
}

std::string KindOf(int64_t rows) {
  return rows < kManyRows ? fmt::format("fewer than {} rows", kManyRows) : fmt::format("{} rows and more", kManyRows);
}

// Of a product with cold weights: as the bars that they are held against.
std::string DecodeKindOf(int64_t rows) {
  return rows < 4 ? "fewer than 4 rows" : rows <= 16 ? "4 to 16 rows" : "17 rows and more";
}

// What a product of random operands and its forward twin need.
int64_t MemoryOf(const GemmShape& s, DType format, int64_t weights) {
  return weights * PackedWeight::Bytes(format, s.N, s.K) + 8 * (s.M * (s.N + s.K) + s.N * s.K);
}

}  // namespace

BenchCase DenseCase(const GemmShape& s, DType format, const GemmPeers& peers) {
  return {.group = "dense",
          .name = NameOf(s, format),
          .kind = KindOf(s.M),
          .bounds = {{PeakOf(format), GemmFlop(s.M, s.N, s.K)}},
          .memory_bytes = MemoryOf(s, format, 1),
          .prepare = [=](ExecContext& ctx) { return Products(s, format, 1, peers, ctx); }};
}

BenchCase DecodeCase(const GemmShape& s, DType format, const GemmPeers& peers, int64_t cold_bytes) {
  const int64_t bytes = PackedWeight::Bytes(format, s.N, s.K), count = ColdCount(bytes, cold_bytes);
  return {.group = "decode",
          .name = NameOf(s, format),
          .kind = DecodeKindOf(s.M),
          .bounds = {{Ceiling::kReadChunks, static_cast<double>(bytes)}, {PeakOf(format), GemmFlop(s.M, s.N, s.K)}},
          .memory_bytes = MemoryOf(s, format, count),
          .prepare = [=](ExecContext& ctx) { return Products(s, format, count, peers, ctx); }};
}

BenchCase InputGradCase(const GemmShape& s, DType format) {
  return {.group = "backward",
          .name = "dX/" + NameOf(s, format),
          .kind = KindOf(s.M),
          .bounds = {{PeakOf(format), GemmFlop(s.M, s.N, s.K)}},
          .reference = {.name = "forward"},
          .memory_bytes = 2 * MemoryOf(s, format, 1),
          .prepare = [=](ExecContext& ctx) {
            BenchRun out = Products({s.M, s.K, s.N}, format, 1, nullptr, ctx);
            out.reference = Products(s, format, 1, nullptr, ctx).run;
            return out;
          }};
}

BenchCase WeightGradCase(const GemmShape& s, DType format) {
  return {.group = "backward",
          .name = "dW/" + NameOf(s, format),
          .kind = KindOf(s.M),
          .bounds = {{PeakOf(format), GemmFlop(s.M, s.N, s.K)}},
          .reference = {.name = "forward"},
          .memory_bytes = 2 * MemoryOf(s, format, 1),
          .prepare = [=](ExecContext& ctx) {
            const auto operands = std::make_shared<BenchOperands>();
            const AnyMat d_y = operands->Activations(s.M, s.N, format, ctx), x = operands->Activations(s.M, s.K, format, ctx);
            const MatView<float> d_w = operands->Zeros(s.N, s.K);
            return BenchRun{.run =
                                [=, &ctx] {
                                  const WeightGradProblem problem{.d_y = d_y, .x = x, .d_w = d_w, .format = format};
                                  GroupedWeightGrad({&problem, 1}, ctx);
                                  static_cast<void>(operands);
                                },
                            .reference = Products(s, format, 1, nullptr, ctx).run};
          }};
}

std::vector<BenchCase> DenseCases(const BenchShapes& shapes, DType format, const GemmPeers& peers) {
  std::vector<BenchCase> dense, decode, backward;
  for (const GemmShape& s : shapes.gemm) {
    if (s.M <= kDecodeRows) {
      decode.push_back(DecodeCase(s, format, peers, shapes.cold_bytes));
      continue;
    }
    dense.push_back(DenseCase(s, format, peers));
    backward.push_back(InputGradCase(s, format));
    backward.push_back(WeightGradCase(s, format));
  }
  for (auto* more : {&decode, &backward}) std::move(more->begin(), more->end(), std::back_inserter(dense));
  return dense;
}

}  // namespace moe
