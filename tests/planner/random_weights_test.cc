#include "moe/planner/random_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "moe/base/bf16.h"
#include "testing/matchers.h"
#include "testing/test_context.h"

namespace moe {
namespace {

std::vector<std::byte> Weights(size_t size, uint64_t seed, int threads) {
  test::TestContext machine(threads);
  std::vector<std::byte> bytes(size);
  FillRandomWeights(bytes, seed, machine.ctx);
  return bytes;
}

TEST(FillRandomWeights, AreSmallInBothFormats) {
  const auto bytes = Weights(1 << 20, 3, 2);
  double sum = 0, sum_squares = 0;
  for (size_t i = 0; i < bytes.size(); i += 4) {
    float f;
    Bf16 b[2];
    std::memcpy(&f, &bytes[i], 4);
    std::memcpy(b, &bytes[i], 4);
    for (const float x : {f, ToFloat(b[0]), ToFloat(b[1])}) {
      ASSERT_GE(std::abs(x), 0x1.0p-7f);
      ASSERT_LT(std::abs(x), 0x1.0p-5f);
    }
    sum += f, sum_squares += static_cast<double>(f) * f;
  }
  const double n = static_cast<double>(bytes.size() / 4);
  EXPECT_NEAR(std::sqrt(sum_squares / n), 0.0189, 0.0002);
  EXPECT_NEAR(sum / n, 0, 5 * 0.0189 / std::sqrt(n));
}

TEST(FillRandomWeights, DependOnTheSeedAndNotOnTheThreads) {
  for (const size_t size : {size_t{0}, size_t{8}, size_t{1000}, size_t{8} * (1 << 15) + 8, size_t{1} << 20}) {
    EXPECT_TRUE(Weights(size, 1, 1) == Weights(size, 1, 3)) << size;
  }
  EXPECT_FALSE(Weights(64, 1, 1) == Weights(64, 2, 1));
}

TEST(FillRandomValues, HaveTheAskedMoments) {
  test::TestContext machine(2);
  std::vector<float> values(1 << 18), again(values.size());
  FillRandomValues(values, 0.5f, 9, machine.ctx);
  double sum = 0, sum_squares = 0;
  for (const float x : values) sum += x, sum_squares += static_cast<double>(x) * x;
  const double n = static_cast<double>(values.size());
  EXPECT_NEAR(sum / n, 0, 5 * 0.5 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(sum_squares / n), 0.5, 0.005);
  test::TestContext alone(1);
  FillRandomValues(again, 0.5f, 9, alone.ctx);
  test::ExpectSameBits(values, again);
}

}  // namespace
}  // namespace moe
