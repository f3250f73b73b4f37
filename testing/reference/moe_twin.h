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
#include "testing/reference/expert_twin.h"
#include "testing/reference/gate_twin.h"
#include "testing/reference/tape.h"

namespace moe::test {

// The weights of one layer, as the ParameterStore holds them.
template <class Real>
struct MoeTwinWeights {
  std::vector<Real> router;          // [E,D], or [E,gate_width]
  std::vector<Real> gate_up;         // [E,2F,D], gates and ups interleaved in groups of 16; of plain experts [F,D]
  std::vector<Real> down;            // [E,D,F]
  std::vector<Real> shared_gate_up;  // [2Fs,D]
  std::vector<Real> shared_down;     // [D,Fs]
  std::vector<Real> router_bias;     // [E], or empty: none
  std::vector<Real> router_hidden;   // [gate_width,D], or empty: a linear gate
  std::vector<Real> router_scale;    // [1] of a cosine gate, else empty
  std::vector<Real> shared_gate;     // [D], or empty: none
  // Of the experts that have them, one after the other: as ExpertWeights.
  std::vector<Real> middle, constant, mix;

  // of(name) of a parameter without its prefix; empty: there is none.
  template <class Of>
  static MoeTwinWeights Gather(const MoeConfig& config, Of&& of) {
    MoeTwinWeights w;
    w.router = of("router"), w.router_bias = of("router_bias"), w.shared_gate = of("shared.gate");
    w.router_hidden = of("router_hidden"), w.router_scale = of("router_scale");
    w.shared_gate_up = of("shared.gate_up"), w.shared_down = of("shared.down");
    const size_t groups = config.experts().size();
    for (size_t g = 0; g < groups; ++g) {
      const std::string prefix = groups > 1 ? fmt::format("experts.{}.", g) : "experts.";
      const auto append = [&](std::vector<Real>& to, const char* name) {
        const std::vector<Real> from = of(prefix + name);
        to.insert(to.end(), from.begin(), from.end());
      };
      append(w.gate_up, "gate_up"), append(w.gate_up, "up"), append(w.middle, "middle"), append(w.down, "down");
      append(w.constant, "constant"), append(w.mix, "mix");
    }
    return w;
  }

  template <class Other>
  static std::vector<Real> Convert(const std::vector<Other>& from) {
    return {from.begin(), from.end()};
  }
  template <class Other>
  static MoeTwinWeights From(const MoeTwinWeights<Other>& w) {
    return {Convert(w.router),      Convert(w.gate_up),     Convert(w.down),          Convert(w.shared_gate_up),
            Convert(w.shared_down), Convert(w.router_bias), Convert(w.router_hidden), Convert(w.router_scale),
            Convert(w.shared_gate), Convert(w.middle),      Convert(w.constant),      Convert(w.mix)};
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
  // Of each token, best first: experts that something else than its logits chose; empty: nothing did.
  std::vector<std::vector<int64_t>> given;
  std::vector<Real> x;  // [T,D]
  MoeTwinWeights<Real> w;

  // ---- after Forward
  using Ffn = typename ExpertTwin<Real>::Saved;
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
  std::vector<Real> shared_gates;          // of each token, where they have a gate
  std::vector<int64_t> tokens_per_expert;  // before dropping
  int64_t num_tokens = 0, num_dropped = 0;
  Real balance_loss = 0, z_loss = 0, entropy = 0;

  // ---- after Backward
  std::vector<Real> d_x, d_gate, d_logits;  // d_gate [S], all slots in order
  MoeTwinWeights<Real> d_w;

  void Forward() {
    using std::exp, std::log;
    const RouterConfig& rc = config.router;
    const int64_t E = rc.num_experts, Fs = config.shared_width();
    y.assign(Size(T * D), Real(0)), logits.assign(Size(T * E), Real(0)), probs = logits, lse.assign(Size(T), Real(0));
    slots.assign(Size(T), {}), shared.assign(Size(T), {}), shared_gates.assign(Size(T), Real(1)),
        tokens_per_expert.assign(Size(E), 0);
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
      order.resize(Size(rc.top_k));
      if (!given.empty()) order = given[Size(t)];
      Real sum(0), chosen_sum(0);
      std::vector<Real> exps;
      for (int64_t e = 0; e < E; ++e) exps.push_back(exp(z[e] - max)), sum += exps.back();
      for (const int64_t e : order) chosen_sum += exps[Size(e)];
      lse[Size(t)] = max + log(sum);
      z_loss += lse[Size(t)] * lse[Size(t)];
      for (int64_t e = 0; e < E; ++e) {
        const Real p = exps[Size(e)] / sum;
        probs[Size(t * E + e)] = p;
        prob_sum[Size(e)] += p;
        entropy += p * (log(sum) - (z[e] - max));
      }
      for (const int64_t e : order) {
        Slot slot{.token = t, .expert = e, .position = tokens_per_expert[Size(e)]++};
        const bool zero = Expert(e).spec.kind == ExpertKind::kZero;  // has no row, and is not dropped
        slot.kept = !zero && (capacity == kNoCapacity || slot.position < capacity);
        num_dropped += slot.kept || zero ? 0 : 1;
        slot.gate = exps[Size(e)] / (SumsToOne() && !rc.normalize_after_drop ? chosen_sum : sum);
        slots[Size(t)].push_back(slot);
      }
      if (rc.normalize_after_drop) {
        Real kept_sum(0);
        for (const Slot& s : slots[Size(t)]) kept_sum += s.kept ? s.gate : Real(0);
        for (Slot& s : slots[Size(t)]) s.gate = s.kept ? s.gate / kept_sum : Real(0);
      }
      for (Slot& s : slots[Size(t)]) {
        if (s.kept) s.ffn = Expert(s.expert).Forward(Input(t, s.gate)), s.ffn.out = Operand(s.ffn.out.data(), D);
      }
      if (Fs > 0) shared[Size(t)] = Shared().Forward(Input(t));
      if (config.shared_gate) shared_gates[Size(t)] = Sigmoid(DotOf(D, w.shared_gate.data(), 1, Row(x, t, D), 1));
      for (int64_t d = 0; d < D; ++d) {
        Real& out = y[Size(t * D + d)];
        if (Fs > 0)
          out += config.shared_gate ? shared_gates[Size(t)] * shared[Size(t)].out[Size(d)] : shared[Size(t)].out[Size(d)];
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
    const int64_t E = rc.num_experts, Fs = config.shared_width();
    const std::vector<Real> d_y = MoeTwinWeights<Real>::Convert(d_y_values);
    d_x.assign(Size(T * D), Real(0)), d_logits.assign(Size(T * E), Real(0)), d_gate.clear();
    const double n = static_cast<double>(std::max<int64_t>(num_tokens, 1));
    std::vector<typename ExpertTwin<Real>::Grads> grads(Size(E));
    typename ExpertTwin<Real>::Grads shared_grads;
    std::vector<Real> d_shared_gate(Size(T), Real(0));
    for (int64_t t = 0; t < T; ++t) {
      if (!IsToken(t)) continue;
      std::vector<Real> d_gates;
      std::vector<Real> from_experts(Size(D), Real(0));
      if (Fs > 0) {
        std::vector<Real> d_out(d_y.begin() + t * D, d_y.begin() + (t + 1) * D);
        Real d_z(0);
        if (config.shared_gate) {
          const Real& gate = shared_gates[Size(t)];
          std::vector<Real> gated = shared[Size(t)].out;
          for (Real& v : gated) v = gate * v;
          d_z = d_shared_gate[Size(t)] = DotOf(D, gated.data(), 1, d_out.data(), 1) * (Real(1) + -gate);
          for (Real& v : d_out) v = gate * v;
        }
        const std::vector<Real> d = Shared().Backward(shared[Size(t)], d_out, shared_grads);
        for (int64_t i = 0; i < D; ++i) {
          from_experts[Size(i)] += d[Size(i)];
          if (config.shared_gate) from_experts[Size(i)] += d_z * w.shared_gate[Size(i)];
        }
      }
      for (const Slot& s : slots[Size(t)]) {
        d_gates.push_back(Real(0));
        if (!s.kept) continue;
        std::vector<Real> d_out(Row(d_y, t, D), Row(d_y, t, D) + D);
        for (int64_t i = 0; !rc.gates_input && i < D; ++i) d_out[Size(i)] = s.gate * d_out[Size(i)];
        const std::vector<Real> d_in = Expert(s.expert).Backward(s.ffn, d_out, grads[Size(s.expert)]);
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
        for (size_t j = 0; j < d_gates.size(); ++j) {  // a gate of 0 shares nothing
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
      Expert(e).AppendGradients(grads[Size(e)], d_w);
    }
    if (Fs > 0) {
      MoeTwinWeights<Real> d;
      Shared().AppendGradients(shared_grads, d);
      d_w.shared_gate_up = d.gate_up, d_w.shared_down = d.down;
    }
    for (int64_t i = 0; config.shared_gate && i < D; ++i)
      d_w.shared_gate.push_back(DotOf(T, d_shared_gate.data(), 1, x.data() + i, D));
  }

  bool SumsToOne() const { return config.router.score == RouterScore::kTopKSoftmax || config.router.normalize; }
  bool IsToken(int64_t t) const { return valid.empty() || valid[Size(t)] != 0; }

 private:
  GateTwin<Real> gate_;
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
    for (Real& v : in) v = config.router.gates_input ? gate * v : v;
    return in;
  }
  // As it lies in memory between two products.
  Real Kept(const Real& v) const { return bf16 ? RoundToBf16(v) : v; }
  double FractionValue(int64_t e) const {
    const int64_t all = std::accumulate(tokens_per_expert.begin(), tokens_per_expert.end(), int64_t{0});
    return static_cast<double>(tokens_per_expert[Size(e)]) / static_cast<double>(all);
  }
  Real Fraction(int64_t e) const { return Real(FractionValue(e)); }

  ExpertTwin<Real> Expert(int64_t e) const {
    if (places_.empty()) places_ = PlacesOf(config.experts(), D);
    const ExpertPlace& at = places_[Size(e)];
    return {.spec = at.spec,
            .D = D,
            .bf16 = bf16,
            .w = {w.gate_up.data() + at.gate_up, w.middle.data() + at.middle, w.down.data() + at.down,
                  w.constant.data() + at.constant, w.mix.data() + at.mix}};
  }
  ExpertTwin<Real> Shared() const {
    return {.spec = {.width = config.shared_width()},
            .D = D,
            .bf16 = bf16,
            .w = {.gate_up = w.shared_gate_up.data(), .down = w.shared_down.data()}};
  }

  mutable std::vector<ExpertPlace> places_;
};

}  // namespace moe::test
