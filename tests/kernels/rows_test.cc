#include "testing/reference/rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "moe/kernels/cpu/kernel_table.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/shapes.h"

namespace moe::test {
namespace {

using Values = std::vector<double>;

// d/dx_i of sum_j w_j f(x)_j: by the tape, which is itself held against central differences of the double formula.
template <class F>
Values GradientOf(F&& f, const Values& x, const Values& weights) {
  Tape tape;
  const auto inputs = tape.Inputs(x);
  const auto y = f(inputs);
  Var loss(0.0);
  for (size_t j = 0; j < y.size(); ++j) loss += y[j] * Var(weights[j]);
  const Values gradient = tape.Gradient(loss, inputs);
  const auto value = [&](const Values& at) {
    double sum = 0;
    const auto out = f(at);
    for (size_t j = 0; j < out.size(); ++j) sum += weights[j] * out[j];
    return sum;
  };
  for (size_t i = 0; i < x.size(); i += 1 + x.size() / 7) {
    Values up = x, down = x;
    const double h = 1e-5;
    up[i] += h, down[i] -= h;
    EXPECT_NEAR((value(up) - value(down)) / (2 * h), gradient[i], 1e-6 * (1 + std::fabs(gradient[i])));
  }
  return gradient;
}

TEST(RmsNorm, ForwardAndBackwardMatchTheTwin) {
  const double epsilon = 1e-5f;
  for (const KernelTable* table : SupportedKernelTables()) {
    Rng rng(1);
    for (const int64_t n : kSizes) {
      if (n == 0) continue;
      SCOPED_TRACE(fmt::format("{} n {}", table->name, n));
      const auto x = NormalFloats(n, rng, 2), w = NormalFloats(n, rng), d_y = NormalFloats(n, rng);
      const auto before = NormalFloats(n, rng);
      const Values xd = Doubles(x), wd = Doubles(w), gd = Doubles(d_y);
      std::vector<float> y(x.size(), NAN), d_x(x.size(), NAN), d_w = before, in_place = d_y, no_d_w = d_y;
      const float inv_rms = table->rms_norm(x.data(), w.data(), n, 1e-5f, y.data());
      const auto want = ReferenceRmsNorm(xd, wd, epsilon);
      double squares = 0;
      for (const double v : xd) squares += v * v;
      const double inv = 1 / std::sqrt(squares / static_cast<double>(n) + epsilon);
      // inv_rms: half the relative error of the sum of squares, then a division, a root and a sum
      const double u = kEpsF32, e_inv = static_cast<double>(n) * u / 2 + 4 * u;
      EXPECT_NEAR(inv_rms, inv, inv * e_inv);
      ExpectClose(y, want, Tolerance{.absolute = 1e-45, .relative = e_inv + 2 * u});

      table->rms_norm_backward(x.data(), w.data(), inv_rms, d_y.data(), n, d_x.data(), d_w.data());
      const auto want_d_x = GradientOf(
          [&](const auto& in) {
            std::decay_t<decltype(in)> weight(wd.begin(), wd.end());
            return ReferenceRmsNorm(in, weight, epsilon);
          },
          xd, gd);
      const auto want_d_w = GradientOf(
          [&](const auto& in) {
            std::decay_t<decltype(in)> row(xd.begin(), xd.end());
            return ReferenceRmsNorm(row, in, epsilon);
          },
          wd, gd);
      double abs_dot = 0;
      for (size_t i = 0; i < x.size(); ++i) abs_dot += std::fabs(xd[i] * wd[i] * gd[i]);
      Values bound_x, bound_w;
      for (size_t i = 0; i < x.size(); ++i) {
        const double shrink = std::fabs(xd[i]) * abs_dot * inv * inv / static_cast<double>(n);
        bound_x.push_back(inv *
                          ((3 * e_inv + static_cast<double>(n + 8) * u) * shrink + (e_inv + 4 * u) * std::fabs(wd[i] * gd[i])));
        bound_w.push_back((e_inv + 4 * u) * std::fabs(gd[i] * xd[i] * inv) +
                          u * std::fabs(before[i] + gd[i] * xd[i] * inv) * 1.01);
      }
      ExpectClose(d_x, want_d_x, bound_x);
      Values want_sum;
      for (size_t i = 0; i < x.size(); ++i) want_sum.push_back(before[i] + want_d_w[i]);
      ExpectClose(d_w, want_sum, bound_w);
      // d_x may be d_y, and d_w may be left out.
      auto d_w_again = before;
      table->rms_norm_backward(x.data(), w.data(), inv_rms, in_place.data(), n, in_place.data(), d_w_again.data());
      ExpectSameBits(in_place, d_x);
      ExpectSameBits(d_w_again, d_w);
      table->rms_norm_backward(x.data(), w.data(), inv_rms, no_d_w.data(), n, no_d_w.data(), nullptr);
      ExpectSameBits(no_d_w, d_x);
    }
  }
}

TEST(RmsNorm, ARowOfZerosStaysZero) {
  for (const KernelTable* table : SupportedKernelTables()) {
    const std::vector<float> x(33, 0.0f), w(33, 1.0f);
    std::vector<float> y(33, NAN);
    EXPECT_TRUE(std::isfinite(table->rms_norm(x.data(), w.data(), 33, 1e-6f, y.data())));
    ExpectSameBits(y, x);
  }
}

TEST(Swiglu, ForwardAndBackwardMatchTheTwin) {
  for (const KernelTable* table : SupportedKernelTables()) {
    Rng rng(2);
    for (const int64_t n : {0, 16, 32, 48, 80}) {
      SCOPED_TRACE(fmt::format("{} n {}", table->name, n));
      auto gate_up = NormalFloats(2 * n, rng, 4);
      const auto d_h = NormalFloats(n, rng);
      const Values x = Doubles(gate_up), g = Doubles(d_h);
      std::vector<float> h(d_h.size(), NAN), d(gate_up.size(), NAN);
      table->swiglu(gate_up.data(), n, h.data());
      const double u = kEpsF32;
      // the sigmoid: exp to 2 ulp (4u), a sum and a quotient; then two products
      ExpectClose(h, ReferenceSwiglu(x), Tolerance{.relative = 8 * u});
      table->swiglu_backward_f32(gate_up.data(), d_h.data(), n, d.data());
      Values bounds(x.size());
      for (size_t i = 0; i < d_h.size(); ++i) {
        const double gate = x[i / 16 * 32 + i % 16], up = x[i / 16 * 32 + 16 + i % 16], s = 1 / (1 + std::exp(-gate));
        // d_gate = d up s (1 + gate (1 - s)): 1 - s is off by 7u s, absolutely
        bounds[i / 16 * 32 + i % 16] =
            std::fabs(g[i] * up * s) * (12 * u * (1 + std::fabs(gate) * (1 - s)) + 8 * u * std::fabs(gate));
        bounds[i / 16 * 32 + 16 + i % 16] = std::fabs(g[i] * gate * s) * 8 * u;
      }
      const auto f = [](const auto& in) { return ReferenceSwiglu(in); };
      ExpectClose(d, GradientOf(f, x, g), bounds);
      table->swiglu_backward_f32(gate_up.data(), d_h.data(), n, gate_up.data());
      ExpectSameBits(gate_up, d);
    }
  }
}

TEST(Swiglu, BackwardInBf16IsThatOfFloatsRoundedOnce) {
  for (const KernelTable* table : SupportedKernelTables()) {
    Rng rng(3);
    for (const int64_t n : {0, 16, 32, 48, 80}) {
      SCOPED_TRACE(fmt::format("{} n {}", table->name, n));
      Halves gate_up(NormalFloats(2 * n, rng, 4));
      const Halves d_h(NormalFloats(n, rng));
      std::vector<float> exact(gate_up.f32.size(), NAN);
      table->swiglu_backward_f32(gate_up.f32.data(), d_h.f32.data(), n, exact.data());
      std::vector<Bf16> d(exact.size() + 1, Bf16{77}), want(exact.size());
      table->to_bf16(exact.data(), 2 * n, want.data());
      table->swiglu_backward_bf16(gate_up.bf16.data(), d_h.bf16.data(), n, d.data());
      EXPECT_EQ(d.back().bits, 77);
      d.pop_back();
      ExpectSameBits(d, want);
      table->swiglu_backward_bf16(gate_up.bf16.data(), d_h.bf16.data(), n, gate_up.bf16.data());
      ExpectSameBits(gate_up.bf16, want);
    }
  }
}

TEST(Swiglu, IsFiniteForLargeGates) {
  for (const KernelTable* table : SupportedKernelTables()) {
    std::vector<float> gate_up(32, 1.0f), h(16, NAN), d(32, NAN);
    const std::vector<float> d_h(16, 1.0f);
    gate_up[0] = 1000, gate_up[1] = -1000, gate_up[2] = 3e38f, gate_up[3] = -3e38f;
    table->swiglu(gate_up.data(), 16, h.data());
    EXPECT_EQ(h[0], 1000);
    EXPECT_EQ(h[1], 0);
    EXPECT_EQ(h[2], 3e38f);
    EXPECT_EQ(h[3], 0);
    table->swiglu_backward_f32(gate_up.data(), d_h.data(), 16, d.data());
    for (const float x : d) EXPECT_TRUE(std::isfinite(x)) << x;
  }
}

TEST(Rope, TurnsAndTurnsBack) {
  for (const KernelTable* table : SupportedKernelTables()) {
    Rng rng(3);
    for (const int64_t half : {1, 3, 8, 16, 17, 32, 40}) {
      SCOPED_TRACE(fmt::format("{} half {}", table->name, half));
      const auto x = NormalFloats(2 * half, rng);
      std::vector<float> cos, sin;
      for (int64_t i = 0; i < half; ++i) {
        const double angle = 5 * std::pow(1e4, -static_cast<double>(i) / static_cast<double>(half));
        cos.push_back(static_cast<float>(std::cos(angle))), sin.push_back(static_cast<float>(std::sin(angle)));
      }
      auto y = x;
      table->rope(cos.data(), sin.data(), 1.0f, half, y.data());
      const auto want = ReferenceRope(Doubles(x), 5, 1e4);
      Values bounds;
      for (size_t i = 0; i < x.size(); ++i) {  // cos and sin rounded, two products, a sum
        const size_t other = (i + static_cast<size_t>(half)) % x.size();
        bounds.push_back(4 * kEpsF32 * (std::fabs(x[i]) + std::fabs(x[other])));
      }
      ExpectClose(y, want, bounds);
      table->rope(cos.data(), sin.data(), -1.0f, half, y.data());
      for (double& b : bounds) b *= 3;
      ExpectClose(y, Doubles(x), bounds);
    }
  }
}

TEST(Adamw, MatchesTheTwinOverSteps) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const int64_t n : kSizes) {
      SCOPED_TRACE(fmt::format("{} n {}", table->name, n));
      Rng rng(4);
      auto value = NormalFloats(n + 1, rng), m = std::vector<float>(value.size()), v = m;
      Values value_d = Doubles(value), m_d(value.size()), v_d(value.size());
      const float kept = value.back();
      Values travelled(value.size());
      for (int64_t t = 1; t <= 5; ++t) {
        const auto grad = NormalFloats(n, rng);
        auto consumed = grad;
        const ReferenceAdamw twin{0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, t};
        table->adamw({.lr = 0.01f,
                      .beta1 = 0.9f,
                      .beta2 = 0.95f,
                      .epsilon = 1e-8f,
                      .weight_decay = 0.1f,
                      .correction1 = static_cast<float>(1 - std::pow(twin.beta1, static_cast<double>(t))),
                      .correction2 = static_cast<float>(1 - std::pow(twin.beta2, static_cast<double>(t))),
                      .grad_scale = 0.25f},
                     n, /*fetch_ahead=*/n, consumed.data(), value.data(), m.data(), v.data());
        EXPECT_EQ(consumed, std::vector<float>(grad.size()));
        for (size_t i = 0; i < grad.size(); ++i) {
          const double before = value_d[i];
          twin.Update(grad[i] * 0.25, value_d[i], m_d[i], v_d[i]);
          travelled[i] += std::fabs(value_d[i] - before);
        }
      }
      // 1 - beta is exact; per step m and v take 3 roundings, the update about 8 of its own size, the value 3 of the value's.
      for (size_t i = 0; i + 1 < value.size(); ++i) {
        EXPECT_NEAR(value[i], value_d[i], kEpsF32 * (5 * 3 * (std::fabs(value_d[i]) + travelled[i]) + 5 * 30 * 0.02)) << i;
      }
      EXPECT_EQ(value.back(), kept);
      EXPECT_EQ(m.back(), 0);
      EXPECT_EQ(v.back(), 0);
    }
  }
}

TEST(Adamw, NoGradientOnlyDecays) {
  for (const KernelTable* table : SupportedKernelTables()) {
    std::vector<float> value(20, 2.0f), m(20), v(20);
    std::vector<float> grad(20, 0.0f);
    table->adamw({.lr = 0.5f,
                  .beta1 = 0.9f,
                  .beta2 = 0.9f,
                  .epsilon = 1e-8f,
                  .weight_decay = 0.5f,
                  .correction1 = 0.1f,
                  .correction2 = 0.1f,
                  .grad_scale = 1.0f},
                 20, 0, grad.data(), value.data(), m.data(), v.data());
    for (const float x : value) EXPECT_EQ(x, 1.5f);
  }
}

TEST(Adamw, WhereARowIsCutChangesNoBit) {
  for (const KernelTable* table : SupportedKernelTables()) {
    Rng rng(5);
    constexpr int64_t kN = 131;
    const AdamwStep step{.lr = 0.01f,
                         .beta1 = 0.9f,
                         .beta2 = 0.95f,
                         .epsilon = 1e-8f,
                         .weight_decay = 0.1f,
                         .correction1 = 0.19f,
                         .correction2 = 0.1f,
                         .grad_scale = 0.3f};
    std::vector<float> whole[4], cut[4];  // grad, value, m, v
    for (auto& x : whole) x = NormalFloats(kN, rng);
    for (float& x : whole[3]) x = x * x;
    for (int i = 0; i < 4; ++i) cut[i] = whole[i];
    table->adamw(step, kN, 0, whole[0].data(), whole[1].data(), whole[2].data(), whole[3].data());
    for (int64_t begin = 0, n = 1; begin < kN; begin += n, n = std::min(n + 7, kN - begin)) {
      table->adamw(step, n, 16, cut[0].data() + begin, cut[1].data() + begin, cut[2].data() + begin, cut[3].data() + begin);
    }
    for (int i = 0; i < 4; ++i) ExpectSameBits(cut[i], whole[i]);
  }
}

}  // namespace
}  // namespace moe::test
