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
    for (const Ceilings& c : probe.by_threads) {
      for (const Measured* m :
           {&c.read_bytes_per_s, &c.chunk_read_bytes_per_s, &c.rmw_bytes_per_s, &c.peak_f32, &c.peak_bf16, &c.peak_int8}) {
        EXPECT_GT(m->min, 1e6);
        EXPECT_LE(m->min, m->median);
        EXPECT_LE(m->median, m->max);
        EXPECT_LT(m->max, 1e15);
      }
      EXPECT_GT(c.barrier_s.median, 0);
      EXPECT_LT(c.barrier_s.median, 1);
    }
  }
}

}  // namespace
}  // namespace moe
