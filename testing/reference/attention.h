#pragma once
// Causal grouped-query attention as the formula says, one score at a time. Real: double, or Var for gradients.

#include <cmath>
#include <vector>

#include "testing/reference/tape.h"

namespace moe::test {

struct AttentionSizes {
  int64_t H, G, P;
  double scale;
  int64_t first_position = 0;  // of the first query row; keys start at position 0
};

// q [n, H*P]; k, v [>= first_position + n, G*P] -> out [n, H*P]. log_sum_exp, if not null, becomes [n, H].
template <class Real>
std::vector<Real> ReferenceAttention(const AttentionSizes& a, const std::vector<Real>& q, const std::vector<Real>& k,
                                     const std::vector<Real>& v, std::vector<double>* log_sum_exp = nullptr) {
  using std::exp;
  const int64_t n = static_cast<int64_t>(q.size()) / (a.H * a.P), kv = a.G * a.P;
  std::vector<Real> out(q.size());
  if (log_sum_exp != nullptr) log_sum_exp->assign(static_cast<size_t>(n * a.H), 0.0);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t h = 0; h < a.H; ++h) {
      const int64_t g = h / (a.H / a.G), keys = a.first_position + i + 1;
      std::vector<Real> p;
      double max = -INFINITY;
      for (int64_t j = 0; j < keys; ++j) {
        p.push_back(DotOf(a.P, &q[static_cast<size_t>((i * a.H + h) * a.P)], 1, &k[static_cast<size_t>(j * kv + g * a.P)], 1) *
                    Real(a.scale));
        max = std::fmax(max, ValueOf(p.back()));
      }
      Real sum(0.0);
      for (Real& x : p) {
        x = exp(x - Real(max));
        sum += x;
      }
      for (Real& x : p) x = x / sum;
      for (int64_t c = 0; c < a.P; ++c) {
        out[static_cast<size_t>((i * a.H + h) * a.P + c)] = DotOf(keys, p.data(), 1, &v[static_cast<size_t>(g * a.P + c)], kv);
      }
      if (log_sum_exp != nullptr) (*log_sum_exp)[static_cast<size_t>(i * a.H + h)] = max + std::log(ValueOf(sum));
    }
  }
  return out;
}

}  // namespace moe::test
