// Activations and their slopes against the formulas in double.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "moe/kernels/cpu/kernel_table.h"
#include "testing/matchers.h"
#include "testing/random.h"

namespace moe::test {
namespace {

constexpr double kU = kEpsF32;

// Value and slope at x, and how far float32 may be off: roundings counted, each kU, times the condition of what they go into.
struct At {
  double value, slope, value_error, slope_error;
};
At Exact(Activation f, double x) {
  const double a = std::abs(x);
  if (f == Activation::kRelu2) {
    const double r = std::max(x, 0.0);
    return {r * r, 2 * r, 2 * kU * r * r, 2 * kU * r};
  }
  if (f == Activation::kGelu) {  // erf is within 7; of Phi that is half, and the argument and two sums are rounded
    const double phi = 0.5 * std::erfc(-x / std::sqrt(2.0)), density = std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
    const double phi_error = 5 * kU, density_error = (x * x + 8) * kU * density;
    return {x * phi, phi + x * density, a * (phi_error + 2 * kU * phi),
            phi_error + a * density_error + 4 * kU * (phi + a * density)};
  }
  // A sigmoid of z: exp to 2 ulp (4 units), a sum, a quotient; z is rounded up to 4 times where it is a polynomial.
  const bool silu = f == Activation::kSilu;
  const double k = 2 * std::sqrt(2 / M_PI), c = 0.044715;
  const double z = silu ? x : k * (x + c * x * x * x), slope_z = silu ? 1 : k * (1 + 3 * c * x * x);
  const double s = silu ? 1 / (1 + std::exp(-x)) : 0.5 * (1 + std::tanh(z / 2)), rest = 1 / (1 + std::exp(z));
  const double relative = ((silu ? 0 : 5) * std::abs(z) * rest + 8) * kU, inner = a * slope_z * rest;
  const double own = silu ? 0 : 0x1p-52;  // 1 + tanh loses digits here, in double
  return {x * s, s * (1 + x * slope_z * rest), a * ((relative + kU) * s + own),
          s * ((relative + 8 * kU) * (1 + inner) + a * slope_z * (s * relative + 2 * kU)) + own * (1 + a * slope_z)};
}

struct Case {
  Activation activation;
  const char* name;
};
constexpr Case kCases[] = {{Activation::kSilu, "silu"},
                           {Activation::kGelu, "gelu"},
                           {Activation::kGeluTanh, "gelu_tanh"},
                           {Activation::kRelu2, "relu2"}};

const ActivationKernels& KernelsOf(const KernelTable* table, Activation f) {
  return table->activation[static_cast<size_t>(f)];
}

TEST(Activation, ValuesAndSlopesMatchTheFormulas) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const Case& c : kCases) {
      for (const int64_t n : {0, 16, 32, 80, 4000}) {
        SCOPED_TRACE(fmt::format("{} {} n {}", table->name, c.name, n));
        Rng rng(3);
        std::vector<float> x = NormalFloats(n, rng, 3);
        if (n == 4000) {
          for (int64_t i = 0; i < n; ++i) x[static_cast<size_t>(i)] = static_cast<float>(i - 2000) * 0.01f;  // -20 .. 20
        }
        const std::vector<float> d_h = NormalFloats(n, rng);
        std::vector<float> h(x.size(), NAN), d(x.size(), NAN);
        KernelsOf(table, c.activation).forward_f32(false, x.data(), n, h.data());
        KernelsOf(table, c.activation).backward_f32(false, x.data(), d_h.data(), n, d.data());
        std::vector<double> value, slope, value_bound, slope_bound;
        for (size_t i = 0; i < x.size(); ++i) {
          const At at = Exact(c.activation, x[i]);
          const double g = d_h[i];
          value.push_back(at.value), value_bound.push_back(at.value_error);
          slope.push_back(g * at.slope), slope_bound.push_back(std::abs(g) * (at.slope_error + kU * std::abs(at.slope)));
        }
        ExpectClose(h, value, value_bound);
        ExpectClose(d, slope, slope_bound);
        KernelsOf(table, c.activation).backward_f32(false, x.data(), d_h.data(), n, x.data());
        ExpectSameBits(x, d);
      }
    }
  }
}

// The bound above is of the formula; the slope is also what the values do.
TEST(Activation, SlopesAreDifferencesOfValues) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    for (double x = -8.05; x < 8; x += 0.1) {
      constexpr double h = 1e-5;
      const double difference = (Exact(c.activation, x + h).value - Exact(c.activation, x - h).value) / (2 * h);
      EXPECT_NEAR(Exact(c.activation, x).slope, difference, 1e-8) << x;
    }
  }
}

TEST(Activation, GatedIsTheGatesValueTimesUp) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const Case& c : kCases) {
      for (const int64_t n : {0, 16, 48}) {
        SCOPED_TRACE(fmt::format("{} {} n {}", table->name, c.name, n));
        Rng rng(4);
        std::vector<float> x = NormalFloats(2 * n, rng, 2);
        const std::vector<float> d_h = NormalFloats(n, rng);
        std::vector<float> h(d_h.size(), NAN), d(x.size(), NAN);
        const ActivationKernels& kernels = KernelsOf(table, c.activation);
        kernels.forward_f32(true, x.data(), n, h.data());
        kernels.backward_f32(true, x.data(), d_h.data(), n, d.data());
        std::vector<double> value, value_bound, slope(x.size()), slope_bound(x.size());
        for (size_t i = 0; i < h.size(); ++i) {
          const size_t gate = i / 16 * 32 + i % 16;
          const double up = x[gate + 16], g = d_h[i];
          const At at = Exact(c.activation, x[gate]);
          value.push_back(at.value * up), value_bound.push_back((at.value_error + kU * std::abs(at.value)) * std::abs(up));
          slope[gate] = g * up * at.slope, slope[gate + 16] = g * at.value;
          slope_bound[gate] = std::abs(g * up) * (at.slope_error + 2 * kU * std::abs(at.slope));
          slope_bound[gate + 16] = std::abs(g) * (at.value_error + kU * std::abs(at.value));
        }
        ExpectClose(h, value, value_bound);
        ExpectClose(d, slope, slope_bound);
        kernels.backward_f32(true, x.data(), d_h.data(), n, x.data());
        ExpectSameBits(x, d);
      }
    }
  }
}

TEST(Activation, InBf16ItIsThatOfFloatsRoundedOnce) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const Case& c : kCases) {
      for (const bool gated : {false, true}) {
        SCOPED_TRACE(fmt::format("{} {} gated {}", table->name, c.name, gated));
        constexpr int64_t n = 48;
        Rng rng(5);
        const Halves x(NormalFloats(gated ? 2 * n : n, rng, 2)), d_h(NormalFloats(n, rng));
        const ActivationKernels& kernels = KernelsOf(table, c.activation);
        std::vector<float> h(n), d(x.f32.size());
        kernels.forward_f32(gated, x.f32.data(), n, h.data());
        kernels.backward_f32(gated, x.f32.data(), d_h.f32.data(), n, d.data());
        std::vector<Bf16> got_h(n), got_d(d.size()), want_h(n), want_d(d.size());
        table->to_bf16(h.data(), n, want_h.data());
        table->to_bf16(d.data(), static_cast<int64_t>(d.size()), want_d.data());
        kernels.forward_bf16(gated, x.bf16.data(), n, got_h.data());
        kernels.backward_bf16(gated, x.bf16.data(), d_h.bf16.data(), n, got_d.data());
        ExpectSameBits(got_h, want_h);
        ExpectSameBits(got_d, want_d);
      }
    }
  }
}

TEST(Activation, LargeValuesStayFiniteAndNaNStays) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(fmt::format("{} {}", table->name, c.name));
      std::vector<float> x(16, 0.0f), h(16, NAN), d(16, NAN);
      const std::vector<float> ones(16, 1.0f);
      x[0] = 1e15f, x[1] = -1e15f, x[2] = -3e38f, x[3] = NAN, x[4] = 100, x[5] = -100, x[6] = 1e18f;
      const ActivationKernels& kernels = KernelsOf(table, c.activation);
      kernels.forward_f32(false, x.data(), 16, h.data());
      kernels.backward_f32(false, x.data(), ones.data(), 16, d.data());
      for (size_t i = 0; i < 16; ++i) {
        EXPECT_EQ(std::isnan(h[i]), i == 3) << i;
        EXPECT_EQ(std::isnan(d[i]), i == 3) << i;
        EXPECT_TRUE(i == 3 || (std::isfinite(h[i]) && std::isfinite(d[i]))) << i << " " << h[i] << " " << d[i];
      }
      const bool square = c.activation == Activation::kRelu2;
      EXPECT_EQ(h[0], square ? 1e15f * 1e15f : 1e15f);
      EXPECT_EQ(d[0], square ? 2e15f : 1);
      for (const size_t negative : {size_t{1}, size_t{2}, size_t{5}}) {
        EXPECT_NEAR(h[negative], 0, 1e-35);
        EXPECT_NEAR(d[negative], 0, 1e-35);
      }
      EXPECT_EQ(h[7], 0);
    }
  }
}

}  // namespace
}  // namespace moe::test
