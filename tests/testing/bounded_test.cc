#include "testing/reference/bounded.h"

#include <gtest/gtest.h>

#include "testing/random.h"

namespace moe::test {
namespace {

// Long enough for errors to add up, with cancellation.
template <class Real>
std::vector<Real> Formula(const std::vector<Real>& x) {
  using std::exp, std::log;
  std::vector<Real> out;
  Real sum(0);
  for (size_t i = 0; i + 1 < x.size(); ++i) {
    sum += x[i] * x[i + 1];
    const Real e = exp(x[i]), sigmoid = Real(1) / (Real(1) + exp(-x[i + 1]));
    out.push_back(e * sigmoid - sum);
    out.push_back(log(Real(1) + e) / (Real(2) + e));
  }
  out.push_back(sum);
  return out;
}

TEST(Bounded, HoldsWhatFloatComputes) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const auto x = NormalFloats(2 + rng.Below(40), rng, 2);
    const auto want = Formula(std::vector<Bounded>(x.begin(), x.end()));
    ExpectWithinBounds(Formula(x), want);
    ExpectClose(ValuesOf(want), Formula(std::vector<double>(x.begin(), x.end())),
                Tolerance{.absolute = 1e-12, .relative = 1e-12});
  }
}

// A bound that is never wrong because it is huge would prove nothing: here within a hundred times what happens.
TEST(Bounded, IsNotMuchLargerThanTheError) {
  double largest_ratio = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Rng rng(seed);
    const auto x = NormalFloats(8, rng);
    const auto got = Formula(x);
    const auto want = Formula(std::vector<Bounded>(x.begin(), x.end()));
    for (size_t i = 0; i < got.size(); ++i) {
      largest_ratio = std::max(largest_ratio, std::abs(static_cast<double>(got[i]) - want[i].value) / want[i].error);
    }
  }
  EXPECT_GT(largest_ratio, 0.01);
  EXPECT_LE(largest_ratio, 1);
}

TEST(Bounded, DotHoldsSumsInAnyOrder) {
  Rng rng(1);
  for (const int64_t n : {0, 1, 2, 17, 100, 1000}) {
    const auto a = NormalFloats(n, rng), b = NormalFloats(n, rng);
    const std::vector<Bounded> x(a.begin(), a.end()), y(b.begin(), b.end());
    const Bounded want = DotOf(n, x.data(), 1, y.data(), 1);
    float forward = 0, backward = 0;
    for (size_t i = 0; i < a.size(); ++i) forward += a[i] * b[i], backward += a[a.size() - 1 - i] * b[a.size() - 1 - i];
    EXPECT_LE(std::abs(forward - want.value), want.error);
    EXPECT_LE(std::abs(backward - want.value), want.error);
  }
}

TEST(Bounded, RoundingToBf16IsExactForExactValuesOnly) {
  const float between = 1 + 0x1.0p-8f;  // halfway between two bf16
  EXPECT_EQ(RoundToBf16(Bounded(between)).error, 0);
  EXPECT_EQ(RoundToBf16(Bounded(between)).value, 1);
  const Bounded inexact = RoundToBf16(Bounded(between, 1e-7));  // may be rounded up as well
  EXPECT_GE(inexact.value + inexact.error, 1 + 0x1.0p-7);
}

}  // namespace
}  // namespace moe::test
