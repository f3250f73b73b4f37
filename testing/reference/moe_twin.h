#pragma once
// The MoE layer as its formulas read, token by token, with an explicit backward: no plan, no buckets, no packing. Real is
// double (values, finite differences), Var (a second opinion on backward) or Bounded (values with the error float32 may have).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "moe/mixture/capacity.h"
#include "moe/mixture/moe_layer.h"
#include "testing/reference/bounded.h"
#include "testing/reference/gate_twin.h"
#include "testing/reference/tape.h"

namespace moe::test {

// The weights of one layer, as the ParameterStore holds them.
template <class Real>
struct MoeTwinWeights {
  std::vector<Real> router;          // [E,D], or [E,gate_width]
  std::vector<Real> gate_up;         // [E,2F,D], gates and ups interleaved in groups of 16
  std::vector<Real> down;            // [E,D,F]
  std::vector<Real> shared_gate_up;  // [2Fs,D]
  std::vector<Real> shared_down;     // [D,Fs]
  std::vector<Real> router_bias;     // [E], or empty: none
  std::vector<Real> router_hidden;   // [gate_width,D], or empty: a linear gate
  std::vector<Real> router_scale;    // [1] of a cosine gate, else empty

  template <class Other>
  static std::vector<Real> Convert(const std::vector<Other>& from) {
    return {from.begin(), from.end()};
  }
  template <class Other>
  static MoeTwinWeights From(const MoeTwinWeights<Other>& w) {
    return {Convert(w.router),      Convert(w.gate_up),     Convert(w.down),          Convert(w.shared_gate_up),
            Convert(w.shared_down), Convert(w.router_bias), Convert(w.router_hidden), Convert(w.router_scale)};
  }
};

template <class Real>
class MoeTwin {
 public:
  MoeConfig config;
  int64_t T = 0, D = 0;
  bool bf16 = false;               // what experts' products read and write, the shared experts' sums excepted
  int64_t capacity = kNoCapacity;  // rows per expert
  std::vector<uint8_t> valid;      // [T]; empty: all
  std::vector<Real> x;             // [T,D]
  MoeTwinWeights<Real> w;

  // ---- after Forward
  struct Ffn {
    std::vector<Real> gate_up, hidden, out;  // of one row: [2F] before the activation, [F] after it, [D]
  };
  struct Slot {
    int64_t token, expert, position;  // position in its expert's queue
    bool kept;
    Real gate;
    Ffn ffn;  // when kept
  };
  std::vector<Real> y;                     // [T,D]
  std::vector<Real> logits, probs, lse;    // [T,E], [T,E], [T]
  std::vector<std::vector<Slot>> slots;    // of each token, best first
  std::vector<Ffn> shared;                 // of each token
  std::vector<int64_t> tokens_per_expert;  // before dropping
  int64_t num_tokens = 0, num_dropped = 0;
  Real balance_loss = 0, z_loss = 0, entropy = 0;

  // ---- after Backward
  std::vector<Real> d_x, d_gate, d_logits;  // d_gate [S], all slots in order
  MoeTwinWeights<Real> d_w;

  void Forward() {
    using std::exp, std::log;
    const RouterConfig& rc = config.router;
    const int64_t E = rc.num_experts, F = config.expert_width, Fs = config.shared_width();
    y.assign(Size(T * D), Real(0)), logits.assign(Size(T * E), Real(0)), probs = logits, lse.assign(Size(T), Real(0));
    slots.assign(Size(T), {}), shared.assign(Size(T), {}), tokens_per_expert.assign(Size(E), 0);
    num_tokens = num_dropped = 0;
    gate_ = {.config = rc, .D = D, .w = {w.router_hidden, w.router, w.router_scale, w.router_bias}};
    std::vector<Real> prob_sum(Size(E), Real(0));
    balance_loss = z_loss = entropy = Real(0);
    for (int64_t t = 0; t < T; ++t) {
      if (!IsToken(t)) {
        gate_.Skip();
        continue;
      }
      ++num_tokens;
      const Real* z = Row(logits, t, E);
      const std::vector<Real> own_logits = gate_.Forward(Row(x, t, D));
      std::copy(own_logits.begin(), own_logits.end(), logits.begin() + t * E);
      std::vector<int64_t> order(Size(E));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return ValueOf(z[a]) > ValueOf(z[b]); });
      const Real max = z[order[0]];
      Real sum(0), chosen_sum(0);
      std::vector<Real> exps;
      for (int64_t e = 0; e < E; ++e) exps.push_back(exp(z[e] - max)), sum += exps.back();
      for (int64_t j = 0; j < rc.top_k; ++j) chosen_sum += exps[Size(order[Size(j)])];
      lse[Size(t)] = max + log(sum);
      z_loss += lse[Size(t)] * lse[Size(t)];
      for (int64_t e = 0; e < E; ++e) {
        const Real p = exps[Size(e)] / sum;
        probs[Size(t * E + e)] = p;
        prob_sum[Size(e)] += p;
        entropy += p * (log(sum) - (z[e] - max));
      }
      for (int64_t j = 0; j < rc.top_k; ++j) {
        const int64_t e = order[Size(j)];
        Slot slot{.token = t, .expert = e, .position = tokens_per_expert[Size(e)]++};
        slot.kept = capacity == kNoCapacity || slot.position < capacity;
        num_dropped += slot.kept ? 0 : 1;
        slot.gate = exps[Size(e)] / (SumsToOne() ? chosen_sum : sum);
        if (slot.kept) {
          slot.ffn = RunFfn(Input(t, slot.gate), F, w.gate_up, w.down, e);
          slot.ffn.out = Operand(slot.ffn.out.data(), D);
        }
        slots[Size(t)].push_back(slot);
      }
      if (Fs > 0) shared[Size(t)] = RunFfn(Input(t), Fs, w.shared_gate_up, w.shared_down, 0);
      for (int64_t d = 0; d < D; ++d) {
        Real& out = y[Size(t * D + d)];
        if (Fs > 0) out += shared[Size(t)].out[Size(d)];
        for (const Slot& s : slots[Size(t)]) {
          if (s.kept) out += rc.gates_input ? s.ffn.out[Size(d)] : s.gate * s.ffn.out[Size(d)];
        }
      }
    }
    if (num_tokens == 0) return;
    const Real n(static_cast<double>(num_tokens));
    for (int64_t e = 0; e < E; ++e) balance_loss += Fraction(e) * (prob_sum[Size(e)] / n);
    balance_loss *= Real(static_cast<double>(E));
    z_loss = z_loss / n, entropy = entropy / n;
  }

  // sum(d_y . y) + loss_scale * (balance coefficient * balance + z coefficient * z).
  Real Objective(const std::vector<double>& d_y, double loss_scale) const {
    Real sum = Real(loss_scale * config.router.balance_loss) * balance_loss + Real(loss_scale * config.router.z_loss) * z_loss;
    for (size_t i = 0; i < y.size(); ++i) sum += Real(d_y[i]) * y[i];
    return sum;
  }

  // Gradients of Objective, by hand.
  void Backward(const std::vector<double>& d_y_values, double loss_scale) {
    const RouterConfig& rc = config.router;
    const int64_t E = rc.num_experts, F = config.expert_width, Fs = config.shared_width();
    const std::vector<Real> d_y = MoeTwinWeights<Real>::Convert(d_y_values);
    d_x.assign(Size(T * D), Real(0)), d_logits.assign(Size(T * E), Real(0)), d_gate.clear();
    const double n = static_cast<double>(std::max<int64_t>(num_tokens, 1));
    std::vector<FfnGrads> grads(Size(E));
    FfnGrads shared_grads;
    for (int64_t t = 0; t < T; ++t) {
      if (!IsToken(t)) continue;
      std::vector<Real> d_gates;
      std::vector<Real> from_experts(Size(D), Real(0));
      if (Fs > 0) {
        const std::vector<Real> d = FfnBackward(Input(t), Fs, w.shared_gate_up, w.shared_down, 0, shared[Size(t)],
                                                {d_y.begin() + t * D, d_y.begin() + (t + 1) * D}, shared_grads);
        for (int64_t i = 0; i < D; ++i) from_experts[Size(i)] += d[Size(i)];
      }
      for (const Slot& s : slots[Size(t)]) {
        d_gates.push_back(Real(0));
        if (!s.kept) continue;
        std::vector<Real> d_out(Row(d_y, t, D), Row(d_y, t, D) + D);
        for (int64_t i = 0; !rc.gates_input && i < D; ++i) d_out[Size(i)] = s.gate * d_out[Size(i)];
        const std::vector<Real> d_in =
            FfnBackward(Input(t, s.gate), F, w.gate_up, w.down, s.expert, s.ffn, d_out, grads[Size(s.expert)]);
        const std::vector<Real> d = Operand(d_in.data(), D);
        d_gates.back() =
            rc.gates_input ? DotOf(D, d.data(), 1, Row(x, t, D), 1) : DotOf(D, s.ffn.out.data(), 1, Row(d_y, t, D), 1);
        for (int64_t i = 0; i < D; ++i) from_experts[Size(i)] += rc.gates_input ? s.gate * d[Size(i)] : d[Size(i)];
      }
      d_gate.insert(d_gate.end(), d_gates.begin(), d_gates.end());

      // By p, then through the softmax; the losses see p only.
      const Real* p = Row(probs, t, E);
      std::vector<Real> d_p;
      for (int64_t e = 0; e < E; ++e) {
        d_p.push_back(Real(loss_scale * rc.balance_loss * static_cast<double>(E) * FractionValue(e) / n));
      }
      if (!SumsToOne()) {
        for (size_t j = 0; j < d_gates.size(); ++j) d_p[Size(slots[Size(t)][j].expert)] += d_gates[j];
      }
      const Real shift = Real(loss_scale * rc.z_loss * 2 / n) * lse[Size(t)] - DotOf(E, p, 1, d_p.data(), 1);
      Real* d_z = &d_logits[Size(t * E)];
      for (int64_t e = 0; e < E; ++e) d_z[e] = p[e] * (d_p[Size(e)] + shift);
      if (SumsToOne()) {
        Real mean(0);
        for (size_t j = 0; j < d_gates.size(); ++j) mean += slots[Size(t)][j].gate * d_gates[j];
        for (size_t j = 0; j < d_gates.size(); ++j) {
          d_z[slots[Size(t)][j].expert] += slots[Size(t)][j].gate * (d_gates[j] + -mean);
        }
      }
      std::copy(from_experts.begin(), from_experts.end(), d_x.begin() + t * D);
    }
    GateTwinWeights<Real> d_gate_w = gate_.Backward(d_logits, x);
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t i = 0; i < D && IsToken(t); ++i) {  // one sum: the router's products are added to the experts' part
        std::vector<Real> a{d_x[Size(t * D + i)]}, b{Real(1)};
        for (int64_t j = 0; j < gate_.N(); ++j) {
          a.push_back(gate_.d_product[Size(t * gate_.N() + j)]), b.push_back(gate_.First()[Size(j * D + i)]);
        }
        d_x[Size(t * D + i)] = DotOf(gate_.N() + 1, a.data(), 1, b.data(), 1);
      }
    }
    d_w = {.router = d_gate_w.out,
           .router_bias = d_gate_w.bias,
           .router_hidden = d_gate_w.hidden,
           .router_scale = d_gate_w.log_scale};
    for (int64_t e = 0; e < E; ++e) {
      Contract(grads[Size(e)], 2 * F, D, true, d_w.gate_up);
      Contract(grads[Size(e)], D, F, false, d_w.down);
    }
    if (Fs > 0) {
      Contract(shared_grads, 2 * Fs, D, true, d_w.shared_gate_up);
      Contract(shared_grads, D, Fs, false, d_w.shared_down);
    }
  }

  bool SumsToOne() const { return config.router.score == RouterScore::kTopKSoftmax || config.router.normalize; }
  bool IsToken(int64_t t) const { return valid.empty() || valid[Size(t)] != 0; }

 private:
  GateTwin<Real> gate_;
  // Rows that contribute to the weight gradients of one FFN, side by side.
  struct FfnGrads {
    int64_t rows = 0;
    std::vector<Real> d_out, hidden, d_gate_up, input;  // [rows,D], [rows,F], [rows,2F], [rows,D]
  };

  static size_t Size(int64_t i) { return static_cast<size_t>(i); }
  static const Real* Row(const std::vector<Real>& m, int64_t row, int64_t cols) { return m.data() + row * cols; }
  std::vector<Real> Operand(const Real* from, int64_t n) const {
    std::vector<Real> out(from, from + n);
    for (Real& v : out) v = Kept(v);
    return out;
  }
  // What an expert reads of a token; the shared ones: gate 1.
  std::vector<Real> Input(int64_t t, const Real& gate = Real(1)) const {
    std::vector<Real> in(Row(x, t, D), Row(x, t, D) + D);
    for (Real& v : in) v = Kept(config.router.gates_input ? gate * v : v);
    return in;
  }
  // As it lies in memory between two products.
  Real Kept(const Real& v) const { return bf16 ? RoundToBf16(v) : v; }
  double FractionValue(int64_t e) const {
    return static_cast<double>(tokens_per_expert[Size(e)]) / static_cast<double>(num_tokens * config.router.top_k);
  }
  Real Fraction(int64_t e) const { return Real(FractionValue(e)); }

  static int64_t GateRow(int64_t f) { return f / 16 * 32 + f % 16; }
  static int64_t UpRow(int64_t f) { return GateRow(f) + 16; }

  Ffn RunFfn(const std::vector<Real>& in, int64_t F, const std::vector<Real>& gate_up, const std::vector<Real>& down,
             int64_t e) const {
    using std::exp;
    Ffn out;
    const std::vector<Real> W = Operand(Row(gate_up, e, 2 * F * D), 2 * F * D);
    for (int64_t n = 0; n < 2 * F; ++n) out.gate_up.push_back(DotOf(D, in.data(), 1, Row(W, n, D), 1));
    for (int64_t f = 0; f < F; ++f) {
      const Real gate = out.gate_up[Size(GateRow(f))];
      out.hidden.push_back(gate * (Real(1) / (Real(1) + exp(-gate))) * out.gate_up[Size(UpRow(f))]);
    }
    const std::vector<Real> h = Operand(out.hidden.data(), F), V = Operand(Row(down, e, D * F), D * F);
    for (int64_t d = 0; d < D; ++d) out.out.push_back(DotOf(F, h.data(), 1, Row(V, d, F), 1));
    return out;
  }

  // Gradient by the FFN's input; adds its row to `grads`.
  std::vector<Real> FfnBackward(const std::vector<Real>& in, int64_t F, const std::vector<Real>& gate_up,
                                const std::vector<Real>& down, int64_t e, const Ffn& ffn, const std::vector<Real>& d_out,
                                FfnGrads& grads) const {
    using std::exp;
    const std::vector<Real> W = Operand(Row(gate_up, e, 2 * F * D), 2 * F * D), V = Operand(Row(down, e, D * F), D * F);
    const std::vector<Real> d_o = Operand(d_out.data(), D);
    std::vector<Real> d_gate_up_row(Size(2 * F));
    for (int64_t f = 0; f < F; ++f) {
      const Real d_h = Kept(DotOf(D, d_o.data(), 1, V.data() + f, F));
      const Real gate = Kept(ffn.gate_up[Size(GateRow(f))]), up = Kept(ffn.gate_up[Size(UpRow(f))]);
      const Real sigmoid = Real(1) / (Real(1) + exp(-gate));
      d_gate_up_row[Size(GateRow(f))] = d_h * up * sigmoid * (Real(1) + gate * (Real(1) + -sigmoid));
      d_gate_up_row[Size(UpRow(f))] = d_h * gate * sigmoid;
    }
    const std::vector<Real> d_gu = Operand(d_gate_up_row.data(), 2 * F);
    std::vector<Real> d_in;
    for (int64_t d = 0; d < D; ++d) d_in.push_back(DotOf(2 * F, d_gu.data(), 1, W.data() + d, D));
    ++grads.rows;
    const auto append = [](std::vector<Real>& to, const std::vector<Real>& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(grads.d_out, d_o), append(grads.hidden, Operand(ffn.hidden.data(), F));
    append(grads.d_gate_up, d_gu), append(grads.input, in);
    return d_in;
  }

  static void Contract(const FfnGrads& g, int64_t N, int64_t K, bool first_matrix, std::vector<Real>& d_w_out) {
    const std::vector<Real>& a = first_matrix ? g.d_gate_up : g.d_out;
    const std::vector<Real>& b = first_matrix ? g.input : g.hidden;
    for (int64_t i = 0; i < N; ++i) {
      for (int64_t j = 0; j < K; ++j) {
        d_w_out.push_back(g.rows == 0 ? Real(0) : DotOf(g.rows, a.data() + i, N, b.data() + j, K));
      }
    }
  }
};

}  // namespace moe::test
