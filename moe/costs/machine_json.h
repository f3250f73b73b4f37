#pragma once
// A machine's profile as JSON: what `moe probe` writes and `--machine FILE` reads. docs/cli.md describes it.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "moe/base/result.h"
#include "moe/costs/machine.h"

namespace moe {

std::string_view Name(ProductKind kind);  // as files spell it

bool IsBackward(ProductKind kind);
// What one input of a panel takes at that rate.
double StepSeconds(double rows, double flop_per_s);
// Rate of a product of so many rows and 1024 inputs, what comes once per panel included.
double FlopPerS(const ProductCost& cost, double rows);

// Whole: MachineFromJson gives the same profile back, every bit of it, when it is complete.
nlohmann::json JsonOf(const MachineProfile& machine);

// Needs "cpu" or "name", "read_bytes_per_s" and "peak_flop_per_s" of "f32" or "bf16"; what else is missing is filled in as
// Complete does. Keys it does not know are ignored, unless they look like a misspelled one. A number that is not finite, not in
// a range that a machine can have, or out of order is an error that names its key; `where` names the file.
Result<MachineProfile> MachineFromJson(const nlohmann::json& json, const std::string& where);

}  // namespace moe
