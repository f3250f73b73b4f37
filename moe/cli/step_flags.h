#pragma once
// Flags that `plan` and `sweep` share: what a step is, and on which machine.

#include <string>
#include <string_view>
#include <vector>

#include "moe/base/result.h"
#include "moe/planner/sweep.h"

namespace CLI {
class App;
}

namespace moe {

// Parts between commas, without spaces.
std::vector<std::string> SplitList(const std::string& text);
// What may follow a number: k, M, G, T, P of 1000 (of counts B too, a billion; of bytes Ki, Mi ... of 1024), and a unit that
// says nothing new.
struct Unit {
  std::string_view name;
  std::string_view example;
};
inline constexpr Unit kCountUnit{"", "70e9 or 70B"}, kBytesUnit{"B", "24e9, 24GB or 22GiB"}, kRateUnit{"B/s", "2e12 or 2TB/s"},
    kFlopUnit{"FLOP/s", "100e12 or 100T"};
// Above 0 and below 1e24.
Result<double> ParseScaled(const char* flag, const std::string& text, const Unit& unit);

// Ascending, each once.
Result<std::vector<int64_t>> ParseBatches(const std::string& text);
Result<Phase> ParsePhase(const std::string& text);
// "uniform", "zipf:1.2", and "model" where there may be one.
Result<SweepRouting> ParseRouting(const std::string& text, bool model);

// Wrong usage: skewed routing of a dense model.
Status CheckRouting(const ModelConfig& config, const SweepRouting& routing);

// Wrong usage: a flag with an empty value, which would pass for one that was not given.
Status RefuseEmpty(const CLI::App& app);

// LoadOrProbe with a line and a progress bar on stderr when this machine has to be measured. `machine`: a file, a name, or
// empty.
Result<MachineProfile> LoadMachine(const std::string& machine, ExecContext& ctx);

}  // namespace moe
