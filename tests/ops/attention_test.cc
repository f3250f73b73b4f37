#include "moe/ops/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/reference/attention.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

struct Shape {
  int64_t H, G, P;
  DType format = DType::kF32;
  AttentionShape op() const { return {H, G, P, Scale(), format}; }
  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(P)); }
  bool bf16() const { return format == DType::kBf16; }
};

// One sequence of C tokens: q [C,H*P], k, v [C,G*P].
struct Sequence {
  Shape shape;
  int64_t C;
  std::vector<float> q, k, v, d_out;

  Sequence(Shape s, int64_t length, uint64_t seed) : shape(s), C(length) {
    Rng rng(seed);
    q = NormalFloats(C * s.H * s.P, rng), k = NormalFloats(C * s.G * s.P, rng), v = NormalFloats(C * s.G * s.P, rng);
    d_out = NormalFloats(C * s.H * s.P, rng);
    // Later keys are longer: in later blocks the maxima of some rows of a tile move, those of others do not.
    for (int64_t i = 64; i < C; ++i) {
      for (int64_t c = 0; c < s.G * s.P; ++c) k[static_cast<size_t>(i * s.G * s.P + c)] *= i < 128 ? 6.0f : 18.0f;
    }
  }
  // Operands as products read them, scale included: the twin of bf16 products takes these, with scale 1.
  Sequence AsRead() const {
    Sequence s = *this;
    if (!shape.bf16()) return s;
    for (float& x : s.q) x *= shape.Scale();
    for (auto* m : {&s.q, &s.k, &s.v, &s.d_out}) {
      for (float& x : *m) x = ToFloat(ToBf16(x));
    }
    return s;
  }
  float TwinScale() const { return shape.bf16() ? 1.0f : shape.Scale(); }
  AttentionSegment segment(int64_t begin, int64_t rows) const {
    return {0, rows, begin, k.data(), v.data(), shape.G * shape.P};
  }
  // Rows [begin, begin+rows) of the sequence, as one step.
  std::vector<float> Forward(int64_t begin, int64_t rows, ExecContext& ctx, std::vector<float>* log_sum_exp = nullptr) const {
    const int64_t width = shape.H * shape.P;
    std::vector<float> out(static_cast<size_t>(rows * width), NAN), lse(static_cast<size_t>(rows * shape.H), NAN);
    const AttentionSegment s = segment(begin, rows);
    AttentionForward(shape.op(), {q.data() + begin * width, rows, width}, {&s, 1}, {out.data(), rows, width},
                     {lse.data(), rows, shape.H}, ctx);
    if (log_sum_exp != nullptr) *log_sum_exp = lse;
    return out;
  }
  struct Gradients {
    std::vector<float> q, k, v;
  };
  Gradients Backward(ExecContext& ctx) const {
    const int64_t wide = shape.H * shape.P, narrow = shape.G * shape.P;
    std::vector<float> lse;
    const std::vector<float> out = Forward(0, C, ctx, &lse);
    Gradients d{std::vector<float>(q.size(), NAN), std::vector<float>(k.size(), NAN), std::vector<float>(v.size(), NAN)};
    const AttentionSegment s = segment(0, C);
    AttentionBackward(shape.op(), {q.data(), C, wide}, {k.data(), C, narrow}, {v.data(), C, narrow}, {&s, 1},
                      {out.data(), C, wide}, {lse.data(), C, shape.H}, {d_out.data(), C, wide}, {d.q.data(), C, wide},
                      {d.k.data(), C, narrow}, {d.v.data(), C, narrow}, ctx);
    return d;
  }
};

// First-order error bounds, from magnitudes in double. A score is off by e_s <= (P+3) u scale |q|.|k|; a probability by a
// factor 1 + e_p, e_p = 2 max e_s plus the roundings of exp, of the sum over the keys, and of a rescaling per key block. With
// bf16 products (of operands AsRead) each use of a probability or of d_s is off by one more rounding, b; so is out, and with it
// delta, which takes d_out unrounded.
struct Bounds {
  std::vector<double> out, log_sum_exp, d_q, d_k, d_v;

  explicit Bounds(const Sequence& original) {
    const Sequence s = original.AsRead();
    const int64_t H = s.shape.H, G = s.shape.G, P = s.shape.P;
    const int64_t C = s.C;
    const double u = kEpsF32, b = s.shape.bf16() ? kEpsBf16 : 0, scale = s.TwinScale(),
                 C_u = static_cast<double>(C + 16 + C / 8) * u;
    const double P_u = static_cast<double>(P + 3) * u;
    out.resize(s.q.size()), d_q.resize(s.q.size()), d_k.resize(s.k.size()), d_v.resize(s.v.size());
    log_sum_exp.resize(static_cast<size_t>(C * H));
    for (int64_t i = 0; i < C; ++i) {
      for (int64_t h = 0; h < H; ++h) {
        const int64_t g = h / (H / G);
        const float* q = &s.q[static_cast<size_t>((i * H + h) * P)];
        const float* d_o = &s.d_out[static_cast<size_t>((i * H + h) * P)];
        std::vector<double> p, d_p, abs_d_p;
        double e_s = 0, sum = 0, delta = 0, abs_delta = 0;
        const auto at = [&, G = G, P = P](const std::vector<float>& x, int64_t j) {
          return &x[static_cast<size_t>((j * G + g) * P)];
        };
        for (int64_t j = 0; j <= i; ++j) {
          double dot = 0, abs = 0, dp = 0, abs_dp = 0;
          for (int64_t c = 0; c < P; ++c) {
            dot += q[c] * static_cast<double>(at(s.k, j)[c]), abs += std::fabs(q[c] * static_cast<double>(at(s.k, j)[c]));
            dp += d_o[c] * static_cast<double>(at(s.v, j)[c]), abs_dp += std::fabs(d_o[c] * static_cast<double>(at(s.v, j)[c]));
          }
          e_s = std::fmax(e_s, P_u * scale * abs + 2 * u * std::fabs(scale * dot));
          p.push_back(std::exp(scale * dot)), sum += p.back(), d_p.push_back(dp), abs_d_p.push_back(abs_dp);
        }
        const double e_p = 2 * e_s + 2 * C_u;
        log_sum_exp[static_cast<size_t>(i * H + h)] = e_p + 4 * u * std::fabs(std::log(sum));
        // lse is rounded once more before backward takes it
        const double e_b = e_p + log_sum_exp[static_cast<size_t>(i * H + h)] + e_s;
        for (int64_t j = 0; j <= i; ++j) {
          p[static_cast<size_t>(j)] /= sum;
          delta += p[static_cast<size_t>(j)] * d_p[static_cast<size_t>(j)];
          abs_delta += p[static_cast<size_t>(j)] * abs_d_p[static_cast<size_t>(j)];
        }
        for (int64_t j = 0; j <= i; ++j) {
          const double pj = p[static_cast<size_t>(j)];
          const double d_s = std::fabs(pj * (d_p[static_cast<size_t>(j)] - delta));
          const double e_ds =
              pj * (P_u * abs_d_p[static_cast<size_t>(j)] + (P_u + e_p + 2 * b) * abs_delta) + d_s * (e_b + 4 * u);
          for (int64_t c = 0; c < P; ++c) {
            const auto qi = static_cast<size_t>((i * H + h) * P + c), kj = static_cast<size_t>((j * G + g) * P + c);
            out[qi] += pj * std::fabs(s.v[kj]) * (e_p + C_u + b);
            d_q[qi] += s.shape.Scale() * std::fabs(s.k[kj]) * (e_ds + (C_u + b) * d_s);
            d_k[kj] += scale * std::fabs(q[c]) * (e_ds + (static_cast<double>(H / G) * C_u + b) * d_s);
            d_v[kj] += std::fabs(d_o[c]) * pj * (e_b + static_cast<double>(H / G) * C_u + b);
          }
        }
      }
    }
  }
};

std::vector<Shape> Shapes() {
  std::vector<Shape> out;
  for (const DType format : {DType::kF32, DType::kBf16}) {
    for (const Shape& s : {Shape{1, 1, 2}, {2, 2, 6}, {4, 2, 32}, {3, 1, 48}, {2, 1, 64}, {2, 2, 80}})
      out.push_back({s.H, s.G, s.P, format});
  }
  return out;
}

TEST(AttentionForward, MatchesTheTwin) {
  for (const Shape& shape : Shapes()) {
    for (const int64_t C : {1, 2, 63, 64, 65, 131}) {
      const Sequence s(shape, C, 7), read = s.AsRead();
      std::vector<double> want_lse;
      const auto want = ReferenceAttention<double>({shape.H, shape.G, shape.P, s.TwinScale()}, Doubles(read.q), Doubles(read.k),
                                                   Doubles(read.v), &want_lse);
      const Bounds bounds(s);
      for (const KernelTable* table : SupportedKernelTables()) {
        SCOPED_TRACE(fmt::format("{} {} H {} G {} P {} C {}", table->name, Name(shape.format), shape.H, shape.G, shape.P, C));
        TestContext t(2, table);
        std::vector<float> log_sum_exp;
        ExpectClose(s.Forward(0, C, t.ctx, &log_sum_exp), want, bounds.out);
        ExpectClose(log_sum_exp, want_lse, bounds.log_sum_exp);
      }
    }
  }
}

TEST(AttentionBackward, MatchesTheTwinsGradient) {
  for (const Shape& shape : Shapes()) {
    for (const int64_t C : {1, 2, 63, 64, 65, 140}) {
      if (C > 65 && shape.P > 48) continue;  // the tape would be large, and these lengths are covered by the other widths
      const Sequence s(shape, C, 11);
      const Bounds bounds(s);
      const Sequence read = s.AsRead();
      Tape tape;
      const auto q = tape.Inputs(read.q), k = tape.Inputs(read.k), v = tape.Inputs(read.v);
      const auto out = ReferenceAttention<Var>({shape.H, shape.G, shape.P, s.TwinScale()}, q, k, v);
      Var loss(0.0);
      for (size_t i = 0; i < out.size(); ++i) loss += out[i] * Var(read.d_out[i]);
      std::vector<Var> all(q);
      all.insert(all.end(), k.begin(), k.end()), all.insert(all.end(), v.begin(), v.end());
      std::vector<double> d = tape.Gradient(loss, all);
      const auto nq = static_cast<int64_t>(q.size()), nk = static_cast<int64_t>(k.size());
      if (shape.bf16()) std::for_each(d.begin(), d.begin() + nq, [&](double& x) { x *= shape.Scale(); });
      for (const KernelTable* table : SupportedKernelTables()) {
        SCOPED_TRACE(fmt::format("{} {} H {} G {} P {} C {}", table->name, Name(shape.format), shape.H, shape.G, shape.P, C));
        TestContext t(2, table);
        const auto got = s.Backward(t.ctx);
        ExpectClose(got.q, std::vector<double>(d.begin(), d.begin() + nq), bounds.d_q);
        ExpectClose(got.k, std::vector<double>(d.begin() + nq, d.begin() + nq + nk), bounds.d_k);
        ExpectClose(got.v, std::vector<double>(d.begin() + nq + nk, d.end()), bounds.d_v);
      }
    }
  }
}

// A row's result is the same alone, in any piece of its sequence, and in the whole.
TEST(AttentionForward, DecodeAndPrefillAgreeBitForBit) {
  for (const KernelTable* table : SupportedKernelTables()) {
    TestContext t(2, table);
    for (const Shape& shape : Shapes()) {
      const int64_t C = 200, width = shape.H * shape.P;
      const Sequence s(shape, C, 13);
      const auto whole = s.Forward(0, C, t.ctx);
      for (const auto& [begin, rows] : std::vector<std::pair<int64_t, int64_t>>{{0, 1},
                                                                                {1, 1},
                                                                                {62, 1},
                                                                                {63, 1},
                                                                                {64, 1},
                                                                                {65, 1},
                                                                                {127, 1},
                                                                                {128, 1},
                                                                                {199, 1},
                                                                                {0, 65},
                                                                                {60, 10},
                                                                                {33, 131},
                                                                                {100, 100}}) {
        SCOPED_TRACE(fmt::format("{} {} H {} P {} rows {}+{}", table->name, Name(shape.format), shape.H, shape.P, begin, rows));
        ExpectSameBits(s.Forward(begin, rows, t.ctx),
                       std::span(whole).subspan(static_cast<size_t>(begin * width), static_cast<size_t>(rows * width)));
      }
    }
  }
}

// Many segments in one step, over keys whose rows past the last valid one are NaN, as a cache that was never written is.
class AttentionSegments : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Formats, AttentionSegments, testing::Values(DType::kF32, DType::kBf16),
                         [](const auto& format) { return std::string(Name(format.param)); });

TEST_P(AttentionSegments, DoNotSeeEachOtherNorUnwrittenKeys) {
  const Shape shape{4, 2, 24, GetParam()};
  const int64_t wide = shape.H * shape.P, narrow = shape.G * shape.P, stride = narrow + 5;
  struct Part {
    int64_t begin, rows;
  };
  const std::vector<Part> parts = {{0, 3}, {70, 1}, {0, 0}, {64, 1}, {0, 130}, {30, 40}};
  TestContext t(2);
  std::vector<Sequence> sequences;
  std::vector<std::vector<float>> keys, values;
  std::vector<AttentionSegment> segments;
  int64_t T = 2;  // rows that no segment covers stay as they are
  for (const Part& part : parts) {
    const int64_t length = part.begin + part.rows;
    const Sequence& s = sequences.emplace_back(shape, length, static_cast<uint64_t>(20 + part.begin));
    for (const auto& [from, to] : {std::pair{&s.k, &keys}, std::pair{&s.v, &values}}) {
      auto& cache = to->emplace_back(static_cast<size_t>((length / 64 + 2) * 64 * stride), NAN);
      for (int64_t i = 0; i < length; ++i) std::copy_n(from->begin() + i * narrow, narrow, cache.begin() + i * stride);
    }
    segments.push_back({T, part.rows, part.begin, keys.back().data(), values.back().data(), stride});
    T += part.rows;
  }
  FencedMatrix q(T, wide), out(T, wide);
  for (size_t i = 0; i < parts.size(); ++i) {
    for (int64_t r = 0; r < parts[i].rows; ++r)
      std::copy_n(sequences[i].q.begin() + (parts[i].begin + r) * wide, wide, q.view().row(segments[i].row_begin + r));
  }
  AttentionForward(shape.op(), q.view(), segments, out.view(), {}, t.ctx);
  EXPECT_TRUE(out.Intact());
  for (size_t i = 0; i < parts.size(); ++i) {
    SCOPED_TRACE(i);
    const auto alone = sequences[i].Forward(parts[i].begin, parts[i].rows, t.ctx);
    for (int64_t r = 0; r < parts[i].rows; ++r) {
      ExpectSameBits(out.view().row_span(segments[i].row_begin + r),
                     std::span(alone).subspan(static_cast<size_t>(r * wide), static_cast<size_t>(wide)));
    }
  }
  for (int64_t c = 0; c < wide; ++c) EXPECT_TRUE(std::isnan(out.view()(0, c)) && std::isnan(out.view()(1, c)));
}

TEST_P(AttentionSegments, AreIndependentBackwardAndThreadsDoNotMatter) {
  const Shape shape{4, 2, 10, GetParam()};
  const int64_t wide = shape.H * shape.P, narrow = shape.G * shape.P;
  const std::vector<int64_t> lengths = {1, 70, 0, 33, 129};
  const int64_t T = 233;
  Rng rng(5);
  FencedMatrix q(T, wide), k(T, narrow), v(T, narrow), d_out(T, wide), out(T, wide), log_sum_exp(T, shape.H);
  for (FencedMatrix* m : {&q, &k, &v, &d_out}) FillNormal(m->view(), rng);
  std::vector<AttentionSegment> segments;
  int64_t row = 0;
  for (const int64_t length : lengths) {
    segments.push_back(
        {row, length, 0, k.view().data + row * k.view().stride, v.view().data + row * v.view().stride, k.view().stride});
    row += length;
  }
  ASSERT_EQ(row, T);
  std::vector<float> first[3];
  for (const int threads : {1, 2, 3, 4}) {
    SCOPED_TRACE(threads);
    TestContext t(threads);
    FencedMatrix d_q(T, wide), d_k(T, narrow), d_v(T, narrow);
    AttentionForward(shape.op(), q.view(), segments, out.view(), log_sum_exp.view(), t.ctx);
    AttentionBackward(shape.op(), q.view(), k.view(), v.view(), segments, out.view(), log_sum_exp.view(), d_out.view(),
                      d_q.view(), d_k.view(), d_v.view(), t.ctx);
    EXPECT_TRUE(out.Intact() && log_sum_exp.Intact() && d_q.Intact() && d_k.Intact() && d_v.Intact());
    const std::vector<float> got[3] = {d_q.dense(), d_k.dense(), d_v.dense()};
    for (int i = 0; i < 3; ++i) {
      if (threads == 1) first[i] = got[i];
      ExpectSameBits(got[i], first[i]);
    }
  }
  // One segment by itself gives what it gave among the others.
  TestContext t(2);
  FencedMatrix d_q(T, wide), d_k(T, narrow), d_v(T, narrow);
  AttentionBackward(shape.op(), q.view(), k.view(), v.view(), {&segments[1], 1}, out.view(), log_sum_exp.view(), d_out.view(),
                    d_q.view(), d_k.view(), d_v.view(), t.ctx);
  for (int64_t r = 1; r < 71; ++r) {
    ExpectSameBits(d_k.view().row_span(r),
                   std::span(first[1]).subspan(static_cast<size_t>(r * narrow), static_cast<size_t>(narrow)));
  }
  EXPECT_TRUE(std::isnan(d_k.view()(0, 0)) && std::isnan(d_q.view()(71, 0)));
}

TEST(AttentionForward, HugeScoresDoNotOverflow) {
  TestContext t;
  for (const DType format : {DType::kF32, DType::kBf16}) {
    Sequence s({1, 1, 4, format}, 200, 3);
    for (float& x : s.q) x *= 1e4f;
    for (const float x : s.Forward(0, 200, t.ctx)) EXPECT_TRUE(std::isfinite(x));
  }
}

TEST(Attention, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  Sequence s({2, 1, 4}, 3, 3);
  std::vector<float> out(s.q.size());
  const AttentionSegment good = s.segment(0, 3);
  const auto run = [&](AttentionShape shape, int64_t cols, AttentionSegment segment) {
    AttentionForward(shape, {s.q.data(), 3, cols}, {&segment, 1}, {out.data(), 3, cols}, {}, t.ctx);
  };
  EXPECT_NO_THROW(run({2, 1, 4, 1}, 8, good));
  EXPECT_THROW(run({3, 2, 2, 1}, 6, good), CheckError);  // heads do not divide
  EXPECT_THROW(run({2, 0, 4, 1}, 8, good), CheckError);
  EXPECT_THROW(run({8, 1, 1, 1}, 8, good), CheckError);  // odd head width
  EXPECT_THROW(run({2, 1, 4, 1, DType::kF16}, 8, good), CheckError);
  EXPECT_THROW(run({2, 1, 2, 1}, 8, good), CheckError);                          // widths do not fit
  EXPECT_THROW(run({2, 1, 4, 1}, 8, {0, 4, 0, good.k, good.v, 4}), CheckError);  // more rows than q has
  EXPECT_THROW(run({2, 1, 4, 1}, 8, {0, 3, 0, nullptr, good.v, 4}), CheckError);
  EXPECT_THROW(run({2, 1, 4, 1}, 8, {0, 3, 0, good.k, good.v, 3}), CheckError);
}

TEST_P(AttentionSegments, TakeNoMemoryAfterWarmUp) {
  TestContext t(2);
  const Sequence s({2, 1, 32, GetParam()}, 200, 3);
  s.Backward(t.ctx);
  t.arena.Reset();
  s.Backward(t.ctx);
  const int64_t before = t.arena.num_allocations();
  for (int i = 0; i < 3; ++i) {
    t.arena.Reset();
    s.Backward(t.ctx);
  }
  EXPECT_EQ(t.arena.num_allocations(), before);
}

}  // namespace
}  // namespace moe::test
