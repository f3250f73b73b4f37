#pragma once
// What a plan says of how its tokens choose experts.

#include <string>

#include "moe/planner/plan.h"

namespace moe {

// "uniform routing", "routing zipf:1", "routing measured on 16,384 tokens of a.txt".
std::string RoutingOf(const PlanOptions& options);

// Of routing that was measured on a text, else "".
// Distinct experts at some batches: uniform, by frequency, by runs; and what the text was too short for.
std::string AssumedText(const Plan& plan);
// One sentence, where they differ by more than a tenth at some batch.
std::string AssumedAdvice(const Plan& plan);

// 10000 as people write it: "10,000".
std::string Thousands(double value);

}  // namespace moe
