#pragma once
// The gate network as its formula reads, token by token, with an explicit backward. Real as in moe_twin.h.

#include <cmath>
#include <cstdint>
#include <vector>

#include "moe/mixture/router_config.h"
#include "testing/reference/bounded.h"
#include "testing/reference/tape.h"

namespace moe::test {

template <class Real>
struct GateTwinWeights {
  std::vector<Real> hidden;     // [G,D], empty: linear; G: gate_width
  std::vector<Real> out;        // [E,G], linear: [E,D]
  std::vector<Real> log_scale;  // [1] of cosine, else empty
  std::vector<Real> bias;       // [E], or empty: none
};

template <class Real>
class GateTwin {
 public:
  RouterConfig config;
  int64_t D = 0;
  GateTwinWeights<Real> w;

  // ---- of tokens, one after the other
  std::vector<Real> product, hidden;  // [T,G] before the activation or the scaling, and after it
  std::vector<Real> d_product;        // [T,N] by the product that reads x
  int64_t N() const { return linear() ? E() : G(); }
  const std::vector<Real>& First() const { return linear() ? w.out : w.hidden; }  // [N,D]

  // Logits of a token. x [D].
  std::vector<Real> Forward(const Real* x) {
    using std::exp;
    std::vector<Real> in(x, x + D), logits;
    if (!linear()) {
      std::vector<Real> u;
      for (int64_t g = 0; g < G(); ++g) u.push_back(DotOf(D, x, 1, &w.hidden[Size(g * D)], 1));
      product.insert(product.end(), u.begin(), u.end());
      in = u;
      for (Real& v : in) v = mlp() ? v * (Real(1) / (Real(1) + exp(-v))) : v * InvLength(u.data());
      hidden.insert(hidden.end(), in.begin(), in.end());
    }
    const auto width = static_cast<int64_t>(in.size());
    for (int64_t e = 0; e < E(); ++e) {
      const Real* row = &w.out[Size(e * width)];
      logits.push_back(DotOf(width, in.data(), 1, row, 1));
      if (cosine()) logits.back() = logits.back() * (Scale() * InvLength(row));
      if (!w.bias.empty()) logits.back() += w.bias[Size(e)];
    }
    return logits;
  }
  // A token that is padding: zeros in its place.
  void Skip() {
    for (int64_t g = 0; !linear() && g < G(); ++g) product.push_back(Real(0)), hidden.push_back(Real(0));
  }

  // d_logits [T,E], x [T,D]. Fills d_product; returns the weights' gradients.
  GateTwinWeights<Real> Backward(const std::vector<Real>& d_logits, const std::vector<Real>& x) {
    using std::exp;
    const int64_t T = static_cast<int64_t>(d_logits.size()) / E();
    GateTwinWeights<Real> d;
    for (int64_t e = 0; !w.bias.empty() && e < E(); ++e) {
      const std::vector<Real> ones(Size(T), Real(1));
      d.bias.push_back(DotOf(T, d_logits.data() + e, E(), ones.data(), 1));
    }
    d_product = d_logits;
    if (!linear()) {
      d_product.clear();
      for (int64_t t = 0; t < T; ++t) {
        const Real *u = &product[Size(t * G())], *h = &hidden[Size(t * G())];
        std::vector<Real> d_z, d_h;
        for (int64_t e = 0; e < E(); ++e) {
          d_z.push_back(d_logits[Size(t * E() + e)]);
          if (cosine()) d_z.back() = d_z.back() * (Scale() * InvLength(&w.out[Size(e * G())]));
        }
        for (int64_t g = 0; g < G(); ++g) d_h.push_back(DotOf(E(), d_z.data(), 1, w.out.data() + g, G()));
        const Real along = DotOf(G(), h, 1, d_h.data(), 1);
        for (int64_t g = 0; g < G(); ++g) {
          const Real sigmoid = Real(1) / (Real(1) + exp(-u[g]));
          d_product.push_back(mlp() ? d_h[Size(g)] * (sigmoid * (Real(1) + u[g] * (Real(1) - sigmoid)))
                                    : (d_h[Size(g)] - h[g] * along) * InvLength(u));
        }
      }
      Real d_scale(0);
      for (int64_t e = 0; e < E(); ++e) {
        std::vector<Real> by_row;
        for (int64_t g = 0; g < G(); ++g) by_row.push_back(DotOf(T, d_logits.data() + e, E(), hidden.data() + g, G()));
        if (cosine()) {
          const Real* row = &w.out[Size(e * G())];
          const Real inv = InvLength(row), cos = DotOf(G(), by_row.data(), 1, row, 1) * inv;
          for (int64_t g = 0; g < G(); ++g) by_row[Size(g)] = Scale() * inv * (by_row[Size(g)] - cos * inv * row[g]);
          d_scale += cos;
        }
        d.out.insert(d.out.end(), by_row.begin(), by_row.end());
      }
      if (cosine()) d.log_scale = {clamped() ? Real(0) : d_scale * Scale()};
    }
    std::vector<Real>& d_first = linear() ? d.out : d.hidden;
    for (int64_t n = 0; n < N(); ++n) {
      for (int64_t i = 0; i < D; ++i) d_first.push_back(DotOf(T, d_product.data() + n, N(), x.data() + i, D));
    }
    return d;
  }

 private:
  static size_t Size(int64_t i) { return static_cast<size_t>(i); }
  int64_t E() const { return config.num_experts; }
  int64_t G() const { return config.gate_width; }
  bool linear() const { return config.gate == GateNetwork::kLinear; }
  bool mlp() const { return config.gate == GateNetwork::kMlp; }
  bool cosine() const { return config.gate == GateNetwork::kCosine; }
  bool clamped() const { return ValueOf(w.log_scale[0]) > std::log(100.0); }
  Real Scale() const {
    using std::exp;
    return clamped() ? Real(100) : exp(w.log_scale[0]);
  }
  Real InvLength(const Real* v) const {  // of [G]
    using std::sqrt;
    const Real squares = DotOf(G(), v, 1, v, 1);
    return ValueOf(squares) > 1e-24 ? Real(1) / sqrt(squares) : Real(0);
  }
};

}  // namespace moe::test
