#include "moe/mixture/balance.h"

#include <algorithm>
#include <numeric>

#include "moe/base/check.h"

namespace moe {

void UpdateSelectionBias(const RouterConfig& config, std::span<const int64_t> tokens_per_expert, std::span<float> bias) {
  const size_t E = bias.size();
  MOE_CHECK(tokens_per_expert.size() == E && config.num_experts == static_cast<int64_t>(E),
            "the load of {} experts, a bias of {}, for {}", tokens_per_expert.size(), E, config.num_experts);
  const int64_t total = std::accumulate(tokens_per_expert.begin(), tokens_per_expert.end(), int64_t{0});
  if (total == 0) return;
  const double mean = static_cast<double>(total) / static_cast<double>(E);
  switch (config.balance_bias) {
    case BiasRule::kNone:
    case BiasRule::kKept:
      return;
    case BiasRule::kSign: {
      // Whole numbers: n E against the total. Without taking off the mean all biases would drift together.
      const auto sign = [&](int64_t n) {
        const int64_t scaled = n * static_cast<int64_t>(E);
        return scaled < total ? 1 : scaled > total ? -1 : 0;
      };
      int64_t sum = 0;
      for (const int64_t n : tokens_per_expert) sum += sign(n);
      const double drift = static_cast<double>(sum) / static_cast<double>(E);
      for (size_t e = 0; e < E; ++e) {
        bias[e] += static_cast<float>(config.bias_rate * (static_cast<double>(sign(tokens_per_expert[e])) - drift));
      }
      return;
    }
    case BiasRule::kLoad: {
      constexpr double kNew = 0.1;  // weight of this step; the bias itself is the average
      for (size_t e = 0; e < E; ++e) {
        const double wanted = -config.bias_rate * (static_cast<double>(tokens_per_expert[e]) / mean - 1);
        bias[e] += static_cast<float>(kNew * (wanted - static_cast<double>(bias[e])));
      }
      return;
    }
  }
}

double NextCapacityFactor(const CapacityConfig& config, int64_t num_slots, int64_t num_dropped, double factor) {
  if (num_slots == 0) return factor;
  const double dropped = static_cast<double>(num_dropped) / static_cast<double>(num_slots);
  return std::clamp(factor + 0.5 * (dropped - config.target_drop), config.least_factor, config.most_factor);
}

}  // namespace moe
