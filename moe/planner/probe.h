#pragma once
// What this machine can do at most, for 1, 2, 4 ... N threads: the ceilings that every other figure is a fraction of.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "moe/ops/exec_context.h"

namespace moe {

struct ProbeOptions {
  int max_threads = 1;
  double seconds = 10;        // to spend; every figure is measured three times even so
  int64_t buffer_bytes = -1;  // what is read and written; -1: far larger than the last-level cache
};

// Median over rounds, and how far rounds went apart.
struct Measured {
  double median = 0, min = 0, max = 0;
};

struct Ceilings {
  int threads = 1;
  Measured read_bytes_per_s;        // in order
  Measured chunk_read_bytes_per_s;  // in chunks of kChunkBytes, in random order: experts' matrices
  Measured rmw_bytes_per_s;         // read, change and write back in place; both directions count
  Measured peak_f32, peak_bf16,
      peak_int8;       // FLOP/s (int8: operations) of multiply-adds between registers, all threads together
  Measured barrier_s;  // to begin and end a parallel piece of work that does nothing

  static constexpr int64_t kChunkBytes = int64_t{4} << 20;
};

struct MachineProbe {
  std::string cpu, isa;
  std::vector<Ceilings> by_threads;  // ascending; the last has max_threads
  int rounds = 0;
  bool interrupted = false;

  const Ceilings& all() const { return by_threads.back(); }
};

// Rounds over all figures and thread counts in turn, so that slow phases of a shared machine hit all alike. `progress` (may be
// empty) gets the share done. Stops early on Ctrl-C, after at least one round.
MachineProbe ProbeMachine(const ProbeOptions& options, const KernelTable& kernels, const std::function<void(double)>& progress);

}  // namespace moe
