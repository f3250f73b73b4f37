#include "moe/planner/bench_attention.h"

#include <cmath>

#include "moe/ops/attention.h"
#include "moe/ops/gemm.h"
#include "moe/planner/bench_operands.h"

namespace moe {
namespace {

constexpr int64_t kSequences = 8;  // of a decode
constexpr int64_t kGemm = 1024;    // rows and columns of the product beside it

AttentionShape ShapeOf(const AttentionBenchShape& s, DType format) {
  return {.num_heads = s.H,
          .num_kv_heads = s.G,
          .head_width = s.P,
          .scale = 1 / std::sqrt(static_cast<float>(s.P)),
          .format = format};
}

std::string NameOf(const AttentionBenchShape& s, DType format, const char* what) {
  return fmt::format("{}/{}/C{}.H{}.G{}.P{}", Name(format), what, s.C, s.H, s.G, s.P);
}

// Scores and weighted sums of all pairs of a causal prefill.
double ForwardFlop(const AttentionBenchShape& s) {
  const auto C = static_cast<double>(s.C);
  return 4.0 * static_cast<double>(s.H * s.P) * C * (C + 1) / 2;
}

std::function<void()> GemmRun(DType format, ExecContext& ctx) {
  const auto o = std::make_shared<BenchOperands>();
  const AnyMat x = o->Activations(kGemm, kGemm, format, ctx);
  const MatView<float> y = o->Zeros(kGemm, kGemm);
  o->AddWeight(kGemm, kGemm, format, ctx);
  return [=, &ctx] { Gemm({.a = x, .weight = &o->weights[0], .c = y}, ctx); };
}

// One sequence, all of its positions at once.
struct Prefill {
  AttentionShape shape;
  BenchOperands operands;
  MatView<float> q, k, v, out, log_sum_exp, d_out, d_q, d_k, d_v;
  AttentionSegment segment;

  void Forward(ExecContext& ctx) const { AttentionForward(shape, q, {&segment, 1}, out, log_sum_exp, ctx); }
  void Backward(ExecContext& ctx) const {
    AttentionBackward(shape, q, k, v, {&segment, 1}, out, log_sum_exp, d_out, d_q, d_k, d_v, ctx);
  }
};

std::shared_ptr<Prefill> MakePrefill(const AttentionBenchShape& s, DType format, bool backward, ExecContext& ctx) {
  auto p = std::make_shared<Prefill>();
  BenchOperands& o = p->operands;
  p->shape = ShapeOf(s, format);
  p->q = o.Matrix(s.C, s.H * s.P, ctx), p->k = o.Matrix(s.C, s.G * s.P, ctx), p->v = o.Matrix(s.C, s.G * s.P, ctx);
  p->out = o.Zeros(s.C, s.H * s.P);
  p->segment = {.row_begin = 0, .num_rows = s.C, .first_position = 0, .k = p->k.data, .v = p->v.data, .kv_stride = p->k.stride};
  if (!backward) return p;
  p->log_sum_exp = o.Zeros(s.C, s.H);
  p->d_out = o.Matrix(s.C, s.H * s.P, ctx);
  p->d_q = o.Zeros(s.C, s.H * s.P), p->d_k = o.Zeros(s.C, s.G * s.P), p->d_v = o.Zeros(s.C, s.G * s.P);
  p->Forward(ctx);
  return p;
}

BenchCase PrefillCase(const AttentionBenchShape& s, DType format, bool backward) {
  return {.group = "attention",
          .name = NameOf(s, format, backward ? "backward" : "prefill"),
          .kind = backward ? "backward" : "prefill",
          .bounds = {{PeakOf(format), ForwardFlop(s) * (backward ? 2.5 : 1)}},  // five products instead of two
          .reference = {.name = "GEMM", .work = GemmFlop(kGemm, kGemm, kGemm)},
          .memory_bytes = 4 * s.C * s.P * (s.H + s.G) * 8,
          .prepare = [=](ExecContext& ctx) {
            const auto p = MakePrefill(s, format, backward, ctx);
            return BenchRun{.run = [=, &ctx] { backward ? p->Backward(ctx) : p->Forward(ctx); },
                            .reference = GemmRun(format, ctx)};
          }};
}

// One new position for each sequence; sets of sequences in turn.
struct Decode {
  AttentionShape shape;
  BenchOperands operands;
  MatView<float> q, out;
  std::vector<std::vector<AttentionSegment>> sets;
  size_t next = 0;
};

BenchRun DecodeRun(const AttentionBenchShape& s, DType format, int64_t sets, ExecContext& ctx) {
  const auto d = std::make_shared<Decode>();
  d->shape = ShapeOf(s, format);
  d->q = d->operands.Matrix(kSequences, s.H * s.P, ctx), d->out = d->operands.Zeros(kSequences, s.H * s.P);
  for (int64_t i = 0; i < sets; ++i) {
    std::vector<AttentionSegment>& set = d->sets.emplace_back();
    for (int64_t b = 0; b < kSequences; ++b) {
      const MatView<float> k = d->operands.Matrix(s.C, s.G * s.P, ctx), v = d->operands.Matrix(s.C, s.G * s.P, ctx);
      set.push_back(
          {.row_begin = b, .num_rows = 1, .first_position = s.C - 1, .k = k.data, .v = v.data, .kv_stride = k.stride});
    }
  }
  return {.run = [=, &ctx] { AttentionForward(d->shape, d->q, d->sets[d->next++ % d->sets.size()], d->out, {}, ctx); }};
}

BenchCase DecodeCase(const AttentionBenchShape& s, DType format, int64_t cold_bytes) {
  const int64_t bytes = kSequences * s.C * 2 * s.G * s.P * 4, sets = ColdCount(bytes, cold_bytes);
  return {.group = "attention",
          .name = NameOf(s, format, "decode"),
          .kind = "decode",
          .bounds = {{Ceiling::kReadChunks, static_cast<double>(bytes)},
                     {Ceiling::kPeakF32, 4.0 * static_cast<double>(kSequences * s.C * s.H * s.P)}},
          .memory_bytes = sets * bytes,
          .prepare = [=](ExecContext& ctx) { return DecodeRun(s, format, sets, ctx); }};
}

}  // namespace

std::vector<BenchCase> AttentionCases(const BenchShapes& shapes, DType format) {
  std::vector<BenchCase> out;
  for (const AttentionBenchShape& s : shapes.attention) out.push_back(PrefillCase(s, format, false));
  for (const AttentionBenchShape& s : shapes.attention) out.push_back(PrefillCase(s, format, true));
  for (const AttentionBenchShape& s : shapes.attention) out.push_back(DecodeCase(s, format, shapes.cold_bytes));
  return out;
}

}  // namespace moe
