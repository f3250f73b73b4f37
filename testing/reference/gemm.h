#pragma once
// Matrix products by their definition, in double, with the magnitude sums that error bounds need.

#include <cmath>
#include <cstdint>
#include <vector>

#include "moe/base/bf16.h"

namespace moe::test {

// As the product sees an input: itself, or rounded to bf16.
inline double AsInput(float x, bool bf16) {
  return bf16 ? ToFloat(ToBf16(x)) : x;
}

struct ReferenceProduct {
  std::vector<double> value;    // [M,N]
  std::vector<double> sum_abs;  // [M,N] sum of |a b|
};

// c(m,n) = sum over k < K of a(m,k) * b(n,k); a and b are functions of two indices.
template <class A, class B>
ReferenceProduct Multiply(int64_t M, int64_t N, int64_t K, A&& a, B&& b) {
  ReferenceProduct c;
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0, sum_abs = 0;
      for (int64_t k = 0; k < K; ++k) {
        const double product = static_cast<double>(a(m, k)) * static_cast<double>(b(n, k));
        sum += product, sum_abs += std::fabs(product);
      }
      c.value.push_back(sum), c.sum_abs.push_back(sum_abs);
    }
  }
  return c;
}

}  // namespace moe::test
