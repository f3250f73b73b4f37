#include "moe/base/cpu_info.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "moe/base/clock.h"
#include "moe/base/version.h"

namespace moe {
namespace {

TEST(CpuInfo, IsSane) {
  const CpuInfo& info = GetCpuInfo();
  EXPECT_FALSE(info.name.empty());
  EXPECT_GE(info.num_threads, 1);
  EXPECT_LE(info.num_threads, static_cast<int>(std::thread::hardware_concurrency()));
  EXPECT_TRUE(info.avx2 || !info.avx512);
  EXPECT_TRUE(info.avx512 || !info.avx512bf16);
  EXPECT_GE(info.l2_bytes, 0);
  EXPECT_GE(info.l3_bytes, 0);
  EXPECT_EQ(&info, &GetCpuInfo());
}

// The sizes that lscpu shows.
TEST(CpuInfo, CachesAreThoseOfTheKernel) {
  for (const auto& [index, bytes] : {std::pair{2, GetCpuInfo().l2_bytes}, std::pair{3, GetCpuInfo().l3_bytes}}) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
    std::string size;
    if (!(file >> size)) GTEST_SKIP() << "no cache sizes in /sys";
    EXPECT_EQ(std::to_string(bytes / 1024) + "K", size);
  }
}

TEST(CpuInfo, MemoryIsSane) {
  const int64_t before = PeakResidentBytes();
  EXPECT_GT(before, 100'000);
  EXPECT_GT(AvailableMemoryBytes(), 1'000'000);
  EXPECT_GE(TotalMemoryBytes(), AvailableMemoryBytes());
  constexpr int64_t kBytes = 32 << 20;
  const std::vector<char> memory(kBytes, 1);
  const volatile char* touched = memory.data();
  EXPECT_EQ(touched[kBytes - 1], 1);
  EXPECT_GE(PeakResidentBytes(), kBytes);
}

TEST(Clock, NeverGoesBack) {
  double last = NowSeconds();
  for (int i = 0; i < 1000; ++i) {
    const double now = NowSeconds();
    ASSERT_GE(now, last);
    last = now;
  }
}

TEST(Version, IsThreeNumbers) {
  int major = 0, minor = 0, patch = 0;
  EXPECT_EQ(std::sscanf(Version(), "%d.%d.%d", &major, &minor, &patch), 3) << Version();
}

}  // namespace
}  // namespace moe
