#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "moe/kernels/cpu/kernel_table.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/shapes.h"

namespace moe::test {
namespace {

constexpr float kInf = INFINITY;

// In units of the last place of the nearest float to `want`.
double UlpError(float got, double want) {
  const float nearest = static_cast<float>(want);
  if (!std::isfinite(nearest)) return got == nearest ? 0 : 1e9;
  const double ulp = std::nextafter(nearest, kInf) == kInf ? static_cast<double>(nearest) - std::nextafter(nearest, 0.0f)
                                                           : static_cast<double>(std::nextafter(nearest, kInf)) - nearest;
  return std::isfinite(got) ? std::fabs(got - want) / ulp : 1e9;
}

std::vector<float> Exp(const KernelTable& table, const std::vector<float>& x, float shift = 0) {
  std::vector<float> out(x.size());
  table.exp_sum(x.data(), shift, static_cast<int64_t>(x.size()), out.data());
  return out;
}

TEST(Exp, IsWithinTwoUlpOverItsRange) {
  constexpr float kLowest = -87.33654f, kHighest = 88.72283f;
  std::vector<float> x = {0.0f,   -0.0f,  kLowest, kHighest, std::nextafter(kLowest, 0.0f), std::nextafter(kHighest, 0.0f),
                          1e-30f, -1e-30f};
  for (int i = 0; i <= 100000; ++i) x.push_back(kLowest + (kHighest - kLowest) * static_cast<float>(i) / 100000);
  Rng rng(1);
  for (int i = 0; i < 50000; ++i) {  // every magnitude
    const auto v = static_cast<float>(std::exp2(rng.Uniform() * 36 - 30));
    if (v < 87) x.push_back(v), x.push_back(-v);
  }
  for (const KernelTable* table : SupportedKernelTables()) {
    SCOPED_TRACE(table->name);
    const auto got = Exp(*table, x);
    double worst = 0;
    float at = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double error = UlpError(got[i], std::exp(static_cast<double>(x[i])));
      if (error > worst) worst = error, at = x[i];
    }
    EXPECT_LE(worst, 2) << "at " << at;
    EXPECT_EQ(got[0], 1.0f);
    EXPECT_EQ(got[1], 1.0f);
  }
}

TEST(Exp, IsExactlyZeroBelowInfinityAboveAndNanForNan) {
  const std::vector<float> x = {-kInf,
                                -1e30f,
                                -1000.0f,
                                -104.0f,
                                -88.0f,
                                std::nextafter(-87.33654f, -kInf),
                                kInf,
                                1e30f,
                                1000.0f,
                                89.0f,
                                std::nextafter(88.72284f, kInf),
                                NAN,
                                -NAN,
                                std::bit_cast<float>(0xffffffffu),
                                std::bit_cast<float>(0x7fffffffu),
                                std::bit_cast<float>(0x7fc00001u)};
  for (const KernelTable* table : SupportedKernelTables()) {
    SCOPED_TRACE(table->name);
    for (const bool padded : {false, true}) {  // in the vectors and in the rest after them
      auto values = x;
      if (padded) values.insert(values.begin(), 64 - x.size() % 16, 0.0f);
      const auto got = Exp(*table, values);
      for (size_t i = 0; i < x.size(); ++i) {
        SCOPED_TRACE(x[i]);
        const float y = got[i + got.size() - x.size()];
        if (std::isnan(x[i])) {
          EXPECT_TRUE(std::isnan(y)) << y;
        } else {
          EXPECT_EQ(std::bit_cast<uint32_t>(y), std::bit_cast<uint32_t>(x[i] > 0 ? kInf : 0.0f)) << y;
        }
      }
    }
  }
}

TEST(ExpSum, ShiftsSumsAndMayRunInPlace) {
  Rng rng(2);
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const int64_t n : kSizes) {
      SCOPED_TRACE(fmt::format("{} n {}", table->name, n));
      const auto x = NormalFloats(n, rng, 3);
      std::vector<float> out(x.size() + 1, -7.0f), in_place = x;
      const float sum = table->exp_sum(x.data(), 1.5f, n, out.data());
      double want = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double e = std::exp(static_cast<double>(x[i] - 1.5f));
        EXPECT_LE(UlpError(out[i], e), 2);
        want += e;
      }
      EXPECT_EQ(out.back(), -7.0f);
      ExpectClose(std::vector<float>{sum}, std::vector<double>{want}, DotTolerance(n + 4, want));
      EXPECT_EQ(table->exp_sum(in_place.data(), 1.5f, n, in_place.data()), sum);
      ExpectSameBits(in_place, std::span(out).first(x.size()));
    }
  }
}

}  // namespace
}  // namespace moe::test
