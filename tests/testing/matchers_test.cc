#include "testing/matchers.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "testing/random.h"
#include "testing/shapes.h"

namespace moe::test {
namespace {

using Values = std::vector<double>;

TEST(Within, AcceptsUpToTheBoundAndNoFurther) {
  EXPECT_TRUE(Within(Values{1.5, -2}, Values{1, -2}, Tolerance{.absolute = 0.5}));
  EXPECT_FALSE(Within(Values{1.5, -2}, Values{1, -2}, Tolerance{.absolute = 0.49}));
  EXPECT_TRUE(Within(Values{101}, Values{100}, Tolerance{.relative = 0.01}));
  EXPECT_FALSE(Within(Values{102}, Values{100}, Tolerance{.relative = 0.01}));
  EXPECT_FALSE(Within(Values{1, 2}, Values{1, 1}, Values{0, 0.5}));
  EXPECT_TRUE(Within(Values{1, 2}, Values{1, 1}, Values{0, 1}));
}

TEST(Within, NeverAcceptsNansWrongInfinitiesOrSizes) {
  EXPECT_FALSE(Within(Values{NAN}, Values{0}, Tolerance{.absolute = 1e300}));
  EXPECT_FALSE(Within(Values{0}, Values{NAN}, Tolerance{.absolute = 1e300}));
  EXPECT_FALSE(Within(Values{INFINITY}, Values{-INFINITY}, Tolerance{.absolute = 1e300}));
  EXPECT_TRUE(Within(Values{INFINITY}, Values{INFINITY}, Tolerance{}));
  EXPECT_FALSE(Within(Values{}, Values{0}, Tolerance{}));
}

TEST(Within, NamesTheWorstValue) {
  const auto result = Within(Values{0, 1, 5, 2}, Values{0, 0, 0, 0}, Tolerance{.absolute = 0.5});
  EXPECT_NE(std::string(result.message()).find("3 of 4 values are off. Worst: [2] got 5, expected 0 within 0.5"),
            std::string::npos)
      << result.message();
}

TEST(ExpectClose, TakesVectorsViewsAndBf16) {
  const std::vector<float> floats = {1, 2, 3, 4, 5, 6};
  ExpectClose(MatView<const float>(floats.data(), 2, 2, 3), Values{1, 2, 4, 5}, Tolerance{});
  ExpectClose(std::vector<Bf16>{ToBf16(1.5f)}, Values{1.5}, Tolerance{});
  EXPECT_NONFATAL_FAILURE(ExpectClose(std::vector<float>{1}, std::vector<float>{2}, Tolerance{}), "1 of 1 values are off");
}

TEST(ExpectSameBits, SeesTheSignOfZero) {
  ExpectSameBits(std::vector<float>{NAN, 1}, std::vector<float>{NAN, 1});
  EXPECT_NONFATAL_FAILURE(ExpectSameBits(std::vector<float>{1, 0.0f}, std::vector<float>{1, -0.0f}), "[1] of 2: got 0");
  EXPECT_NONFATAL_FAILURE(ExpectSameBits(std::vector<float>{}, std::vector<float>{0}), "got 0 values, expected 1");
}

TEST(DotTolerance, HoldsForRandomDots) {
  Rng rng(1);
  for (const int64_t n : kSizes) {
    const auto a = NormalFloats(n, rng), b = NormalFloats(n, rng);
    float got = 0;
    double want = 0, sum_abs = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      got += a[i] * b[i];
      want += double{a[i]} * b[i], sum_abs += std::fabs(double{a[i]} * b[i]);
    }
    ExpectClose(Values{got}, Values{want}, DotTolerance(n, sum_abs));
  }
}

TEST(ThrowingChecks, ThrowsWhileItLives) {
  const ThrowingChecks guard;
  try {
    MOE_CHECK(1 > 2, "got {}", 7);
    FAIL();
  } catch (const CheckError& error) {
    EXPECT_NE(error.message.find("MOE_CHECK(1 > 2) failed. got 7"), std::string::npos) << error.message;
  }
}

}  // namespace
}  // namespace moe::test
