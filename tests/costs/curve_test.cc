#include "moe/costs/curve.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "moe/base/rng.h"

namespace moe {
namespace {

const Curve kCurve{{{1, 10}, {4, 20}, {16, 5}}};

TEST(Curve, AtIsAStraightLineInLogXBetweenPointsAndFlatOutside) {
  EXPECT_EQ(kCurve.At(1), 10);
  EXPECT_EQ(kCurve.At(4), 20);
  EXPECT_EQ(kCurve.At(16), 5);
  EXPECT_NEAR(kCurve.At(2), 15, 1e-12);  // half way from 1 to 4
  EXPECT_NEAR(kCurve.At(8), 12.5, 1e-12);
  EXPECT_EQ(kCurve.At(0.001), 10);
  EXPECT_EQ(kCurve.At(1e9), 5);
  EXPECT_EQ(kCurve.At(0), 10);
}

TEST(Curve, TimeAtIsAStraightLineInXThatGoesOnInProportion) {
  EXPECT_EQ(kCurve.TimeAt(1), 10);
  EXPECT_EQ(kCurve.TimeAt(4), 20);
  EXPECT_EQ(kCurve.TimeAt(16), 5);
  EXPECT_NEAR(kCurve.TimeAt(2), 10 + 10.0 / 3, 1e-12);
  EXPECT_NEAR(kCurve.TimeAt(10), 12.5, 1e-12);
  EXPECT_EQ(kCurve.TimeAt(0.5), 10);  // below the first point the first's: one row at least is computed
  EXPECT_EQ(kCurve.TimeAt(32), 10);
  EXPECT_EQ(kCurve.TimeAt(160), 50);
}

TEST(Curve, OfOnePointIsFlatOrProportional) {
  const Curve one{{{8, 3}}};
  for (const double x : {1.0, 8.0, 100.0}) EXPECT_EQ(one.At(x), 3) << x;
  EXPECT_EQ(one.TimeAt(2), 3);
  EXPECT_EQ(one.TimeAt(8), 3);
  EXPECT_EQ(one.TimeAt(24), 9);
}

// The least-squares fit that never falls, by the min-max formula: y_i = max over a <= i of min over b >= i of mean(a..b).
// (Robertson, Wright and Dykstra 1988, theorem 1.4.4)
std::vector<double> IsotonicByDefinition(const std::vector<CurvePoint>& points) {
  std::vector<double> fit;
  for (size_t i = 0; i < points.size(); ++i) {
    double best = -1e300;
    for (size_t a = 0; a <= i; ++a) {
      double least = 1e300, sum = 0;
      for (size_t b = a; b < points.size(); ++b) {
        sum += points[b].y;
        if (b >= i) least = std::min(least, sum / static_cast<double>(b - a + 1));
      }
      best = std::max(best, least);
    }
    fit.push_back(best);
  }
  return fit;
}

TEST(Curve, NeverFallingIsTheIsotonicRegression) {
  for (uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    Curve curve;
    const int64_t n = rng.Below(12);
    // A few values only, so that some are equal.
    for (int64_t i = 0; i < n; ++i) curve.points.push_back({static_cast<double>(i + 1), static_cast<double>(1 + rng.Below(6))});
    const std::vector<double> expected = IsotonicByDefinition(curve.points);
    const Curve rising = NeverFalling(curve);
    ASSERT_EQ(rising.points.size(), curve.points.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(rising.points[i].x, curve.points[i].x);
      EXPECT_NEAR(rising.points[i].y, expected[i], 12 * 6 * 0x1p-52) << i;  // n sums of values up to 6
      EXPECT_GE(rising.points[i].y, rising.points[i > 0 ? i - 1 : 0].y);
    }
    // Turned round, the same curve never rises.
    Curve turned = curve;
    for (CurvePoint& p : turned.points) p.y = 10 - p.y;
    const Curve falling = NeverRising(turned);
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(falling.points[i].y, 10 - expected[i], 12 * 10 * 0x1p-52) << i;
  }
}

TEST(Curve, WhatIsInOrderStaysAsItIs) {
  const Curve rising{{{1, 1}, {2, 1}, {3, 4}}}, falling{{{1, 4}, {2, 1}, {3, 1}}};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(NeverFalling(rising).points[i].y, rising.points[i].y);
    EXPECT_EQ(NeverRising(falling).points[i].y, falling.points[i].y);
  }
}

TEST(Curve, MiddleRatesLeaveOutSinglePointsOfManyRows) {
  // A rate that climbs until 4 rows and then stays at one row a second; 2 and 16 rows took twice as long as they should.
  const Curve times{{{1, 4}, {2, 8}, {4, 4}, {8, 8}, {16, 32}, {32, 32}, {64, 64}}};
  const std::vector<double> expected = {4, 8, 4, 8, 16, 32, 64};
  const Curve middle = MiddleRates(times, 4);
  ASSERT_EQ(middle.points.size(), times.points.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(middle.points[i].x, times.points[i].x);
    EXPECT_EQ(middle.points[i].y, expected[i]) << i;
  }
  // Rates that only climb, or only fall, stay as they are; so do the ends.
  const Curve climbing{{{64, 64}, {128, 120}, {256, 230}}}, ends{{{64, 300}, {128, 128}}};
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(MiddleRates(climbing, 1).points[i].y, climbing.points[i].y);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(MiddleRates(ends, 1).points[i].y, ends.points[i].y);
  EXPECT_TRUE(MiddleRates({}, 1).empty());
}

}  // namespace
}  // namespace moe
