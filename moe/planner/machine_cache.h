#pragma once
// The profile to plan with: a built-in's, a file's, or this machine's own, which is kept from run to run.

#include <functional>
#include <optional>
#include <string>

#include "moe/costs/machine.h"
#include "moe/ops/exec_context.h"
#include "moe/planner/probe.h"

namespace moe {

// $MOE_MACHINE_CACHE, else $XDG_CACHE_HOME/moe/machine.json, else ~/.cache/moe/machine.json; empty where none of them is set.
std::string MachineCachePath();

// Errors name the file, and the key of a figure that no machine has.
Result<MachineProfile> ReadMachine(const std::string& path);
// Whole or not at all; makes the folder. Only over a regular file.
Status WriteMachine(const std::string& path, const MachineProfile& machine);

// What makes a kept profile another machine's than the one that runs now ("of 4 threads, this process has 2"); empty: nothing.
std::string Staleness(const MachineProfile& machine, const ExecContext& ctx);

// The profile kept at `path` (may be empty: nowhere), or why it is not to be used.
struct KeptMachine {
  std::optional<MachineProfile> machine;
  std::string why;
};
KeptMachine ReadKeptMachine(const std::string& path, const ExecContext& ctx);

struct MachineRequest {
  std::string machine = {};                               // a built-in's name or a file; empty: this machine
  std::string cache = MachineCachePath();                 // where this machine's own is kept; empty: nowhere
  double seconds = 14;                                    // to spend on measuring where that is needed
  int64_t buffer_bytes = -1;                              // of CalibrateOptions
  std::function<void(const std::string& line)> say = {};  // before it is measured, and why; may be empty
  std::function<void(double share)> progress = {};        // may be empty
  std::function<decltype(MeasureProfile)> measure = MeasureProfile;
};

// Errors: an unknown name, a file that is asked for and broken, Ctrl-C (exit code 130). A kept profile that is missing, broken
// or stale is measured anew (resets ctx.arena); that it cannot be kept is no error, only a line.
Result<MachineProfile> LoadOrProbe(const MachineRequest& request, ExecContext& ctx);

}  // namespace moe
