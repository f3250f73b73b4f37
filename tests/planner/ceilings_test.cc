#include "moe/planner/ceilings.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "moe/base/cpu_info.h"

namespace moe {
namespace {

TEST(CeilingProbe, BufferIsFarLargerThanTheCache) {
  EXPECT_GE(CeilingProbe::DefaultBytes(), std::min(4 * GetCpuInfo().l3_bytes, int64_t{1} << 30));
  EXPECT_GE(CeilingProbe::DefaultBytes(), int64_t{256} << 20);
  EXPECT_LE(CeilingProbe::DefaultBytes(), int64_t{1} << 30);
}

// Samples of reading check the sum of what they read, so one that skipped something would abort.
TEST(CeilingProbe, SamplesArePlausibleOnEveryTable) {
  ThreadPool pool(2);
  for (const KernelTable* table : SupportedKernelTables()) {
    SCOPED_TRACE(table->name);
    CeilingProbe probe(int64_t{5} << 20, *table);
    EXPECT_EQ(probe.buffer_bytes(), int64_t{8} << 20);  // whole chunks
    for (int i = 0; i < 3; ++i) {
      for (int c = 0; c < kNumCeilings; ++c) {
        const double value = probe.Sample(static_cast<Ceiling>(c), pool);
        if (static_cast<Ceiling>(c) == Ceiling::kBarrier) {
          EXPECT_LT(value, 1);
        } else {
          EXPECT_GT(value, 1e6) << c;
        }
        EXPECT_GT(value, 0) << c;
        EXPECT_LT(value, 1e15) << c;
      }
    }
  }
}

}  // namespace
}  // namespace moe
