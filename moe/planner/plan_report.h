#pragma once
// A plan as other programs read it, and as a person does.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "moe/planner/plan.h"
#include "moe/planner/terminal_plot.h"

namespace moe {

// As docs/cli.md describes.
nlohmann::json PlanJson(const Plan& plan);

struct TextStyle {
  int width = 80;  // columns of the plot
  bool unicode = true;
};
// Header, memory, a table by batch, the valley, the boundaries, the best batch, the advice.
std::string PlanText(const Plan& plan, const TextStyle& style);

// In words, with the numbers they rest on: when an MoE, when a dense model. At most 8 sentences or two.
std::vector<std::string> PlanAdvice(const Plan& plan);

// Both speed-ups over the batches; nothing of a dense model.
TerminalPlot ValleyOf(const Plan& plan);

}  // namespace moe
