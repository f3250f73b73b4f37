#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>

#include "moe/planner/probe.h"

namespace moe {

// A figure of the probe as people and programs read it.
struct CeilingName {
  Ceiling ceiling;
  const char *title, *unit, *key;  // key: of the JSON
  const char* bound;               // key where it bounds a case
};
std::span<const CeilingName> CeilingNames();  // all but the barrier

// The machine-readable result of `moe probe`, and "ceilings" of `moe bench`. With a profile: what MachineFromJson reads.
nlohmann::json JsonOf(const MachineProbe& probe);

}  // namespace moe
