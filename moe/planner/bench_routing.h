#pragma once
// Tokens handed to experts with loads of a given shape, without a router: for cases whose balance is part of the question.

#include <memory>
#include <string_view>
#include <vector>

#include "moe/mixture/dispatch_plan.h"
#include "moe/planner/bench_shapes.h"

namespace moe {

enum class BenchLoads : uint8_t {
  kBalanced,  // T k / E rows an expert, one more for some
  kZipf,      // the i-th busiest expert gets rows as 1/i, at most T
};
std::string_view Name(BenchLoads loads);

// Rows of each expert, summing to T k, each at most T. Which expert is how busy is a function of the shape alone.
std::vector<int64_t> ExpertLoads(const MoeShape& s, BenchLoads kind);

// A routing of these loads, every token with k different experts, tokens of an expert spread over all; and its plan. Spans live
// in this.
struct BenchRouting {
  std::vector<int32_t> slot_begin, expert;
  std::vector<float> gate;
  Arena arena;
  Routing routing;
  DispatchPlan plan;
};
std::shared_ptr<const BenchRouting> MakeBenchRouting(const MoeShape& s, BenchLoads kind, ExecContext& ctx);

}  // namespace moe
