#pragma once
// The ceilings of this machine for 1, 2, 4 ... N threads, and its profile for N.

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "moe/costs/machine.h"
#include "moe/planner/ceilings.h"

namespace moe {

struct ProbeOptions {
  int max_threads = 1;
  double seconds = 10;        // to spend; every ceiling is measured three times even so, all else once
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
  std::optional<MachineProfile> profile = {};  // of all threads; only of ProbeWhole, unless interrupted
  int profile_rounds = 0;
  double seconds = 0;  // that ProbeWhole took

  const CeilingsOf& all() const { return by_threads.back(); }
};

// Rounds over all figures and thread counts in turn, so that slow phases of a shared machine hit all alike. `progress` (may be
// empty) gets the share done. Stops early on Ctrl-C, after at least one round.
MachineProbe ProbeMachine(const ProbeOptions& options, const KernelTable& kernels, const std::function<void(double)>& progress);

// Calibrate (0 seconds: every point just once). Interrupted (Ctrl-C): no profile. Resets
// ctx.arena.
struct MeasuredProfile {
  MachineProfile machine;
  int rounds = 0;
  bool interrupted = false;
};
MeasuredProfile MeasureProfile(double seconds, int64_t buffer_bytes, const std::function<void(double)>& progress,
                               ExecContext& ctx);

// The ceilings and the profile, with the threads of ctx. What both measure of all threads has the profile's medians: they are
// of more rounds.
MachineProbe ProbeWhole(const ProbeOptions& options, const std::function<void(double)>& progress, ExecContext& ctx);

}  // namespace moe
