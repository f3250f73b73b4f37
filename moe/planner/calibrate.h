#pragma once
// The profile of this machine: how fast our own ops are on it, measured one by one.

#include <functional>

#include "moe/costs/machine.h"
#include "moe/ops/exec_context.h"
#include "moe/planner/ceilings.h"

namespace moe {

struct CalibrateOptions {
  double seconds = 15;        // for rounds over all points, one at least; medians count
  double sample_s = 1e-3;     // of one point in one round, at least
  int64_t buffer_bytes = -1;  // what weights come from memory in; -1: CeilingProbe::DefaultBytes()
};

// Whether another round may begin, as long as the longest so far, after so many of them.
bool FitsAnotherRound(int rounds, double left_s, double round_s);

// All threads of ctx at work; cores that a hypervisor moves, in the best placement that was met (BestPlacement). `progress`
// (may be empty) gets the share done. Interrupted (Ctrl-C): an incomplete profile, which is not to be used. Resets ctx.arena.
struct Calibration {
  MachineProfile machine;
  int rounds = 0;
  bool interrupted = false;
};
Calibration Calibrate(const CalibrateOptions& options, const std::function<void(double)>& progress, ExecContext& ctx);

}  // namespace moe
