#pragma once

#include <cstdint>
#include <string>

namespace moe {

struct CpuInfo {
  std::string name;         // as the kernel prints it
  int num_threads = 1;      // processors this process may use: affinity, then cgroup quota
  bool avx2 = false;        // with FMA and F16C
  bool avx512 = false;      // F, BW, VL, DQ
  bool avx512bf16 = false;  // with VNNI, as every CPU that has it
  int64_t l2_bytes = 0;     // of one core
  int64_t l3_bytes = 0;     // 0: unknown
};

const CpuInfo& GetCpuInfo();

// Of the machine, or what its cgroup allows, whichever is less; 0: the system does not say.
int64_t TotalMemoryBytes();
// Bytes this process could still get: MemAvailable, or what its cgroup leaves, whichever is less.
int64_t AvailableMemoryBytes();
// Largest resident set of this process so far.
int64_t PeakResidentBytes();

}  // namespace moe
