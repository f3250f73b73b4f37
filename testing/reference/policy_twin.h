#pragma once
// A routing policy as its definition reads: scores, sorts, queues, no scratch and no shared sums. Real is double (finite
// differences) or Bounded (values with the error float32 may have).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "moe/mixture/router_config.h"
#include "testing/reference/bounded.h"

namespace moe::test {

// Of the standard normal distribution.
inline double NormalCdf(double x) {
  return std::erfc(-x / std::sqrt(2.0)) / 2;
}
inline Bounded NormalCdf(const Bounded& x) {  // no slope is larger than 1 / sqrt(2 pi)
  return {NormalCdf(x.value), 0.4 * x.error + kEpsF32 * NormalCdf(x.value)};
}

template <class Real>
class PolicyTwin {
 public:
  RouterConfig config;
  double factor = 0;                    // of the capacity; 0: dropless
  std::vector<Real> logits;             // [T,E]
  std::vector<double> noise;            // [T,E] added to the logits; empty: none
  std::vector<uint8_t> valid;           // [T]; empty: all
  std::vector<double> bias;             // [E] of the selection; empty: none
  std::vector<int32_t> sequence_begin;  // empty: one sequence
  std::vector<int64_t> tokens_before;   // [E] of the optimizer step; empty: none
  std::vector<double> choice_noise;     // [T,E] added to what is chosen by; empty: none
  // Of each token, best first: experts that something else than its logits chose; empty: nothing did.
  std::vector<std::vector<int64_t>> given;
  // Who is dropped by chance: smaller stays.
  std::vector<double> chance;  // of each slot in order; only of DropOrder::kRandom

  struct Slot {
    int64_t token, expert;
    Real gate;
    bool kept = true;
  };
  std::vector<std::vector<Slot>> slots;  // of each token, best first
  std::vector<int64_t> load;             // [E] before dropping
  std::vector<Real> p;                   // [T,E]
  int64_t num_tokens = 0;
  Real balance_loss = 0, z_loss = 0, entropy = 0, gshard = 0, importance = 0, load_loss = 0, sequence = 0, global = 0;

  int64_t T() const { return static_cast<int64_t>(logits.size()) / E(); }
  int64_t E() const { return config.num_experts; }

  void Run() {
    slots.assign(Size(T()), {}), load.assign(Size(E()), 0), p.assign(logits.size(), Real(0));
    num_tokens = 0, balance_loss = z_loss = entropy = Real(0);
    std::vector<Real> p_sum(Size(E()), Real(0)), chances(Size(E()), Real(0));
    for (int64_t t = 0; t < T(); ++t) {
      if (!IsToken(t)) continue;
      ++num_tokens;
      std::vector<Real> z(logits.begin() + t * E(), logits.begin() + (t + 1) * E());
      const std::vector<Real> clean = z;
      for (int64_t e = 0; !noise.empty() && e < E(); ++e) z[Size(e)] += Real(noise[Size(t * E() + e)]);
      for (int64_t e = 0; !noise.empty() && e < E(); ++e) chances[Size(e)] += Chance(clean[Size(e)], z, e);
      const std::vector<Real> softmax = Softmax(z, All());
      const std::vector<Real> s = Scores(z, softmax);
      slots[Size(t)] = config.score == RouterScore::kSparsemixer ? Sparsemix(t, z) : Chosen(t, z, s);
      for (const Slot& slot : slots[Size(t)]) ++load[Size(slot.expert)];
      Real sum(0);
      for (const Real& x : s) sum += x;
      const bool is_softmax = config.score == RouterScore::kSoftmax || config.score == RouterScore::kTopKSoftmax ||
                              config.score == RouterScore::kSparsemixer;
      for (int64_t e = 0; e < E(); ++e) {
        const Real share = is_softmax ? softmax[Size(e)] : ValueOf(sum) > 0 ? s[Size(e)] / sum : Real(0);
        p[Size(t * E() + e)] = share;
        p_sum[Size(e)] += share;
      }
      const Real lse = LogSumExp(z);
      z_loss += lse * lse;
      entropy += Entropy(z, softmax, lse, &p[Size(t * E())], is_softmax);
    }
    Drop();
    for (auto& of_token : slots) Normalize(of_token);
    if (num_tokens == 0) return;
    const Real n(static_cast<double>(num_tokens));
    const double num_slots = static_cast<double>(std::max<int64_t>(1, std::accumulate(load.begin(), load.end(), int64_t{0})));
    for (int64_t e = 0; e < E(); ++e) {
      balance_loss += Real(static_cast<double>(load[Size(e)]) / num_slots) * (p_sum[Size(e)] / n);
    }
    balance_loss *= Real(static_cast<double>(E()));
    z_loss = z_loss / n, entropy = entropy / n;
    MoreLosses(p_sum);
    load_loss = SquaredVariation(chances);
  }

  // sum over slots, in order, of d_gate * gate (dropped ones too: their d_gate is 0), plus the losses.
  Real Objective(const std::vector<double>& d_gate, double loss_scale) const {
    Real sum = Real(loss_scale * config.balance_loss) * balance_loss + Real(loss_scale * config.z_loss) * z_loss +
               Real(loss_scale * config.gshard_loss) * gshard + Real(loss_scale * config.importance_loss) * importance +
               Real(loss_scale * config.load_loss) * load_loss + Real(loss_scale * config.sequence_loss) * sequence +
               Real(loss_scale * config.global_loss) * global;
    size_t i = 0;
    for (const auto& of_token : slots) {
      for (const Slot& s : of_token) sum += Real(d_gate[i++]) * s.gate;
    }
    return sum;
  }
  bool IsToken(int64_t t) const { return valid.empty() || valid[Size(t)] != 0; }

 private:
  static size_t Size(int64_t i) { return static_cast<size_t>(i); }
  std::vector<bool> All() const { return std::vector<bool>(Size(E()), true); }

  static Real Largest(const std::vector<Real>& z, const std::vector<bool>& among) {
    const Real* max = nullptr;
    for (size_t e = 0; e < z.size(); ++e) {
      if (among[e] && (max == nullptr || ValueOf(z[e]) > ValueOf(*max))) max = &z[e];
    }
    return *max;
  }
  static std::vector<Real> Softmax(const std::vector<Real>& z, const std::vector<bool>& among) {
    using std::exp;
    const Real max = Largest(z, among);
    Real sum(0);
    std::vector<Real> out(z.size(), Real(0));
    for (size_t e = 0; e < z.size(); ++e) {
      if (among[e]) out[e] = exp(z[e] - max), sum += out[e];
    }
    for (Real& x : out) x = x / sum;
    return out;
  }
  Real LogSumExp(const std::vector<Real>& z) const {
    using std::exp, std::log;
    const Real max = Largest(z, All());
    Real sum(0);
    for (const Real& x : z) sum += exp(x - max);
    return max + log(sum);
  }
  Real Entropy(const std::vector<Real>& z, const std::vector<Real>& softmax, const Real& lse, const Real* share,
               bool is_softmax) const {
    using std::log;
    Real sum(0);
    for (size_t e = 0; e < z.size(); ++e) {
      if (is_softmax) {
        sum += softmax[e] * (lse - z[e]);
      } else if (ValueOf(share[e]) > 0) {
        sum += -(share[e] * log(share[e]));
      }
    }
    return sum;
  }

  std::vector<Real> Scores(const std::vector<Real>& z, const std::vector<Real>& softmax) const {
    using std::exp, std::log, std::sqrt;
    std::vector<Real> out;
    for (size_t e = 0; e < z.size(); ++e) {
      const bool positive = ValueOf(z[e]) > 0;
      switch (config.score) {
        case RouterScore::kSigmoid:
          out.push_back(Real(1) / (Real(1) + exp(-z[e])));
          break;
        case RouterScore::kSqrtSoftplus:
          out.push_back(sqrt((positive ? z[e] : Real(0)) + log(Real(1) + exp(positive ? -z[e] : z[e]))));
          break;
        case RouterScore::kRelu:
          out.push_back(positive ? z[e] : Real(0));
          break;
        default:
          out.push_back(softmax[e]);
      }
    }
    return out;
  }

  std::vector<Slot> Sparsemix(int64_t t, const std::vector<Real>& z) const {
    std::vector<Slot> out;
    std::vector<bool> left = All();
    for (int64_t j = 0; j < config.top_k; ++j) {
      const double max = ValueOf(Largest(z, left));
      std::vector<bool> near = left;
      int64_t best = -1;
      for (int64_t e = 0; e < E(); ++e) {
        if (!left[Size(e)]) continue;
        const double v = ValueOf(z[Size(e)]);
        near[Size(e)] = !((max - v) / std::max(std::abs(v), max) > 2 * config.sparsemixer_jitter);
        if (best < 0 && v == max) best = e;
      }
      out.push_back({t, best, Softmax(z, near)[Size(best)]});
      left[Size(best)] = false;
    }
    return out;
  }

  std::vector<Slot> Chosen(int64_t t, const std::vector<Real>& z, const std::vector<Real>& s) const {
    // What it is chosen by, as numbers.
    std::vector<double> v;
    for (int64_t e = 0; e < E(); ++e) {
      const bool plain = bias.empty() && config.groups == 1;  // scores grow with logits
      v.push_back(ValueOf(plain || config.score == RouterScore::kTopKSoftmax ? z[Size(e)] : s[Size(e)]));
      if (!bias.empty()) v.back() += bias[Size(e)];
      if (!choice_noise.empty()) v.back() += choice_noise[Size(t * E() + e)];
    }
    if (config.groups > 1) MaskGroups(v);
    std::vector<int64_t> order(Size(E()));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return v[Size(a)] > v[Size(b)]; });
    int64_t count = config.top_k;
    if (config.score == RouterScore::kRelu) {
      count = std::count_if(z.begin(), z.end(), [](const Real& x) { return ValueOf(x) > 0; });
    }
    order.resize(Size(count));
    if (!given.empty()) order = given[Size(t)];
    std::vector<Slot> out;
    if (config.score == RouterScore::kTopKSoftmax) {
      std::vector<bool> among(Size(E()), false);
      for (const int64_t e : order) among[Size(e)] = true;
      const std::vector<Real> gates = Softmax(z, among);
      for (const int64_t e : order) out.push_back({t, e, gates[Size(e)]});
    } else {
      for (const int64_t e : order) out.push_back({t, e, s[Size(e)]});
    }
    return out;
  }

  void MaskGroups(std::vector<double>& v) const {
    const int64_t size = E() / config.groups;
    std::vector<std::pair<double, int64_t>> groups;
    for (int64_t g = 0; g < config.groups; ++g) {
      std::vector<double> in(v.begin() + g * size, v.begin() + (g + 1) * size);
      std::sort(in.rbegin(), in.rend());
      groups.push_back({config.group_score == GroupScore::kMax ? in[0] : in[0] + in[1], g});
    }
    std::stable_sort(groups.begin(), groups.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    for (size_t i = Size(config.top_groups); i < groups.size(); ++i) {
      for (int64_t e = groups[i].second * size; e < (groups[i].second + 1) * size; ++e) {
        v[Size(e)] = config.zero_other_groups ? 0 : -INFINITY;
      }
    }
  }

  int64_t CapacityFor(int64_t tokens) const {
    const CapacityConfig& c = config.capacity;
    double rows = factor * static_cast<double>(tokens) / static_cast<double>(E());
    if (c.times_top_k) rows *= static_cast<double>(config.top_k);
    const double nearest = std::round(rows), close = std::abs(rows - nearest) < 1e-9 ? 1 : 0;
    rows = close == 1 || c.rounding == Rounding::kNearest ? nearest
           : c.rounding == Rounding::kCeil                ? std::ceil(rows)
                                                          : std::floor(rows);
    const auto whole = std::max(c.least, static_cast<int64_t>(rows));
    return whole == 0 && c.zero_is_dropless ? INT64_MAX : whole;
  }

  void Drop() {
    if (factor <= 0) return;
    std::vector<int32_t> begins = sequence_begin;
    if (begins.empty() || config.capacity.scope == CapacityScope::kBatch) begins = {0, static_cast<int32_t>(T())};
    int64_t number = 0;  // of slots before this sequence
    for (size_t i = 0; i + 1 < begins.size(); ++i) {
      struct Wish {
        Slot* slot;
        int64_t choice, number;
      };
      std::vector<std::vector<Wish>> wishes(Size(E()));
      int64_t tokens = 0;
      for (int64_t t = begins[i]; t < begins[i + 1]; ++t) {
        tokens += IsToken(t) ? 1 : 0;
        for (size_t j = 0; j < slots[Size(t)].size(); ++j) {
          Slot& s = slots[Size(t)][j];
          wishes[Size(s.expert)].push_back({&s, static_cast<int64_t>(j), number++});
        }
      }
      const int64_t capacity = CapacityFor(tokens);
      for (auto& queue : wishes) {
        std::stable_sort(queue.begin(), queue.end(), [&](const Wish& a, const Wish& b) {
          switch (config.capacity.drop) {
            case DropOrder::kPosition:
              return false;
            case DropOrder::kFirstChoices:
              return a.choice < b.choice;
            case DropOrder::kScore:
              return ValueOf(DropScore(*a.slot)) > ValueOf(DropScore(*b.slot));
            case DropOrder::kRandom:
              return chance[Size(a.number)] < chance[Size(b.number)];
          }
          return false;
        });
        for (size_t q = 0; q < queue.size(); ++q) queue[q].slot->kept = static_cast<int64_t>(q) < capacity;
      }
    }
  }
  // The gate as it is when drops are decided.
  Real DropScore(const Slot& s) const {
    if (!SumsToOne() || config.normalize_after_drop) return s.gate;
    Real sum(0);
    for (const Slot& other : slots[Size(s.token)]) sum += other.gate;
    return s.gate / sum;
  }

  // E sum_e f_e P_e over tokens [begin, end), times their share of all tokens; f from the first `choices` of each token.
  Real SwitchOf(int64_t begin, int64_t end, size_t choices, const std::vector<int64_t>& before) const {
    std::vector<double> count(before.begin(), before.end());
    count.resize(Size(E()));
    std::vector<Real> sum(Size(E()), Real(0));
    double total = std::accumulate(count.begin(), count.end(), 0.0);
    for (int64_t t = begin; t < end; ++t) {
      for (size_t j = 0; j < std::min(choices, slots[Size(t)].size()); ++j) ++count[Size(slots[Size(t)][j].expert)], ++total;
      for (int64_t e = 0; e < E(); ++e) sum[Size(e)] += p[Size(t * E() + e)];
    }
    Real out(0);
    for (int64_t e = 0; total > 0 && e < E(); ++e) {
      out += Real(static_cast<double>(E()) * count[Size(e)] / total) * sum[Size(e)];
    }
    return out / Real(static_cast<double>(num_tokens));
  }
  void MoreLosses(const std::vector<Real>& p_sum) {
    gshard = SwitchOf(0, T(), 1, {});
    global = SwitchOf(0, T(), Size(E()), tokens_before);
    sequence = Real(0);
    const std::vector<int32_t> begins =
        sequence_begin.empty() ? std::vector<int32_t>{0, static_cast<int32_t>(T())} : sequence_begin;
    for (size_t i = 0; i + 1 < begins.size(); ++i) sequence += SwitchOf(begins[i], begins[i + 1], Size(E()), {});
    importance = SquaredVariation(p_sum);
  }
  // Variance over experts, over the squared mean.
  Real SquaredVariation(const std::vector<Real>& of_experts) const {
    Real mean(0), variance(0);
    const Real count(static_cast<double>(E()));
    for (const Real& x : of_experts) mean += x / count;
    for (const Real& x : of_experts) variance += (x - mean) * (x - mean) / count;
    return ValueOf(mean) > 0 ? variance / (mean * mean) : Real(0);
  }
  // That expert e is among the k best if its own noise is drawn anew and all else stays.
  Real Chance(const Real& clean, std::vector<Real> noisy, int64_t e) const {
    noisy.erase(noisy.begin() + e);
    if (static_cast<int64_t>(noisy.size()) < config.top_k) return Real(1);
    std::sort(noisy.begin(), noisy.end(), [](const Real& a, const Real& b) { return ValueOf(a) > ValueOf(b); });
    return NormalCdf((clean - noisy[Size(config.top_k - 1)]) / Real(config.noise_scale));
  }

  bool SumsToOne() const { return config.score == RouterScore::kTopKSoftmax || config.normalize; }
  void Normalize(std::vector<Slot>& of_token) const {
    if (SumsToOne()) {
      Real sum(0);
      for (const Slot& s : of_token) {
        if (s.kept || !config.normalize_after_drop) sum += s.gate;
      }
      for (Slot& s : of_token) {
        s.gate = config.normalize_after_drop && !s.kept ? Real(0) : s.gate / (sum + Real(config.normalize_epsilon));
      }
    }
    for (Slot& s : of_token) s.gate = s.gate * Real(config.scale);
  }
};

}  // namespace moe::test
