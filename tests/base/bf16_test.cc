#include "moe/base/bf16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "moe/base/rng.h"

namespace moe {
namespace {

float FromBits(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

// The rounding from its definition: the nearest multiple of the spacing at |x|, ties to the even multiple. Exact in double.
float RoundedTwin(float x) {
  if (x == 0 || std::isinf(x)) return x;
  const int exponent = std::max(std::ilogb(x), -126);  // the spacing of subnormals is that of the smallest normals
  const double spacing = std::ldexp(1.0, exponent - 7);
  const double rounded = std::nearbyint(static_cast<double>(x) / spacing) * spacing;
  return std::fabs(rounded) >= 0x1.0p128 ? std::copysign(INFINITY, x) : static_cast<float>(rounded);
}

TEST(Bf16, EveryPatternRoundTrips) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Bf16 x{static_cast<uint16_t>(bits)};
    const Bf16 back = ToBf16(ToFloat(x));
    if (std::isnan(ToFloat(x))) {
      EXPECT_EQ(back.bits, bits | 0x40) << bits;  // quiet, the rest of the payload kept
    } else {
      EXPECT_EQ(back.bits, bits);
    }
  }
}

TEST(Bf16, RoundsToNearestEven) {
  const auto check = [](float x) {
    ASSERT_EQ(std::bit_cast<uint32_t>(ToFloat(ToBf16(x))), std::bit_cast<uint32_t>(RoundedTwin(x))) << x;
  };
  // every upper half with the lower halves around its ties
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const uint32_t lower : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const float x = FromBits(upper << 16 | lower);
      if (!std::isnan(x)) check(x);
    }
  }
  Rng rng(1);
  for (int i = 0; i < 100000; ++i) {
    const float x = FromBits(static_cast<uint32_t>(rng.Next()));
    if (!std::isnan(x)) check(x);
  }
}

TEST(Bf16, NanStaysNanAndInfinityInfinity) {
  for (const uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7fc00000u, 0x7f80ffffu}) {
    EXPECT_TRUE(std::isnan(ToFloat(ToBf16(FromBits(bits))))) << bits;
  }
  EXPECT_EQ(ToFloat(ToBf16(INFINITY)), INFINITY);
  EXPECT_EQ(ToFloat(ToBf16(-INFINITY)), -INFINITY);
  EXPECT_EQ(ToFloat(ToBf16(std::numeric_limits<float>::max())), INFINITY);
  EXPECT_EQ(ToBf16(-0.0f).bits, 0x8000);
}

}  // namespace
}  // namespace moe
