#include "moe/base/cpu_info.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>

namespace moe {
namespace {

std::string FirstLineValue(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key, 0) != 0) continue;
    const size_t colon = line.find(':');
    const size_t begin = colon == std::string::npos ? colon : line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

int UsableThreads() {
  cpu_set_t set;
  int threads = 1;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) threads = CPU_COUNT(&set);
  // cgroup v2: "max 100000" or "200000 100000"; v1: two files
  long long quota = -1, period = 0;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2) {
    std::string first;
    v2 >> first >> period;
    if (first != "max") quota = std::atoll(first.c_str());
  } else {
    std::ifstream q("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), p("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    if (q && p) q >> quota, p >> period;
  }
  if (quota > 0 && period > 0) threads = std::min(threads, static_cast<int>(std::max(1LL, quota / period)));
  return std::max(1, threads);
}

int64_t CacheBytes(int name) {
  const long bytes = sysconf(name);
  return bytes > 0 ? bytes : 0;
}

CpuInfo Detect() {
  CpuInfo info;
  info.name = FirstLineValue("/proc/cpuinfo", "model name");
  if (info.name.empty()) info.name = "unknown CPU";
  info.num_threads = UsableThreads();
#if defined(__x86_64__)
  __builtin_cpu_init();
  info.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  info.avx512 = info.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  info.avx512bf16 = info.avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  info.l2_bytes = CacheBytes(_SC_LEVEL2_CACHE_SIZE);
  info.l3_bytes = CacheBytes(_SC_LEVEL3_CACHE_SIZE);
  return info;
}

int64_t ReadNumber(const char* path) {
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value ? value : -1;
}

}  // namespace

const CpuInfo& GetCpuInfo() {
  static const CpuInfo info = Detect();
  return info;
}

int64_t AvailableMemoryBytes() {
  int64_t available = std::atoll(FirstLineValue("/proc/meminfo", "MemAvailable").c_str()) * 1024;
  if (available <= 0) available = std::numeric_limits<int64_t>::max();
  const int64_t limit = ReadNumber("/sys/fs/cgroup/memory.max"), used = ReadNumber("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) available = std::min(available, std::max<int64_t>(0, limit - used));
  return available;
}

int64_t PeakResidentBytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace moe
