#include "moe/cli/explain.h"

#include <CLI/CLI.hpp>
#include <cstdio>

#include "moe/planner/machine_cache.h"
#include "moe/planner/switches.h"

namespace moe {

void AddExplainFlag(CLI::App& app, ExplainFlag& flag) {
  app.add_flag("--explain", flag.explain, "Say on stderr what was chosen for this machine, and the numbers behind it");
}

void Explain(const ExplainFlag& flag, const std::string& line) {
  if (flag.explain) fmt::print(stderr, "{}\n", line);
}

std::optional<MachineProfile> UseKeptMachine(const ExplainFlag& flag, ExecContext& exec) {
  KeptMachine kept = ReadKeptMachine(MachineCachePath(), exec);
  if (!kept.machine) {
    Explain(flag, fmt::format("kernels switch as usual: {}; moe probe makes one", kept.why));
    return {};
  }
  const SwitchChoice choice = ChooseSwitches(*kept.machine);
  exec.switches = choice.switches;
  for (const std::string& line : choice.why) Explain(flag, line);
  return std::move(kept.machine);
}

}  // namespace moe
