#include "moe/planner/bandwidth_probe.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "moe/base/cpu_info.h"

namespace moe {
namespace {

TEST(BandwidthProbe, BufferIsFarLargerThanTheCache) {
  EXPECT_GE(BandwidthProbe::DefaultBytes(), std::min(4 * GetCpuInfo().l3_bytes, int64_t{1} << 30));
  EXPECT_GE(BandwidthProbe::DefaultBytes(), BandwidthProbe::kSampleBytes);
  EXPECT_LE(BandwidthProbe::DefaultBytes(), int64_t{1} << 30);
}

// Every sample checks the sum of what it read, so one that skipped something would abort.
TEST(BandwidthProbe, SamplesArePlausibleOnEveryTable) {
  ThreadPool pool(2);
  for (const KernelTable* table : SupportedKernelTables()) {
    SCOPED_TRACE(table->name);
    Arena arena;
    ExecContext ctx{pool, arena, *table};
    BandwidthProbe probe(int64_t{5} << 20, int64_t{2} << 20, ctx);
    EXPECT_EQ(probe.sample_bytes(), int64_t{2} << 20);
    EXPECT_EQ(probe.buffer_bytes(), int64_t{6} << 20);  // whole samples
    for (int i = 0; i < 4; ++i) {
      const double rate = probe.Sample(ctx);
      EXPECT_GT(rate, 1e6);
      EXPECT_LT(rate, 1e13);
    }
  }
}

TEST(BandwidthProbe, SmallestSampleIsOneLine) {
  ThreadPool pool(1);
  Arena arena;
  ExecContext ctx{pool, arena, *SupportedKernelTables()[0]};
  BandwidthProbe probe(1, 64, ctx);
  EXPECT_EQ(probe.buffer_bytes(), 64);
  EXPECT_GT(probe.Sample(ctx), 0);
}

}  // namespace
}  // namespace moe
