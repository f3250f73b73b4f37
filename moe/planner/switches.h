#pragma once
// Which of two ways to the same bits ops take on a machine, and why.

#include <string>
#include <vector>

#include "moe/costs/machine.h"
#include "moe/ops/switches.h"

namespace moe {

inline constexpr double kSwitchGain = 1.03;  // what a way must gain to be taken against the usual one: less is noise

struct SwitchChoice {
  KernelSwitches switches;
  std::vector<std::string> why;  // one line for each switch
};

// Switches where the machine's own measurements cross; what was not measured, or is a tie, stays as it is usually.
SwitchChoice ChooseSwitches(const MachineProfile& machine);

}  // namespace moe
