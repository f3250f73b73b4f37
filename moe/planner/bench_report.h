#pragma once
// What was measured, as a table for people and as JSON for programs.

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "moe/planner/bench.h"

namespace moe {

// Of a row: name (in so many columns), rate, ceiling, fraction of it, rate against the reference, what each of several bounds
// takes and how far the slowest two are apart, time of each peer against ours.
std::string BenchHeader(int name_width);
std::string BenchRow(const BenchResult& result, int name_width);
// Under the rows of a group, for each kind of its own: geometric mean and least of the fractions (of several bounds also those
// that differ by 2x and those at the ridge apart), of the ratios to each reference, to each peer and to the best. Empty for one
// row.
std::string BenchSummary(std::span<const BenchResult> group);

// {"ceilings", "cases"} as documented in docs/cli.md.
nlohmann::json BenchJson(const MachineProbe& probe, std::span<const BenchResult> results, bool interrupted);

}  // namespace moe
