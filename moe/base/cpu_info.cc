#include "moe/base/cpu_info.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <vector>

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

int64_t ReadNumber(const std::string& path) {  // -1 when there is none
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value ? value : -1;
}

// The number behind a word, as in "inactive_file 4096"; 0 when there is none.
int64_t NumberAfter(const std::string& path, const std::string& word) {
  std::ifstream file(path);
  std::string name;
  for (int64_t value; file >> name >> value;) {
    if (name == word) return value;
  }
  return 0;
}

// The cgroup folders that limit this process, v2 and v1: its own, and those above it. Lines read "0::/path" or
// "4:memory:/path".
std::vector<std::string> CgroupFolders() {
  std::vector<std::string> folders;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controller = line.substr(first + 1, second - first - 1);
    const std::string root = "/sys/fs/cgroup" + (controller.empty() ? "" : "/" + controller);
    for (std::string path = line.substr(second + 1); path.size() > 1; path.resize(path.rfind('/')))
      folders.push_back(root + path);
    folders.push_back(root);
  }
  return folders;
}

int UsableThreads() {
  int threads = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  if (cpu_set_t set; sched_getaffinity(0, sizeof(set), &set) == 0) threads = CPU_COUNT(&set);  // fails beyond 1024 processors
  for (const std::string& folder : CgroupFolders()) {
    int64_t quota = ReadNumber(folder + "/cpu.cfs_quota_us"), period = ReadNumber(folder + "/cpu.cfs_period_us");  // v1
    if (std::ifstream v2(folder + "/cpu.max"); v2) {  // "max 100000" or "200000 100000"
      std::string first;
      v2 >> first >> period;
      quota = first == "max" ? -1 : std::atoll(first.c_str());
    }
    if (quota > 0 && period > 0) threads = std::min(threads, static_cast<int>(std::max<int64_t>(1, quota / period)));
  }
  return std::max(1, threads);
}

// Of the first processor's cache of this level that holds data. sysconf guesses from CPUID and is off by a factor of ten on
// some virtual machines, so it is asked only where /sys has nothing.
int64_t CacheBytes(int level, int sysconf_name) {
  const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index";
  for (int i = 0; i < 8; ++i) {
    std::ifstream level_file(folder + std::to_string(i) + "/level"), type_file(folder + std::to_string(i) + "/type"),
        size_file(folder + std::to_string(i) + "/size");
    int found = 0;
    std::string type;
    int64_t size = 0;
    char unit = 0;
    if (!(level_file >> found) || found != level || !(type_file >> type) || type == "Instruction") continue;
    if (!(size_file >> size >> unit) || size <= 0) continue;
    return size * (unit == 'K' ? 1024 : unit == 'M' ? 1024 * 1024 : 1);
  }
  const long bytes = sysconf(sysconf_name);
  return bytes > 0 ? bytes : 0;
}

CpuInfo Detect() {
  CpuInfo info;
  info.name = FirstLineValue("/proc/cpuinfo", "model name");
  if (info.name.empty()) info.name = "unknown CPU";
  info.num_threads = UsableThreads();
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  info.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  info.avx512 = info.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  info.avx512bf16 = info.avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#endif
  info.l2_bytes = CacheBytes(2, _SC_LEVEL2_CACHE_SIZE);
  info.l3_bytes = CacheBytes(3, _SC_LEVEL3_CACHE_SIZE);
  return info;
}

}  // namespace

const CpuInfo& GetCpuInfo() {
  static const CpuInfo info = Detect();
  return info;
}

int64_t TotalMemoryBytes() {
  int64_t total = std::atoll(FirstLineValue("/proc/meminfo", "MemTotal").c_str()) * 1024;
  for (const std::string& folder : CgroupFolders()) {
    for (const char* file : {"/memory.limit_in_bytes", "/memory.max"}) {
      const int64_t limit = ReadNumber(folder + file);
      if (limit > 0 && total > 0) total = std::min(total, limit);
    }
  }
  return std::max<int64_t>(total, 0);
}

int64_t AvailableMemoryBytes() {
  int64_t available = std::atoll(FirstLineValue("/proc/meminfo", "MemAvailable").c_str()) * 1024;
  if (available <= 0) available = std::numeric_limits<int64_t>::max();
  for (const std::string& folder : CgroupFolders()) {
    const bool v1 = ReadNumber(folder + "/memory.limit_in_bytes") > 0;
    const int64_t limit = ReadNumber(folder + (v1 ? "/memory.limit_in_bytes" : "/memory.max"));
    const int64_t used = ReadNumber(folder + (v1 ? "/memory.usage_in_bytes" : "/memory.current"));
    const int64_t cache =
        NumberAfter(folder + "/memory.stat", v1 ? "total_inactive_file" : "inactive_file");  // can be taken back
    if (limit > 0 && used >= 0) available = std::min(available, std::clamp<int64_t>(limit - used + cache, 0, limit));
  }
  return available;
}

int64_t PeakResidentBytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace moe
