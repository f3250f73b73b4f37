#pragma once
// Flags that `plan` and `sweep` share: what a step is, and on which machine.

#include <string>
#include <vector>

#include "moe/base/result.h"
#include "moe/planner/sweep.h"

namespace moe {

// Parts between commas, without spaces.
std::vector<std::string> SplitList(const std::string& text);
// Ascending, each once.
Result<std::vector<int64_t>> ParseBatches(const std::string& text);
Result<Phase> ParsePhase(const std::string& text);
// "uniform", "zipf:1.2", and "model" where there may be one.
Result<SweepRouting> ParseRouting(const std::string& text, bool model);

// Wrong usage: skewed routing of a dense model.
Status CheckRouting(const ModelConfig& config, const SweepRouting& routing);

// LoadOrProbe with a line and a progress bar on stderr when this machine has to be measured. `machine`: a file, a name, or
// empty.
Result<MachineProfile> LoadMachine(const std::string& machine, ExecContext& ctx);

}  // namespace moe
