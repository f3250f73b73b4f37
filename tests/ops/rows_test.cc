// Norm, RoPE, embedding and the elementwise ops: the kernels have their own tests; here rows, strides, threads and checks.
#include "testing/reference/rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "moe/ops/elementwise.h"
#include "moe/ops/embedding.h"
#include "moe/ops/norm.h"
#include "moe/ops/rope.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

using Values = std::vector<double>;
constexpr double kU = kEpsF32;

FencedMatrix RandomMatrix(int64_t rows, int64_t cols, Rng& rng, double deviation = 1) {
  FencedMatrix m(rows, cols);
  FillNormal(m.view(), rng, deviation);
  return m;
}

TEST(RmsNorm, RowsMatchTheTwinForwardAndBackward) {
  const float epsilon = 1e-6f;
  Rng rng(1);
  for (const int64_t T : {0, 1, 3, 64, 65, 200}) {
    for (const int64_t D : {1, 31, 64}) {
      SCOPED_TRACE(fmt::format("T {} D {}", T, D));
      const FencedMatrix x = RandomMatrix(T, D, rng), d_y = RandomMatrix(T, D, rng);
      const auto w = NormalFloats(D, rng), d_w_before = NormalFloats(D, rng);
      std::vector<float> want_d_x, want_d_w, want_y;
      for (const int threads : {1, 2, 3, 4}) {
        TestContext t(threads);
        FencedMatrix y(T, D), d_x(T, D), no_saved(T, D);
        std::vector<float> inv_rms(static_cast<size_t>(T), NAN), d_w = d_w_before;
        RmsNormForward(x.view(), w, epsilon, y.view(), inv_rms, t.ctx);
        RmsNormForward(x.view(), w, epsilon, no_saved.view(), {}, t.ctx);
        RmsNormBackward(x.view(), w, inv_rms, d_y.view(), d_x.view(), d_w, t.ctx);
        EXPECT_TRUE(y.Intact() && d_x.Intact());
        ExpectSameBits(no_saved.dense(), y.dense());
        if (threads == 1) want_d_x = d_x.dense(), want_d_w = d_w, want_y = y.dense();
        ExpectSameBits(d_x.dense(), want_d_x);
        ExpectSameBits(d_w, want_d_w);
        ExpectSameBits(y.dense(), want_y);
        FencedMatrix in_place = d_y;
        RmsNormBackward(x.view(), w, inv_rms, in_place.view(), in_place.view(), d_w, t.ctx);
        ExpectSameBits(in_place.dense(), want_d_x);
      }
      // The twin, all rows on one tape.
      Tape tape;
      const auto tx = tape.Inputs(x.dense()), tw = tape.Inputs(w);
      Var loss(0.0);
      Values want, y_bounds, d_w_bounds(w.size());
      for (int64_t r = 0; r < T; ++r) {
        const auto y = ReferenceRmsNorm(std::vector<Var>(tx.begin() + r * D, tx.begin() + (r + 1) * D), tw, epsilon);
        for (int64_t c = 0; c < D; ++c) {
          const auto i = static_cast<size_t>(c);
          loss += y[i] * Var(d_y.view()(r, c));
          want.push_back(y[i].value), y_bounds.push_back(static_cast<double>(D + 10) * kU * std::fabs(y[i].value));
          // sums over rows: |d_y y / w| each, off by the norm's error and the order of adding
          d_w_bounds[i] += static_cast<double>(D + T + 16) * kU * std::fabs(d_y.view()(r, c) * y[i].value / w[i]);
        }
      }
      ExpectClose(want_y, want, y_bounds);
      Values d_w_twin = tape.Gradient(loss, tw);
      for (size_t i = 0; i < w.size(); ++i) d_w_twin[i] += d_w_before[i], d_w_bounds[i] += 2 * kU * std::fabs(d_w_before[i]);
      ExpectClose(want_d_w, d_w_twin, d_w_bounds);
      const Values d_x_twin = tape.Gradient(loss, tx);
      Values d_x_bounds;
      for (int64_t r = 0; r < T; ++r) {
        double squares = 0, abs_dot = 0;
        for (int64_t c = 0; c < D; ++c) {
          squares += static_cast<double>(x.view()(r, c)) * x.view()(r, c);
          abs_dot += std::fabs(static_cast<double>(x.view()(r, c)) * w[static_cast<size_t>(c)] * d_y.view()(r, c));
        }
        const double mean = squares / static_cast<double>(D) + epsilon, inv = 1 / std::sqrt(mean);
        for (int64_t c = 0; c < D; ++c) {
          const double direct = std::fabs(w[static_cast<size_t>(c)] * d_y.view()(r, c));
          const double shrink = std::fabs(x.view()(r, c)) * abs_dot / (mean * static_cast<double>(D));
          d_x_bounds.push_back(inv * static_cast<double>(3 * D + 30) * kU * (direct + shrink));
        }
      }
      ExpectClose(want_d_x, d_x_twin, d_x_bounds);
    }
  }
}

TEST(RmsNorm, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  FencedMatrix x(3, 4), y(3, 4), wrong(3, 5), few(2, 4);
  std::vector<float> w(4), w5(5), inv(3), inv2(2);
  EXPECT_NO_THROW(RmsNormForward(x.view(), w, 1e-6f, y.view(), inv, t.ctx));
  EXPECT_THROW(RmsNormForward(x.view(), w5, 1e-6f, y.view(), inv, t.ctx), CheckError);
  EXPECT_THROW(RmsNormForward(x.view(), w, 1e-6f, wrong.view(), inv, t.ctx), CheckError);
  EXPECT_THROW(RmsNormForward(x.view(), w, 1e-6f, few.view(), inv, t.ctx), CheckError);
  EXPECT_THROW(RmsNormForward(x.view(), w, 1e-6f, y.view(), inv2, t.ctx), CheckError);
  EXPECT_THROW(RmsNormBackward(x.view(), w, inv2, y.view(), y.view(), w, t.ctx), CheckError);
  EXPECT_THROW(RmsNormBackward(x.view(), w, inv, y.view(), y.view(), w5, t.ctx), CheckError);
  EXPECT_THROW(RmsNormBackward(x.view(), w, inv, few.view(), y.view(), w, t.ctx), CheckError);
}

TEST(Rope, TurnsEveryHeadByItsRowsPosition) {
  Rng rng(2);
  for (const int64_t P : {2, 6, 32, 48}) {
    const int64_t T = 70, heads = 3, context = 100;
    const RopeTable table = MakeRopeTable(context, P, 1e4);
    EXPECT_EQ(table.half, P / 2);
    const auto positions = RandomInts(T, context, rng);
    const FencedMatrix x = RandomMatrix(T, heads * P, rng);
    Values want, bounds;
    for (int64_t r = 0; r < T; ++r) {
      const Values row = Doubles(x.view().row_span(r));
      for (int64_t h = 0; h < heads; ++h) {
        const auto head = std::span(row).subspan(static_cast<size_t>(h * P), static_cast<size_t>(P));
        const Values turned = ReferenceRope(head, positions[static_cast<size_t>(r)], 1e4);
        want.insert(want.end(), turned.begin(), turned.end());
        for (int64_t c = 0; c < P; ++c)
          bounds.push_back(4 * kU *
                           (std::fabs(head[static_cast<size_t>(c)]) + std::fabs(head[static_cast<size_t>((c + P / 2) % P)])));
      }
    }
    for (const int threads : {1, 2, 3, 4}) {
      TestContext t(threads);
      FencedMatrix y = x;
      ApplyRope(table, positions, RopeDirection::kForward, y.view(), t.ctx);
      EXPECT_TRUE(y.Intact());
      ExpectClose(y.dense(), want, bounds);
      ApplyRope(table, positions, RopeDirection::kBackward, y.view(), t.ctx);
      Values wide = bounds;
      for (double& b : wide) b *= 3;
      ExpectClose(y.dense(), Doubles(x.dense()), wide);
    }
  }
}

TEST(Rope, PositionZeroChangesNothingAndMisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  const RopeTable table = MakeRopeTable(4, 6, 1e4);
  Rng rng(3);
  FencedMatrix x = RandomMatrix(2, 12, rng);
  const auto before = x.dense();
  ApplyRope(table, std::vector<int32_t>{0, 0}, RopeDirection::kForward, x.view(), t.ctx);
  ExpectSameBits(x.dense(), before);
  EXPECT_THROW(ApplyRope(table, std::vector<int32_t>{0, 4}, RopeDirection::kForward, x.view(), t.ctx), CheckError);
  EXPECT_THROW(ApplyRope(table, std::vector<int32_t>{0, -1}, RopeDirection::kForward, x.view(), t.ctx), CheckError);
  EXPECT_THROW(ApplyRope(table, std::vector<int32_t>{0}, RopeDirection::kForward, x.view(), t.ctx), CheckError);
  EXPECT_THROW(ApplyRope(table, std::vector<int32_t>{0, 0}, RopeDirection::kForward, x.view().Cols(0, 8), t.ctx), CheckError);
  EXPECT_THROW(MakeRopeTable(4, 5, 1e4), CheckError);
  EXPECT_THROW(MakeRopeTable(4, 0, 1e4), CheckError);
}

TEST(Embedding, CopiesRowsAndAddsGradientsInRowOrder) {
  Rng rng(4);
  for (const int64_t D : {1, 31, 64, 200}) {
    for (const int64_t T : {0, 1, 150}) {
      const int64_t V = 20;
      const FencedMatrix table = RandomMatrix(V, D, rng), d_out = RandomMatrix(T, D, rng), before = RandomMatrix(V, D, rng);
      const auto ids = RandomInts(T, V, rng);
      FencedMatrix want = before;  // one float addition per row, in row order
      for (int64_t r = 0; r < T; ++r) {
        for (int64_t c = 0; c < D; ++c) want.view()(ids[static_cast<size_t>(r)], c) += d_out.view()(r, c);
      }
      for (const int threads : {1, 2, 3, 4}) {
        SCOPED_TRACE(fmt::format("D {} T {} threads {}", D, T, threads));
        TestContext t(threads);
        FencedMatrix out(T, D), d_table = before;
        EmbeddingForward(table.view(), ids, out.view(), t.ctx);
        EmbeddingBackward(ids, d_out.view(), d_table.view(), t.ctx);
        EXPECT_TRUE(out.Intact() && d_table.Intact());
        for (int64_t r = 0; r < T; ++r)
          ExpectSameBits(out.view().row_span(r), table.view().row_span(ids[static_cast<size_t>(r)]));
        ExpectSameBits(d_table.dense(), want.dense());
      }
    }
  }
}

TEST(Embedding, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  FencedMatrix table(5, 4), out(2, 4), narrow(2, 3);
  const std::vector<int32_t> good = {0, 4}, high = {0, 5}, low = {-1, 0}, three = {0, 1, 2};
  EXPECT_NO_THROW(EmbeddingForward(table.view(), good, out.view(), t.ctx));
  EXPECT_THROW(EmbeddingForward(table.view(), high, out.view(), t.ctx), CheckError);
  EXPECT_THROW(EmbeddingForward(table.view(), low, out.view(), t.ctx), CheckError);
  EXPECT_THROW(EmbeddingForward(table.view(), three, out.view(), t.ctx), CheckError);
  EXPECT_THROW(EmbeddingForward(table.view(), good, narrow.view(), t.ctx), CheckError);
  EXPECT_THROW(EmbeddingBackward(high, out.view(), table.view(), t.ctx), CheckError);
  EXPECT_THROW(EmbeddingBackward(good, narrow.view(), table.view(), t.ctx), CheckError);
}

TEST(Add, AddsRowByRow) {
  Rng rng(5);
  for (const int64_t T : {0, 1, 300}) {
    const FencedMatrix x = RandomMatrix(T, 65, rng), before = RandomMatrix(T, 65, rng);
    TestContext t(3);
    FencedMatrix y = before;
    Add(x.view(), y.view(), t.ctx);
    EXPECT_TRUE(y.Intact());
    for (int64_t r = 0; r < T; ++r)
      for (int64_t c = 0; c < 65; ++c) EXPECT_EQ(y.view()(r, c), before.view()(r, c) + x.view()(r, c));
  }
  const ThrowingChecks guard;
  TestContext t;
  FencedMatrix x(2, 3), y(2, 4);
  EXPECT_THROW(Add(x.view(), y.view(), t.ctx), CheckError);
}

TEST(SwigluBackward, RowsMatchTheTwinAndMayRunInPlace) {
  Rng rng(6);
  for (const int64_t T : {0, 1, 200}) {
    const int64_t F = 48;
    FencedMatrix gate_up = RandomMatrix(T, 2 * F, rng, 2);
    const FencedMatrix d_h = RandomMatrix(T, F, rng);
    Values want, bounds;
    for (int64_t r = 0; r < T; ++r) {
      Tape tape;
      const auto x = tape.Inputs(gate_up.view().row_span(r));
      const auto h = ReferenceSwiglu(x);
      Var loss(0.0);
      for (int64_t i = 0; i < F; ++i) loss += h[static_cast<size_t>(i)] * Var(d_h.view()(r, i));
      const Values d = tape.Gradient(loss, x);
      want.insert(want.end(), d.begin(), d.end());
      for (int64_t i = 0; i < 2 * F; ++i) {
        const double gate = gate_up.view()(r, i / 32 * 32 + i % 16), up = gate_up.view()(r, i / 32 * 32 + 16 + i % 16);
        const double g = std::fabs(static_cast<double>(d_h.view()(r, i / 32 * 16 + i % 16)));
        bounds.push_back(20 * kU * g * (i % 32 < 16 ? std::fabs(up) * (1 + std::fabs(gate)) : std::fabs(gate)));
      }
    }
    TestContext t(2);
    FencedMatrix d(T, 2 * F);
    SwigluBackward(gate_up.view(), d_h.view(), d.view(), t.ctx);
    EXPECT_TRUE(d.Intact());
    ExpectClose(d.dense(), want, bounds);
    SwigluBackward(gate_up.view(), d_h.view(), gate_up.view(), t.ctx);
    ExpectSameBits(gate_up.dense(), d.dense());
  }
  const ThrowingChecks guard;
  TestContext t;
  FencedMatrix a(1, 32), b(1, 15), c(1, 16), e(1, 48);
  EXPECT_THROW(SwigluBackward(a.view(), b.view(), a.view(), t.ctx), CheckError);
  EXPECT_THROW(SwigluBackward(a.view(), c.view(), e.view(), t.ctx), CheckError);
}

TEST(SumSquares, IsTheSameForAnyThreads) {
  Rng rng(7);
  for (const int64_t n : {0, 1, 100, 16384, 16385, 100000}) {
    const auto x = NormalFloats(n, rng);
    double want = 0, first = 0;
    for (const float v : x) want += static_cast<double>(v) * v;
    for (const int threads : {1, 2, 3, 4}) {
      TestContext t(threads);
      const double got = SumSquares(x, t.ctx);
      if (threads == 1) first = got;
      EXPECT_EQ(got, first);
    }
    EXPECT_NEAR(first, want, DotTolerance(4096, want).absolute);
  }
}

}  // namespace
}  // namespace moe::test
