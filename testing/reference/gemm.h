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

// c(m,n) = sum over k < K of a(m,k) * b(n,k); a and b are functions of two indices, asked once for each.
template <class A, class B>
ReferenceProduct Multiply(int64_t M, int64_t N, int64_t K, A&& a, B&& b) {
  const auto values = [K](int64_t rows, const auto& at) {
    std::vector<double> out;
    out.reserve(static_cast<size_t>(rows * K));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < K; ++k) out.push_back(static_cast<double>(at(r, k)));
    }
    return out;
  };
  const std::vector<double> left = values(M, a), right = values(N, b);
  ReferenceProduct c;
  c.value.reserve(static_cast<size_t>(M * N)), c.sum_abs.reserve(static_cast<size_t>(M * N));
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      const double *x = left.data() + m * K, *y = right.data() + n * K;
      double sum = 0, sum_abs = 0;
      for (int64_t k = 0; k < K; ++k) {
        const double product = x[k] * y[k];
        sum += product, sum_abs += std::fabs(product);
      }
      c.value.push_back(sum), c.sum_abs.push_back(sum_abs);
    }
  }
  return c;
}

}  // namespace moe::test
