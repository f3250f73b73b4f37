#pragma once
// How even the load is, from assignments per expert (before dropping, padding not among them). Without any, all but DeadExperts
// are 0.

#include <cstdint>
#include <span>

namespace moe {

int64_t Assignments(std::span<const int64_t> tokens_per_expert);  // their sum
// max / mean - 1: 0 is perfect balance, E - 1 everything to one. (Wang et al. 2024, eq. 4)
double MaxViolation(std::span<const int64_t> tokens_per_expert);
// Standard deviation / mean.
double CoefficientOfVariation(std::span<const int64_t> tokens_per_expert);
// Of the shares, nats: ln E at perfect balance. (The router's own entropy, of its probabilities, is RouterAux::entropy.)
double LoadEntropy(std::span<const int64_t> tokens_per_expert);
// Experts without a single assignment; all of them when there are no tokens.
int64_t DeadExperts(std::span<const int64_t> tokens_per_expert);
// Dropped slots as a share of all.
double DropRate(int64_t num_dropped, std::span<const int64_t> tokens_per_expert);

}  // namespace moe
