#include "moe/mixture/moe_metrics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moe {

int64_t Assignments(std::span<const int64_t> tokens_per_expert) {
  return std::accumulate(tokens_per_expert.begin(), tokens_per_expert.end(), int64_t{0});
}

double MaxViolation(std::span<const int64_t> tokens_per_expert) {
  const int64_t total = Assignments(tokens_per_expert);
  if (total == 0) return 0;
  const int64_t most = *std::max_element(tokens_per_expert.begin(), tokens_per_expert.end());
  return static_cast<double>(most) * static_cast<double>(tokens_per_expert.size()) / static_cast<double>(total) - 1;
}

double CoefficientOfVariation(std::span<const int64_t> tokens_per_expert) {
  const int64_t total = Assignments(tokens_per_expert);
  if (total == 0) return 0;
  const double mean = static_cast<double>(total) / static_cast<double>(tokens_per_expert.size());
  double squares = 0;
  for (const int64_t n : tokens_per_expert) squares += (static_cast<double>(n) - mean) * (static_cast<double>(n) - mean);
  return std::sqrt(squares / static_cast<double>(tokens_per_expert.size())) / mean;
}

double LoadEntropy(std::span<const int64_t> tokens_per_expert) {
  const auto total = static_cast<double>(Assignments(tokens_per_expert));
  double entropy = 0;
  for (const int64_t n : tokens_per_expert) {
    if (n > 0) entropy -= static_cast<double>(n) / total * std::log(static_cast<double>(n) / total);
  }
  return entropy;
}

int64_t DeadExperts(std::span<const int64_t> tokens_per_expert) {
  return std::count(tokens_per_expert.begin(), tokens_per_expert.end(), int64_t{0});
}

double DropRate(int64_t num_dropped, std::span<const int64_t> tokens_per_expert) {
  const int64_t total = Assignments(tokens_per_expert);
  return total == 0 ? 0 : static_cast<double>(num_dropped) / static_cast<double>(total);
}

}  // namespace moe
