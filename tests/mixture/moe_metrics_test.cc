#include "moe/mixture/moe_metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace moe {
namespace {

using Counts = std::vector<int64_t>;

TEST(MoeMetrics, PerfectBalance) {
  const Counts n = {5, 5, 5, 5};
  EXPECT_EQ(Assignments(n), 20);
  EXPECT_EQ(MaxViolation(n), 0);
  EXPECT_EQ(CoefficientOfVariation(n), 0);
  EXPECT_DOUBLE_EQ(LoadEntropy(n), std::log(4.0));
  EXPECT_EQ(DeadExperts(n), 0);
}

TEST(MoeMetrics, EverythingToOneExpert) {
  const Counts n = {0, 12, 0};
  EXPECT_DOUBLE_EQ(MaxViolation(n), 2);                         // 12 / 4 - 1
  EXPECT_DOUBLE_EQ(CoefficientOfVariation(n), std::sqrt(2.0));  // variance (16 + 64 + 16) / 3 = 32, mean 4
  EXPECT_EQ(LoadEntropy(n), 0);
  EXPECT_EQ(DeadExperts(n), 2);
}

TEST(MoeMetrics, UnevenLoad) {
  const Counts n = {6, 2, 0, 4};  // mean 3
  EXPECT_DOUBLE_EQ(MaxViolation(n), 1);
  EXPECT_DOUBLE_EQ(CoefficientOfVariation(n), std::sqrt(5.0) / 3);  // (9 + 1 + 9 + 1) / 4
  EXPECT_DOUBLE_EQ(LoadEntropy(n), 0.5 * std::log(2.0) + std::log(6.0) / 6 + std::log(3.0) / 3);
  EXPECT_EQ(DeadExperts(n), 1);
  EXPECT_DOUBLE_EQ(DropRate(3, n), 0.25);
}

TEST(MoeMetrics, NoTokens) {
  const Counts n = {0, 0};
  EXPECT_EQ(MaxViolation(n), 0);
  EXPECT_EQ(CoefficientOfVariation(n), 0);
  EXPECT_EQ(LoadEntropy(n), 0);
  EXPECT_EQ(DropRate(0, n), 0);
  EXPECT_EQ(DeadExperts(n), 2);
}

TEST(MoeMetrics, CountsBeyond32Bits) {
  const Counts n = {int64_t{3} << 40, int64_t{1} << 40};
  EXPECT_DOUBLE_EQ(MaxViolation(n), 0.5);
  EXPECT_DOUBLE_EQ(CoefficientOfVariation(n), 0.5);
  EXPECT_DOUBLE_EQ(DropRate(int64_t{1} << 40, n), 0.25);
}

}  // namespace
}  // namespace moe
