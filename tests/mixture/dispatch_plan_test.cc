#include "moe/mixture/dispatch_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "moe/mixture/capacity.h"
#include "testing/matchers.h"
#include "testing/random.h"

namespace moe::test {
namespace {

// A routing that owns its arrays. Any number of slots per token.
struct OwnedRouting {
  std::vector<int32_t> slot_begin{0}, expert;
  std::vector<float> gate;
  Routing view() { return {.slot_begin = slot_begin, .expert = expert, .gate = gate}; }
};
OwnedRouting RandomRouting(Rng& rng, int64_t T, int64_t k, int64_t E, bool ragged) {
  OwnedRouting out;
  for (int64_t t = 0; t < T; ++t) {
    std::vector<int32_t> experts(static_cast<size_t>(E));
    for (size_t e = 0; e < experts.size(); ++e) experts[e] = static_cast<int32_t>(e);
    for (size_t e = 0; e + 1 < experts.size(); ++e) {
      std::swap(experts[e], experts[e + static_cast<size_t>(rng.Below(E - static_cast<int64_t>(e)))]);
    }
    const int64_t n = ragged ? rng.Below(k + 1) : k;
    out.expert.insert(out.expert.end(), experts.begin(), experts.begin() + n);
    out.gate.resize(out.expert.size(), 0.5f);
    out.slot_begin.push_back(static_cast<int32_t>(out.expert.size()));
  }
  return out;
}

// The first `capacity` slots of every expert.
std::vector<uint8_t> Kept(const std::vector<int32_t>& expert, int64_t E, int64_t capacity) {
  std::vector<uint8_t> kept;
  std::vector<int64_t> count(static_cast<size_t>(E));
  for (const int32_t e : expert) kept.push_back(capacity == kNoCapacity || count[static_cast<size_t>(e)]++ < capacity ? 1 : 0);
  return kept;
}

struct Context {
  explicit Context(int threads = 1) : pool(threads), ctx{pool, arena, *SupportedKernelTables().front()} {}
  ThreadPool pool;
  Arena arena;
  ExecContext ctx;
};

// The plan as its definition reads: each expert's queue of slots, cut at the capacity.
void ExpectPlanOf(const DispatchPlan& plan, const OwnedRouting& routing, int64_t E, int64_t capacity) {
  std::vector<std::vector<int32_t>> queue(static_cast<size_t>(E));
  std::vector<int32_t> slot_token;
  for (size_t t = 0; t + 1 < routing.slot_begin.size(); ++t) {
    for (int32_t s = routing.slot_begin[t]; s < routing.slot_begin[t + 1]; ++s) {
      slot_token.push_back(static_cast<int32_t>(t));
      queue[static_cast<size_t>(routing.expert[static_cast<size_t>(s)])].push_back(s);
    }
  }
  std::vector<int32_t> expert_begin{0}, row_slot, row_token, slot_row(routing.expert.size(), -1);
  for (auto& slots : queue) {
    if (capacity != kNoCapacity && static_cast<int64_t>(slots.size()) > capacity) slots.resize(static_cast<size_t>(capacity));
    for (const int32_t s : slots) {
      slot_row[static_cast<size_t>(s)] = static_cast<int32_t>(row_slot.size());
      row_slot.push_back(s);
      row_token.push_back(slot_token[static_cast<size_t>(s)]);
    }
    expert_begin.push_back(static_cast<int32_t>(row_slot.size()));
  }
  ExpectSameBits(plan.expert_begin, expert_begin);
  ExpectSameBits(plan.row_slot, row_slot);
  ExpectSameBits(plan.row_token, row_token);
  ExpectSameBits(plan.slot_row, slot_row);
  EXPECT_EQ(plan.num_dropped, static_cast<int64_t>(routing.expert.size() - row_slot.size()));
  EXPECT_EQ(plan.num_experts(), E);
  EXPECT_EQ(plan.num_rows(), static_cast<int64_t>(row_slot.size()));
}

TEST(DispatchPlan, IsTheStableSortOfItsSlotsWithAndWithoutCapacity) {
  Context serial, parallel(4);
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    // Every 10th has several chunks of tokens.
    const int64_t T = seed % 10 == 9 ? 1500 + rng.Below(600) : rng.Below(50);
    const int64_t k = 1 + rng.Below(4), E = k + rng.Below(9);
    OwnedRouting routing = RandomRouting(rng, T, k, E, seed % 3 == 0);
    for (const int64_t capacity : {kNoCapacity, int64_t{0}, rng.Below(T + 1), T + 5, INT64_MAX}) {
      for (Context* c : {&serial, &parallel}) {
        c->arena.Reset();
        ExpectPlanOf(BuildDispatchPlan(routing.view(), E, Kept(routing.expert, E, capacity), c->ctx), routing, E, capacity);
      }
    }
  }
}

TEST(DispatchPlan, DroplessKeepsEverySlotOnce) {
  Context c;
  Rng rng(3);
  OwnedRouting routing = RandomRouting(rng, 100, 3, 7, false);
  const DispatchPlan plan = BuildDispatchPlan(routing.view(), 7, {}, c.ctx);
  EXPECT_EQ(plan.num_dropped, 0);
  std::vector<int> seen(routing.expert.size());
  for (int64_t e = 0; e < 7; ++e) {
    int32_t last = -1;
    for (int32_t r = plan.expert_begin[static_cast<size_t>(e)]; r < plan.expert_begin[static_cast<size_t>(e) + 1]; ++r) {
      const int32_t slot = plan.row_slot[static_cast<size_t>(r)];
      EXPECT_EQ(routing.expert[static_cast<size_t>(slot)], e);
      EXPECT_GT(slot, last);  // in slot order
      last = slot;
      ++seen[static_cast<size_t>(slot)];
    }
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), static_cast<std::ptrdiff_t>(seen.size()));
}

TEST(DispatchPlan, NoExpertRowIsTakenByASlotThatCameTooLate) {
  Context c;
  OwnedRouting routing{{0, 2, 4, 6}, {1, 0, 1, 0, 1, 2}, {1, 1, 1, 1, 1, 1}};
  const DispatchPlan plan = BuildDispatchPlan(routing.view(), 3, Kept(routing.expert, 3, 2), c.ctx);
  ExpectSameBits(plan.slot_row, std::vector<int32_t>{2, 0, 3, 1, -1, 4});
  EXPECT_EQ(plan.num_dropped, 1);
}

TEST(DispatchPlan, KeptOfAnotherRoutingIsOurBug) {
  ThrowingChecks guard;
  Context c;
  OwnedRouting routing{{0, 1}, {0}, {1}};
  EXPECT_THROW(BuildDispatchPlan(routing.view(), 1, std::vector<uint8_t>{1, 1}, c.ctx), CheckError);
}

}  // namespace
}  // namespace moe::test
