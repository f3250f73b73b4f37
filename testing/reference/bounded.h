#pragma once
// A value with a bound on the error that float32 arithmetic may have made in it: a twin run with Bounded derives its own
// tolerance, operation by operation, instead of having one tuned. (Running error analysis, Higham 2002, 3.3.)

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "moe/base/bf16.h"
#include "testing/matchers.h"
#include "testing/reference/tape.h"

namespace moe::test {

struct Bounded {
  double value = 0;
  double error = 0;  // |what float32 gets - value| <= error

  Bounded() = default;
  // A plain number: exact when it is a float, else one rounding off. NOLINT: implicit, so that formulas read as for double.
  Bounded(double v) : value(v), error(static_cast<double>(static_cast<float>(v)) == v ? 0 : kEpsF32 * std::abs(v)) {}
  Bounded(double v, double e) : value(v), error(e) {}
};

inline Bounded operator+(const Bounded& a, const Bounded& b) {
  const double v = a.value + b.value, e = a.error + b.error;
  return {v, e + kEpsF32 * (std::abs(v) + e)};
}
inline Bounded operator-(const Bounded& a) {
  return {-a.value, a.error};
}
inline Bounded operator-(const Bounded& a, const Bounded& b) {
  return a + -b;
}
inline Bounded operator*(const Bounded& a, const Bounded& b) {
  const double v = a.value * b.value, e = std::abs(a.value) * b.error + std::abs(b.value) * a.error + a.error * b.error;
  return {v, e + kEpsF32 * (std::abs(v) + e)};
}
// As a product with a reciprocal: two roundings.
inline Bounded operator/(const Bounded& a, const Bounded& b) {
  const double v = a.value / b.value, e = (a.error + std::abs(v) * b.error) / (std::abs(b.value) - b.error);
  return {v, e + 2 * kEpsF32 * (std::abs(v) + e)};
}
inline Bounded& operator+=(Bounded& a, const Bounded& b) {
  return a = a + b;
}
inline Bounded& operator*=(Bounded& a, const Bounded& b) {
  return a = a * b;
}
// The kernels' exp is within 1 ulp, 2 u.
inline Bounded exp(const Bounded& x) {
  const double v = std::exp(x.value), e = v * std::expm1(x.error);
  return {v, e + 2 * kEpsF32 * (v + e)};
}
inline Bounded log(const Bounded& x) {
  const double v = std::log(x.value), e = x.error / (x.value - x.error);
  return {v, e + kEpsF32 * (std::abs(v) + e)};
}
inline Bounded sqrt(const Bounded& x) {
  const double v = std::sqrt(x.value), e = x.error / (v + std::sqrt(std::max(0.0, x.value - x.error)));
  return {v, e + kEpsF32 * (v + e)};
}
inline double ValueOf(const Bounded& x) {
  return x.value;
}

// A sum of n products in any order: gamma_n of the sum of absolute values, on top of what the factors bring.
inline Bounded DotOf(int64_t n, const Bounded* a, int64_t a_stride, const Bounded* b, int64_t b_stride) {
  double sum = 0, magnitude = 0, inherited = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Bounded &x = a[i * a_stride], &y = b[i * b_stride];
    sum += x.value * y.value;
    inherited += std::abs(x.value) * y.error + std::abs(y.value) * x.error + x.error * y.error;
    magnitude += (std::abs(x.value) + x.error) * (std::abs(y.value) + y.error);
  }
  return {sum, inherited + DotTolerance(n, magnitude).absolute};
}

// Rounded to bf16, as an operand of a bf16 product is. An exact value rounds alike everywhere; an inexact one may fall on the
// other side of a rounding boundary: one spacing, twice the unit roundoff.
inline double RoundToBf16(double x) {
  return ToFloat(ToBf16(static_cast<float>(x)));
}
inline Var RoundToBf16(const Var& x) {
  return x + Var(RoundToBf16(x.value) - x.value);  // straight through
}
inline Bounded RoundToBf16(const Bounded& x) {
  const double v = RoundToBf16(x.value);
  return {v, x.error == 0 ? 0 : x.error + 2 * kEpsBf16 * (std::abs(x.value) + x.error)};
}

inline std::vector<double> ValuesOf(std::span<const Bounded> xs) {
  std::vector<double> out;
  for (const Bounded& x : xs) out.push_back(x.value);
  return out;
}
inline std::vector<double> ErrorsOf(std::span<const Bounded> xs) {
  std::vector<double> out;
  for (const Bounded& x : xs) out.push_back(x.error);
  return out;
}
// got[i] lies within want[i].error of want[i].value.
template <class Got>
void ExpectWithinBounds(const Got& got, const std::vector<Bounded>& want, const char* file = __builtin_FILE(),
                        int line = __builtin_LINE()) {
  ExpectClose(got, ValuesOf(want), ErrorsOf(want), file, line);
}

}  // namespace moe::test
