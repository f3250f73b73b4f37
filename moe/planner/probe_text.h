#pragma once
// What `moe probe` prints.

#include <string>

#include "moe/planner/probe.h"

namespace moe {

// The ceilings by threads; then, where there is a profile, its tables.
std::string TextOf(const MachineProbe& probe);
// Weights by working set, products by rows, attention, and what is paid once.
std::string TextOf(const MachineProfile& machine);
// The machines that --machine knows by name, each with its figures and where they are from.
std::string TextOfBuiltInMachines();

}  // namespace moe
