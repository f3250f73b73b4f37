#pragma once
// The ceilings of this machine for 1, 2, 4 ... N threads.

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "moe/planner/ceilings.h"

namespace moe {

struct ProbeOptions {
  int max_threads = 1;
  double seconds = 10;        // to spend; every figure is measured three times even so
  int64_t buffer_bytes = -1;  // of a CeilingProbe
};

// Over rounds: the median, and how far they went apart.
struct Measured {
  double median = 0, min = 0, max = 0;
};
Measured Summarize(std::vector<double> samples);  // not empty

struct CeilingsOf {
  int threads = 1;
  std::array<Measured, kNumCeilings> values;
  const Measured& operator[](Ceiling c) const { return values[static_cast<size_t>(c)]; }
};

struct MachineProbe {
  std::string cpu, isa;
  std::vector<CeilingsOf> by_threads;  // ascending; the last has max_threads
  int rounds = 0;
  bool interrupted = false;

  const CeilingsOf& all() const { return by_threads.back(); }
};

// Rounds over all figures and thread counts in turn, so that slow phases of a shared machine hit all alike. `progress` (may be
// empty) gets the share done. Stops early on Ctrl-C, after at least one round.
MachineProbe ProbeMachine(const ProbeOptions& options, const KernelTable& kernels, const std::function<void(double)>& progress);

}  // namespace moe
