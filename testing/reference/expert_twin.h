#pragma once
// One expert of any kind over one row, as its formula reads, with an explicit backward. Real is double, Var or Bounded.

#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/mixture/expert_spec.h"
#include "testing/reference/bounded.h"
#include "testing/reference/tape.h"

namespace moe::test {

inline double Erf(double x) {
  return std::erf(x);
}
inline Var Erf(const Var& x) {
  return Record1(std::erf(x.value), x, 2 / std::sqrt(M_PI) * std::exp(-x.value * x.value));
}
// The kernels' erf is within 7 units of 2^-24; its slope is at most 2 / sqrt(pi).
inline Bounded Erf(const Bounded& x) {
  return {std::erf(x.value), 1.13 * x.error + 7 * kEpsF32};
}

// max(x, 0); one that float32 gets slightly off zero may be on its other side there.
inline double PositivePart(double x) {
  return std::max(x, 0.0);
}
inline Var PositivePart(const Var& x) {
  return x.value > 0 ? x : Var(0);
}
inline Bounded PositivePart(const Bounded& x) {
  return {std::max(x.value, 0.0), x.value + x.error > 0 ? x.error : 0};
}

template <class Real>
Real Sigmoid(const Real& x) {
  using std::exp;
  return Real(1) / (Real(1) + exp(-x));
}
// The quotient's general bound would lose its meaning where 1 + exp(-x) is inexact by as much as it is. Slope at most 1/4, at
// most the value itself; exp, a sum, a quotient.
inline Bounded Sigmoid(const Bounded& x) {
  const double v = 1 / (1 + std::exp(-x.value)), e = std::min(0.25 * x.error, v * std::expm1(x.error));
  return {v, e + 6 * kEpsF32 * (v + e)};
}
template <class Real>
Real Phi(const Real& x) {
  return Real(0.5) * (Real(1) + Erf(x * Real(std::sqrt(0.5))));
}
// f(x) of an activation.
template <class Real>
Real ActivationOf(Activation f, const Real& x) {
  switch (f) {
    case Activation::kSilu:
      return x * Sigmoid(x);
    case Activation::kGelu:
      return x * Phi(x);
    case Activation::kGeluTanh:  // 0.5 x (1 + tanh u), u = sqrt(2 / pi) (x + 0.044715 x^3)
      return x * Sigmoid(Real(2 * std::sqrt(2 / M_PI)) * x * (Real(1) + Real(0.044715) * x * x));
    case Activation::kRelu2:
      return PositivePart(x) * PositivePart(x);
  }
  return Real(0);
}
template <class Real>
Real SlopeOf(Activation f, const Real& x) {
  using std::exp;
  switch (f) {
    case Activation::kSilu: {
      const Real s = Sigmoid(x);
      return s * (Real(1) + x * (Real(1) + -s));
    }
    case Activation::kGelu:
      return Phi(x) + x * exp(Real(-0.5) * x * x) * Real(1 / std::sqrt(2 * M_PI));
    case Activation::kGeluTanh: {
      const Real twice(2 * std::sqrt(2 / M_PI)), s = Sigmoid(twice * x * (Real(1) + Real(0.044715) * x * x));
      return s * (Real(1) + x * twice * (Real(1) + Real(3 * 0.044715) * x * x) * (Real(1) + -s));
    }
    case Activation::kRelu2:
      return Real(2) * PositivePart(x);
  }
  return Real(0);
}

// Where an expert's values begin in the weights of all experts of a layer, one after the other.
struct ExpertPlace {
  ExpertSpec spec;
  int64_t gate_up = 0, middle = 0, down = 0, constant = 0, mix = 0;
};
inline std::vector<ExpertPlace> PlacesOf(const std::vector<ExpertGroup>& groups, int64_t D) {
  std::vector<ExpertPlace> places;
  ExpertPlace next;
  for (const ExpertGroup& group : groups) {
    for (int64_t i = 0; i < group.count; ++i) {
      const ExpertSpec& s = next.spec = group.spec;
      places.push_back(next);
      const int64_t N = (s.gated ? 2 : 1) * s.width;
      if (s.kind == ExpertKind::kFfn) {
        next.gate_up += N * D, next.down += D * s.width;
        if (s.depth == 2) next.middle += N * s.width;
      }
      if (s.kind == ExpertKind::kConstant) next.constant += D, next.mix += 2 * D;
    }
  }
  return places;
}

template <class Real>
struct ExpertMatrices {  // of one expert
  const Real *gate_up = nullptr, *middle = nullptr, *down = nullptr, *constant = nullptr, *mix = nullptr;
};

template <class Real>
class ExpertTwin {
 public:
  using Values = std::vector<Real>;

  ExpertSpec spec;
  int64_t D = 0;
  bool bf16 = false;  // what products and, for each other, experts read and write
  ExpertMatrices<Real> w;

  struct Saved {
    std::vector<Values> inputs, products;  // of each hidden layer; then the last one's output
    Values out;
    Real a1 = 0, a2 = 0;  // of a constant
  };
  // Rows d_y and x of every weight gradient dW = d_y^T x, in the order gate_up, middle, down; of a constant: v, mix.
  struct Grads {
    int64_t rows = 0;
    std::vector<Values> d_y = std::vector<Values>(3), x = std::vector<Values>(3);
  };

  Saved Forward(const Values& row) const {
    Saved s;
    const Values x = Rounded(row);
    s.inputs.push_back(x);
    if (spec.kind == ExpertKind::kZero) s.out.assign(x.size(), Real(0));
    if (spec.kind == ExpertKind::kCopy) s.out = x;
    if (spec.kind == ExpertKind::kConstant) {
      s.a1 = Sigmoid(DotOf(D, w.mix, 1, x.data(), 1) + -DotOf(D, w.mix + D, 1, x.data(), 1)), s.a2 = Real(1) + -s.a1;
      for (int64_t d = 0; d < D; ++d) s.out.push_back(s.a1 * x[Size(d)] + s.a2 * w.constant[d]);
    }
    if (spec.kind != ExpertKind::kFfn) return s;
    for (int64_t layer = 0; layer < spec.depth; ++layer) {
      s.products.push_back(Times(layer == 0 ? w.gate_up : w.middle, Products(), s.inputs.back()));
      // SwiGLU is done on the product's own sums; others read what was written.
      const bool fused = spec.gated && spec.activation == Activation::kSilu;
      const Values p = fused ? s.products.back() : Rounded(s.products.back());
      Values hidden;
      for (int64_t f = 0; f < spec.width; ++f) {
        const Real value = ActivationOf(spec.activation, p[Size(spec.gated ? GateRow(f) : f)]);
        hidden.push_back(spec.gated ? value * p[Size(GateRow(f) + 16)] : value);
      }
      s.inputs.push_back(Rounded(hidden));
    }
    s.out = Times(w.down, D, s.inputs.back());
    return s;
  }

  // Gradient by the row; adds to `grads`.
  Values Backward(const Saved& s, const Values& d_out, Grads& grads) const {
    const Values d_o = Rounded(d_out);
    const Values& x = s.inputs[0];
    if (spec.kind == ExpertKind::kZero) return Values(x.size(), Real(0));
    ++grads.rows;
    if (spec.kind == ExpertKind::kCopy) return d_o;
    if (spec.kind == ExpertKind::kConstant) {
      const Real d_z = s.a1 * s.a2 * (DotOf(D, d_o.data(), 1, x.data(), 1) + -DotOf(D, d_o.data(), 1, w.constant, 1));
      Append(grads.d_y[0], {s.a2}), Append(grads.x[0], d_o);
      Append(grads.d_y[1], {d_z, -d_z}), Append(grads.x[1], x);
      Values d_x;
      for (int64_t d = 0; d < D; ++d) {
        const Real a[] = {s.a1, d_z, -d_z}, b[] = {d_o[Size(d)], w.mix[d], w.mix[D + d]};
        d_x.push_back(DotOf(3, a, 1, b, 1));
      }
      return d_x;
    }
    Values d = TimesTransposed(w.down, D, d_o, spec.width);
    Append(grads.d_y[2], d_o), Append(grads.x[2], s.inputs.back());
    for (int64_t layer = spec.depth - 1; layer >= 0; --layer) {
      const Values d_h = Rounded(d), p = Rounded(s.products[Size(layer)]), &in = s.inputs[Size(layer)];
      Values d_p(Size(Products()));
      for (int64_t f = 0; f < spec.width; ++f) {
        if (!spec.gated) {
          d_p[Size(f)] = d_h[Size(f)] * SlopeOf(spec.activation, p[Size(f)]);
          continue;
        }
        const Real &gate = p[Size(GateRow(f))], &up = p[Size(GateRow(f) + 16)];
        d_p[Size(GateRow(f))] = d_h[Size(f)] * up * SlopeOf(spec.activation, gate);
        d_p[Size(GateRow(f) + 16)] = d_h[Size(f)] * ActivationOf(spec.activation, gate);
      }
      d_p = Rounded(d_p);
      Append(grads.d_y[Size(layer)], d_p), Append(grads.x[Size(layer)], in);
      d = TimesTransposed(layer == 0 ? w.gate_up : w.middle, Products(), d_p, static_cast<int64_t>(in.size()));
    }
    return d;
  }

  // The weights' gradients, appended to those of the experts before.
  template <class Weights>
  void AppendGradients(const Grads& g, Weights& d_w) const {
    if (spec.kind == ExpertKind::kConstant) {
      Contract(g, 0, 1, D, d_w.constant);
      Contract(g, 1, 2, D, d_w.mix);
    }
    if (spec.kind != ExpertKind::kFfn) return;
    Contract(g, 0, Products(), D, d_w.gate_up);
    if (spec.depth == 2) Contract(g, 1, Products(), spec.width, d_w.middle);
    Contract(g, 2, D, spec.width, d_w.down);
  }

 private:
  static size_t Size(int64_t i) { return static_cast<size_t>(i); }
  static int64_t GateRow(int64_t f) { return f / 16 * 32 + f % 16; }
  int64_t Products() const { return (spec.gated ? 2 : 1) * spec.width; }
  Values Rounded(Values v) const {
    for (Real& x : v) x = bf16 ? RoundToBf16(x) : x;
    return v;
  }
  Values Times(const Real* m, int64_t N, const Values& x) const {
    const auto K = static_cast<int64_t>(x.size());
    const Values W = Rounded(Values(m, m + N * K));
    Values y;
    for (int64_t n = 0; n < N; ++n) y.push_back(DotOf(K, W.data() + n * K, 1, x.data(), 1));
    return y;
  }
  Values TimesTransposed(const Real* m, int64_t N, const Values& d_y, int64_t K) const {
    const Values W = Rounded(Values(m, m + N * K));
    Values d_x;
    for (int64_t k = 0; k < K; ++k) d_x.push_back(DotOf(N, d_y.data(), 1, W.data() + k, K));
    return d_x;
  }
  static void Append(Values& to, const Values& from) { to.insert(to.end(), from.begin(), from.end()); }
  static void Contract(const Grads& g, size_t matrix, int64_t N, int64_t K, Values& out) {
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t k = 0; k < K; ++k) {
        out.push_back(g.rows == 0 ? Real(0) : DotOf(g.rows, g.d_y[matrix].data() + n, N, g.x[matrix].data() + k, K));
      }
    }
  }
};

}  // namespace moe::test
