#pragma once
// The sampler's chain, step by step over the whole vocabulary, in double; quadratic and without a sort.

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace moe::reference {

struct SamplerSettings {
  double temperature = 1, top_p = 1, min_p = 0, repeat_penalty = 1;
  int64_t top_k = 0, repeat_last_n = 64;
};

// Probability of every token to be drawn [V]; 0 for those that no draw can give.
inline std::vector<double> SampleDistribution(const SamplerSettings& s, std::span<const float> logits,
                                              std::span<const int32_t> history) {
  const auto V = static_cast<int64_t>(logits.size());
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  std::vector<double> z(logits.begin(), logits.end());
  for (int64_t t = 0; t < V; ++t) {
    bool seen = false;
    const auto n = static_cast<int64_t>(history.size());
    for (int64_t i = 0; i < n; ++i) seen |= history[i] == t && (s.repeat_last_n < 0 || i >= n - s.repeat_last_n);
    if (seen) z[t] = z[t] > 0 ? z[t] / s.repeat_penalty : z[t] * s.repeat_penalty;
  }
  std::vector<int64_t> rank(z.size(), 0);  // how many tokens come before this one
  for (int64_t a = 0; a < V; ++a) {
    for (int64_t b = 0; b < V; ++b) rank[a] += z[b] > z[a] || (z[b] == z[a] && b < a);
  }
  std::vector<bool> kept(z.size());
  double best = kNever;
  for (int64_t t = 0; t < V; ++t) {
    kept[t] = z[t] != kNever && (s.top_k == 0 || rank[t] < s.top_k);
    best = std::max(best, z[t]);
  }
  double sum = 0;
  for (int64_t t = 0; t < V; ++t) sum += kept[t] ? std::exp(z[t] - best) : 0;
  std::vector<bool> nucleus(kept);
  for (int64_t t = 0; t < V && s.top_p < 1; ++t) {
    double before = 0;  // probability of all that come before t: t is needed only if they do not suffice
    for (int64_t b = 0; b < V; ++b) before += kept[b] && rank[b] < rank[t] ? std::exp(z[b] - best) / sum : 0;
    nucleus[t] = kept[t] && (rank[t] == 0 || before < s.top_p);
  }
  std::vector<double> p(z.size(), 0);
  sum = 0;
  for (int64_t t = 0; t < V; ++t) {
    if (!nucleus[t] || (rank[t] > 0 && std::exp(z[t] - best) < s.min_p)) continue;
    p[t] = s.temperature == 0 ? (rank[t] == 0 ? 1 : 0) : std::exp((z[t] - best) / s.temperature);
    sum += p[t];
  }
  for (double& x : p) x /= sum;
  return p;
}

}  // namespace moe::reference
