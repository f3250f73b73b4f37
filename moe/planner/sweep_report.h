#pragma once
// A sweep as other programs read it, and as a person does.

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "moe/planner/regimes.h"
#include "moe/planner/sweep.h"

namespace moe {

// The name of a subject in JSON: "moe" ("dense" without experts), "dense_active", "dense_total".
std::string SweepKey(const SweepSubject& subject);
// And in text: "MoE" ("dense" without experts), "equal active", "equal total".
std::string SweepLabel(const SweepSubject& subject);

// Batches, interpolated in log B, where `ratio` passes `level`, ascending. batches ascending, as long as ratio.
std::vector<double> Crossings(std::span<const int64_t> batches, std::span<const double> ratio, double level);
// Where the speed-up over the equal-total twin falls below and rises above 1.25.
std::vector<double> CrossoverTotal(const SweepReport& report);
// The batch at which the speed-up over the equal-active twin is least, if batches on both sides were measured, and the one from
// where it is back at 0.8, if it is.
std::vector<double> CrossoverActive(const SweepReport& report);

// `key`, and with "_from" and "_deviation" behind it.
void AddPlateau(const Plateau& plateau, const std::string& key, nlohmann::json& out);
// As docs/cli.md describes. `name`: what the model was called on the command line.
nlohmann::json SweepJson(const SweepReport& report, const std::string& name);

// Two tables, speed and work, under a header that says what was measured on what, and notes in plain words below.
std::string SweepText(const SweepReport& report, const std::string& name);

}  // namespace moe
