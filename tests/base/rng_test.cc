#include "moe/base/rng.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <set>

namespace moe {
namespace {

TEST(Rng, IsAPureFunctionOfSeedAndStream) {
  Rng a(42, 7), b(42, 7);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(a.Next(), b.Next());
}

// Checkpoints and published results rest on these: a change here changes every run.
TEST(Rng, GoldenValues) {
  EXPECT_EQ(MixBits(0), 0xe220a8397b1dcdafu);  // the first output of SplitMix64 seeded with 0
  Rng rng(1, 2);
  const uint64_t first = rng.Next();
  EXPECT_EQ(first, MixBits(MixBits(1 ^ MixBits(2)) + 0x9e3779b97f4a7c15u));
}

TEST(Rng, SeedsAndStreamsDiffer) {
  std::set<uint64_t> values;
  for (uint64_t seed = 0; seed < 30; ++seed) {
    for (uint64_t stream = 0; stream < 30; ++stream) {
      Rng rng(seed, stream);
      for (int i = 0; i < 4; ++i) values.insert(rng.Next());
    }
  }
  EXPECT_EQ(values.size(), 30u * 30u * 4u);
}

// Bounds are six standard deviations of the statistic: right about always, wrong generators fail.
TEST(Rng, UniformHasItsMoments) {
  Rng rng(3);
  const int n = 100000;
  double sum = 0, sum_squares = 0;
  for (int i = 0; i < n; ++i) {
    const double u = rng.Uniform();
    ASSERT_TRUE(u >= 0 && u < 1) << u;
    sum += u, sum_squares += u * u;
  }
  EXPECT_NEAR(sum / n, 0.5, 6 * std::sqrt(1.0 / 12 / n));
  EXPECT_NEAR(sum_squares / n, 1.0 / 3, 6 * std::sqrt(4.0 / 45 / n));
}

TEST(Rng, NormalHasItsMoments) {
  Rng rng(4);
  const int n = 100000;
  double sum = 0, sum_squares = 0, sum_fourths = 0;
  for (int i = 0; i < n; ++i) {
    const double x = rng.Normal();
    ASSERT_TRUE(std::isfinite(x));
    sum += x, sum_squares += x * x, sum_fourths += x * x * x * x;
  }
  EXPECT_NEAR(sum / n, 0, 6 * std::sqrt(1.0 / n));
  EXPECT_NEAR(sum_squares / n, 1, 6 * std::sqrt(2.0 / n));
  EXPECT_NEAR(sum_fourths / n, 3, 6 * std::sqrt(96.0 / n));
}

TEST(Rng, BelowIsUniform) {
  for (const int64_t n : {1, 2, 7, 64}) {
    Rng rng(static_cast<uint64_t>(n));
    std::array<int, 64> counts{};
    const int draws = 20000;
    for (int i = 0; i < draws; ++i) {
      const int64_t x = rng.Below(n);
      ASSERT_TRUE(x >= 0 && x < n);
      ++counts[static_cast<size_t>(x)];
    }
    double chi_squared = 0;
    const double expected = static_cast<double>(draws) / static_cast<double>(n);
    for (int64_t x = 0; x < n; ++x) chi_squared += std::pow(counts[static_cast<size_t>(x)] - expected, 2) / expected;
    const double freedom = static_cast<double>(n - 1);
    EXPECT_LE(chi_squared, freedom + 6 * std::sqrt(2 * freedom) + 1e-9) << n;
  }
  Rng rng(5);
  int64_t largest = 0;
  for (int i = 0; i < 1000; ++i) largest = std::max(largest, rng.Below(int64_t{1} << 62));
  EXPECT_GT(largest, int64_t{1} << 61);
}

}  // namespace
}  // namespace moe
