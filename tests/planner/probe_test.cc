#include "moe/planner/probe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace moe {
namespace {

TEST(ProbeMachine, HasEveryFigureForEveryThreadCountOnEveryTable) {
  for (const KernelTable* table : SupportedKernelTables()) {
    SCOPED_TRACE(table->name);
    std::vector<double> shares;
    const MachineProbe probe = ProbeMachine({.max_threads = 3, .seconds = 0, .buffer_bytes = int64_t{9} << 20}, *table,
                                            [&](double share) { shares.push_back(share); });
    EXPECT_EQ(probe.isa, table->name);
    EXPECT_FALSE(probe.cpu.empty());
    EXPECT_EQ(probe.rounds, 3);
    EXPECT_FALSE(probe.interrupted);
    ASSERT_EQ(probe.by_threads.size(), 3u);
    EXPECT_EQ(probe.by_threads[0].threads, 1);
    EXPECT_EQ(probe.by_threads[1].threads, 2);
    EXPECT_EQ(probe.all().threads, 3);
    ASSERT_FALSE(shares.empty());
    EXPECT_EQ(shares.back(), 1);
    for (const CeilingsOf& c : probe.by_threads) {
      for (int i = 0; i < kNumCeilings; ++i) {
        const auto ceiling = static_cast<Ceiling>(i);
        SCOPED_TRACE(i);
        EXPECT_GT(c[ceiling].min, ceiling == Ceiling::kBarrier ? 0 : 1e6);
        EXPECT_LE(c[ceiling].min, c[ceiling].median);
        EXPECT_LE(c[ceiling].median, c[ceiling].max);
        EXPECT_LT(c[ceiling].max, ceiling == Ceiling::kBarrier ? 1 : 1e15);
      }
    }
  }
}

TEST(Summarize, TakesTheMedianOfOddAndEvenCounts) {
  EXPECT_EQ(Summarize({3, 1, 2}).median, 2);
  EXPECT_EQ(Summarize({4, 1, 2, 3}).median, 2.5);
  EXPECT_EQ(Summarize({4, 1, 2, 3}).min, 1);
  EXPECT_EQ(Summarize({4, 1, 2, 3}).max, 4);
}

}  // namespace
}  // namespace moe
