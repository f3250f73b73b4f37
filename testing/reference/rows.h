#pragma once
// Formulas of one row, plainly. Real: double, or Var for gradients.

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "testing/reference/tape.h"

namespace moe::test {

// x / sqrt(mean(x^2) + epsilon) * w
template <class Real>
std::vector<Real> ReferenceRmsNorm(const std::vector<Real>& x, const std::vector<Real>& w, double epsilon) {
  using std::sqrt;
  Real mean(0.0);
  for (const Real& v : x) mean += v * v / Real(static_cast<double>(x.size()));
  const Real rms = sqrt(mean + Real(epsilon));
  std::vector<Real> y;
  for (size_t i = 0; i < x.size(); ++i) y.push_back(x[i] / rms * w[i]);
  return y;
}

// h[i] = silu(gate[i]) * up[i], gate and up interleaved in groups of 16.
template <class Real>
std::vector<Real> ReferenceSwiglu(const std::vector<Real>& gate_up) {
  using std::exp;
  std::vector<Real> h;
  for (size_t i = 0; i < gate_up.size() / 2; ++i) {
    const Real gate = gate_up[i / 16 * 32 + i % 16], up = gate_up[i / 16 * 32 + 16 + i % 16];
    h.push_back(gate / (Real(1.0) + exp(-gate)) * up);
  }
  return h;
}

// The pair (x[i], x[i+P/2]) of a head of width P turned by position * theta^(-2i/P).
inline std::vector<double> ReferenceRope(std::span<const double> head, double position, double theta) {
  const size_t half = head.size() / 2;
  std::vector<double> out(head.size());
  for (size_t i = 0; i < half; ++i) {
    const double angle = position * std::pow(theta, -static_cast<double>(i) / static_cast<double>(half));
    out[i] = head[i] * std::cos(angle) - head[i + half] * std::sin(angle);
    out[i + half] = head[i + half] * std::cos(angle) + head[i] * std::sin(angle);
  }
  return out;
}

// -log softmax(logits)[target]
template <class Real>
Real ReferenceCrossEntropy(const std::vector<Real>& logits, int64_t target) {
  using std::exp, std::log;
  double max = -INFINITY;
  for (const Real& x : logits) max = std::fmax(max, ValueOf(x));
  Real sum(0.0);
  for (const Real& x : logits) sum += exp(x - Real(max));
  return log(sum) + Real(max) - logits[static_cast<size_t>(target)];
}

struct ReferenceAdamw {
  double lr, beta1, beta2, epsilon, weight_decay;
  int64_t step;  // 1, 2, ...
  // Loshchilov & Hutter 2019, algorithm 2, with the schedule inside lr.
  void Update(double grad, double& value, double& m, double& v) const {
    m = beta1 * m + (1 - beta1) * grad;
    v = beta2 * v + (1 - beta2) * grad * grad;
    const double m_hat = m / (1 - std::pow(beta1, static_cast<double>(step)));
    const double v_hat = v / (1 - std::pow(beta2, static_cast<double>(step)));
    value -= lr * (m_hat / (std::sqrt(v_hat) + epsilon) + weight_decay * value);
  }
};

}  // namespace moe::test
