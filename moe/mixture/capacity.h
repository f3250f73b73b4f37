#pragma once
// How many rows an expert takes, and which slots lose their place when more want one.

#include <cstdint>
#include <span>

#include "moe/mixture/routing.h"

namespace moe {

inline constexpr int64_t kNoCapacity = -1;  // dropless

// Rows of one expert for `tokens` tokens, by a factor of CapacityConfig's meaning; kNoCapacity where the factor is 0, or the
// rows are and that means dropless.
int64_t ExpertCapacity(const RouterConfig& config, double factor, int64_t tokens);

// Which slots keep their place: [S], 0: dropped; empty when all do. `factor`: of CapacityConfig, the training or the evaluation
// one. sequence_begin [sequences+1], rows of sequences, empty: one; used where each has a capacity of its own. key: what
// DropOrder::kRandom is a function of, beside token and choice.
std::span<const uint8_t> KeepWithinCapacity(const RouterConfig& config, double factor, const Routing& routing,
                                            std::span<const int32_t> sequence_begin, uint64_t key, ExecContext& ctx);

}  // namespace moe
