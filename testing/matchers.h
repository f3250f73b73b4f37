#pragma once
// Comparisons that say which value is wrong, by how much, and how much was allowed.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <ranges>
#include <span>
#include <string>
#include <vector>

#include "moe/base/bf16.h"
#include "moe/base/check.h"
#include "moe/tensor/mat_view.h"

namespace moe::test {

// Unit roundoff u: one rounded operation is off by at most u * |result|.
inline constexpr double kEpsF32 = 0x1.0p-24;
inline constexpr double kEpsBf16 = 0x1.0p-8;

// Allowed: |got - want| <= absolute + relative * |want|.
struct Tolerance {
  double absolute = 0;
  double relative = 0;
};

// Of a sum of `terms` products in float32, in any order: |error| <= gamma_n * sum|a_i b_i|, gamma_n = n u / (1 - n u)
// (Higham 2002, 3.5). `sum_abs` bounds sum|a_i b_i|; input_eps is 0, or kEpsBf16 when both inputs were rounded first.
inline Tolerance DotTolerance(int64_t terms, double sum_abs, double input_eps = 0) {
  const double nu = static_cast<double>(terms + 1) * kEpsF32;
  return {.absolute = (nu / (1 - nu) + 2 * input_eps + input_eps * input_eps) * sum_abs};
}

inline double AsDouble(double x) {
  return x;
}
inline double AsDouble(Bf16 x) {
  return ToFloat(x);
}

template <std::ranges::input_range Values>
std::vector<double> Doubles(const Values& values) {
  std::vector<double> out;
  for (const auto& x : values) out.push_back(AsDouble(x));
  return out;
}
template <class T>
std::vector<double> Doubles(MatView<T> m) {  // [rows, cols], dense
  std::vector<double> out;
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t c = 0; c < m.cols; ++c) out.push_back(AsDouble(m(r, c)));
  }
  return out;
}

// Success when got[i] is within bound[i] of want[i] for all i. NaN never is; an infinity only of itself.
testing::AssertionResult Within(std::span<const double> got, std::span<const double> want, std::span<const double> bound);
testing::AssertionResult Within(std::span<const double> got, std::span<const double> want, Tolerance tolerance);

// `got` and `want`: ranges of float, double, int or Bf16, or MatViews. Failures carry the caller's line.
template <class Got, class Want, class Allowed>
void ExpectClose(const Got& got, const Want& want, const Allowed& allowed, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
  const auto result = Within(Doubles(got), Doubles(want), allowed);
  if (!result) ADD_FAILURE_AT(file, line) << result.message();
}

// The same bits, NaNs and signs of zero included.
template <class A, class B>
void ExpectSameBits(const A& a, const B& b, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const std::span x(a);
  const std::span y(b);  // one line would make clang 14 want one type
  static_assert(sizeof(x[0]) == sizeof(y[0]));
  std::string message;
  if (x.size() != y.size()) {
    message = fmt::format("got {} values, expected {}", x.size(), y.size());
  } else {
    for (size_t i = 0; i < x.size() && message.empty(); ++i) {
      if (std::memcmp(&x[i], &y[i], sizeof(x[i])) != 0) {
        message = fmt::format("[{}] of {}: got {:.9g}, expected exactly {:.9g}", i, x.size(), AsDouble(x[i]), AsDouble(y[i]));
      }
    }
  }
  if (!message.empty()) ADD_FAILURE_AT(file, line) << message;
}

// While one lives, a failed MOE_CHECK throws CheckError instead of aborting: ThrowingChecks guard; EXPECT_THROW(f(),
// CheckError).
struct CheckError {
  std::string message;
};
class ThrowingChecks {
 public:
  ThrowingChecks() : previous_(SetCheckHandler([](const std::string& message) { throw CheckError{message}; })) {}
  ~ThrowingChecks() { SetCheckHandler(previous_); }
  ThrowingChecks(const ThrowingChecks&) = delete;
  ThrowingChecks& operator=(const ThrowingChecks&) = delete;

 private:
  CheckHandler previous_;
};

}  // namespace moe::test
