#pragma once
// How long a layer takes with the routing of other policies, under every executor.

#include <functional>
#include <span>
#include <vector>

#include "moe/planner/route_report.h"

namespace moe {

inline constexpr int kTimedRepetitions = 5;

// What is to be timed: a layer, and rows that its router has seen.
struct RoutedRows {
  MoeLayer& layer;
  int64_t D = 0;
  MatView<const float> logits;              // [T,E]
  std::span<const int32_t> ids;             // [T]
  std::span<const int32_t> sequence_begin;  // [sequences+1], the last is T
  std::span<const float> selection_bias;    // [E] for policies that learn one; empty: none
};

struct PolicyTimes {
  int64_t rows = 0;  // the first of them, fewer than there are where all would take too long
  int repetitions = 0;
  std::vector<std::vector<ExecutorTime>> times;  // [policies], each as kExecutors
};

// Each run is selection by the policy from the logits on, the layer's router product, and all of its experts: what a forward
// pass in inference would take, with the drops of training if `training`. Runs take turns; an untimed one precedes them. The
// layer's config is as it was in the end.
PolicyTimes TimePolicies(const RoutedRows& rows, std::span<const RouterConfig> policies, bool training, uint64_t seed,
                         double seconds, const std::function<bool()>& go_on, ExecContext& ctx);

}  // namespace moe
