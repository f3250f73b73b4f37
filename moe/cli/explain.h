#pragma once
// What a command computes with is chosen from this machine's profile, where moe probe has kept one; --explain says why.

#include <optional>

#include "moe/cli/common.h"
#include "moe/costs/machine.h"

namespace moe {

struct ExplainFlag {
  bool explain = false;
};
// --explain
void AddExplainFlag(CLI::App& app, ExplainFlag& flag);

// One choice per line on stderr, if asked for.
void Explain(const ExplainFlag& flag, const std::string& line);

// Never measures. Sets the switches of `exec`, which change no bit of a result; without a profile, or with one of another
// machine, nothing is set and nothing returned.
std::optional<MachineProfile> UseKeptMachine(const ExplainFlag& flag, ExecContext& exec);

}  // namespace moe
