#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/kernels/cpu/kernel_table.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/shapes.h"

namespace moe::test {
namespace {

std::vector<int64_t> Lengths() {
  std::vector<int64_t> lengths(kSizes.begin(), kSizes.end());
  lengths.insert(lengths.end(), {255, 256, 1000, 4095, 4096, 4097, 10000});
  return lengths;
}

TEST(Reduce, DotMaxAndSumSquaresMatchTheTwin) {
  Rng rng(1);
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const int64_t n : Lengths()) {
      SCOPED_TRACE(fmt::format("{} n {}", table->name, n));
      const auto x = NormalFloats(n, rng), y = NormalFloats(n, rng);
      double dot = 0, abs = 0, squares = 0;
      float max = -INFINITY;
      for (size_t i = 0; i < x.size(); ++i) {
        dot += static_cast<double>(x[i]) * y[i], abs += std::fabs(static_cast<double>(x[i]) * y[i]);
        squares += static_cast<double>(x[i]) * x[i];
        max = std::max(max, x[i]);
      }
      ExpectClose(std::vector<float>{table->dot(x.data(), y.data(), n)}, std::vector<double>{dot}, DotTolerance(n, abs));
      ExpectClose(std::vector<double>{table->sum_squares(x.data(), n)}, std::vector<double>{squares},
                  DotTolerance(std::min<int64_t>(n, 4096), squares));
      EXPECT_EQ(table->max(x.data(), n), max);
    }
  }
}

TEST(Reduce, MaxFindsItsValueAtEveryPlace) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const int64_t n : {1, 15, 16, 17, 40}) {
      for (int64_t i = 0; i < n; ++i) {
        std::vector<float> x(static_cast<size_t>(n), -5.0f);
        x[static_cast<size_t>(i)] = -1.0f;
        EXPECT_EQ(table->max(x.data(), n), -1.0f) << table->name << " n " << n << " at " << i;
      }
    }
    const std::vector<float> none(20, -INFINITY);
    EXPECT_EQ(table->max(none.data(), 20), -INFINITY);
    EXPECT_EQ(table->max(nullptr, 0), -INFINITY);
  }
}

TEST(Elementwise, ScaleAxpyAndAddTouchNothingElse) {
  Rng rng(3);
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const int64_t n : Lengths()) {
      SCOPED_TRACE(fmt::format("{} n {}", table->name, n));
      const auto x = NormalFloats(n, rng);
      const auto y = NormalFloats(n + 1, rng);
      const auto last = static_cast<size_t>(n);
      auto scaled = y, sum = y, axpy = y;
      table->scale(-1.5f, n, scaled.data());
      table->add(x.data(), n, sum.data());
      table->axpy(0.3f, x.data(), n, axpy.data());
      for (size_t i = 0; i < last; ++i) {
        EXPECT_EQ(scaled[i], -1.5f * y[i]);
        EXPECT_EQ(sum[i], y[i] + x[i]);
        const double want = y[i] + static_cast<double>(0.3f) * x[i];  // one rounding or two
        EXPECT_NEAR(axpy[i], want, kEpsF32 * (std::fabs(want) + std::fabs(0.3 * x[i])) * 1.01);
      }
      EXPECT_EQ(scaled[last], y[last]);
      EXPECT_EQ(sum[last], y[last]);
      EXPECT_EQ(axpy[last], y[last]);
    }
  }
}

}  // namespace
}  // namespace moe::test
