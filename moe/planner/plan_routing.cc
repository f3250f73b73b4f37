#include "moe/planner/plan_routing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace moe {
namespace {

double D(int64_t n) {
  return static_cast<double>(n);
}

// At most so many rows, first and last among them.
std::vector<const PlanRow*> Spread(const std::vector<PlanRow>& rows, size_t most) {
  std::vector<const PlanRow*> out;
  const size_t n = std::min(rows.size(), most);
  for (size_t i = 0; i < n; ++i) out.push_back(&rows[n == 1 ? 0 : i * (rows.size() - 1) / (n - 1)]);
  return out;
}

// What the text was too short for.
std::string Limits(const Plan& plan) {
  const MeasuredRouting& measured = *plan.options.measured;
  std::string text;
  const int64_t wanted = Step{plan.options.phase, plan.rows.back().batch, plan.options.context}.rows_per_sequence();
  if (const int64_t run = RunOf(measured, wanted); run < wanted) {
    text += fmt::format("  runs of {} tokens are made of several of {}: the text has too few that are longer\n",
                        Thousands(D(wanted)), Thousands(D(run)));
  }
  const double tokens = D(plan.rows.back().batch * plan.options.parallel.ranks);
  if (tokens > D(measured.tokens)) {
    text += fmt::format("  the text has {} tokens: in larger steps rare experts are missing\n", Thousands(D(measured.tokens)));
  }
  return text;
}

}  // namespace

std::string Thousands(double value) {
  std::string digits = fmt::format("{:.0f}", value);
  if (digits.size() > 15) return fmt::format("{:.3g}", value);
  for (size_t at = digits.size(); at > 3;) digits.insert(at -= 3, ",");
  return digits;
}

std::string RoutingOf(const PlanOptions& options) {
  if (options.measured == nullptr) {
    return options.routing.kind == SweepRouting::kZipf ? fmt::format("routing zipf:{:g}", options.routing.s)
                                                       : "uniform routing";
  }
  const MeasuredRouting& measured = *options.measured;
  return fmt::format("routing measured on {} tokens of {}", Thousands(D(measured.tokens)), fmt::join(measured.files, ", "));
}

std::string AssumedText(const Plan& plan) {
  if (plan.options.measured == nullptr) return "";
  constexpr size_t kColumns = 8;
  const std::vector<const PlanRow*> rows = Spread(plan.rows, kColumns);
  std::string text = fmt::format("\n{:<32}", "distinct experts of a layer at");
  for (const PlanRow* row : rows) text += fmt::format(" {:>6}", row->batch);
  const auto line = [&](const char* name, auto&& value) {
    text += fmt::format("\n  {:<30}", name);
    for (const PlanRow* row : rows) text += fmt::format(" {:>6.1f}", value(*row->assumed));
  };
  line("uniform: E (1 - (1 - k/E)^B)", [](const AssumedExperts& a) { return a.uniform; });
  line("as often as the text has them", [](const AssumedExperts& a) { return a.by_frequency; });
  if (rows.front()->assumed->runs) line("runs of the text", [](const AssumedExperts& a) { return *a.runs; });
  return text + "\n" + Limits(plan);
}

std::string AssumedAdvice(const Plan& plan) {
  constexpr double kWorthSaying = 0.1;
  const PlanRow* at = nullptr;
  double most = kWorthSaying;
  for (const PlanRow& row : plan.rows) {
    if (!row.assumed) continue;
    const double away = std::abs(row.assumed->touched() / row.assumed->uniform - 1);
    if (away > most) most = away, at = &row;
  }
  if (at == nullptr) return "";
  const AssumedExperts& a = *at->assumed;
  const double touched = a.touched();
  std::string why = "some are chosen more than others";
  if (std::abs(touched - a.by_frequency) > std::abs(a.by_frequency - a.uniform)) {
    why = touched < a.by_frequency ? "tokens that follow each other choose alike"
                                   : "tokens that follow each other choose differently";
  }
  return fmt::format(
      "On this text a step of batch {} touches {:.3g} experts of a layer, {:.0f} % {} than the {:.3g} of uniform "
      "routing: {}.",
      at->batch, touched, 100 * most, touched < a.uniform ? "fewer" : "more", a.uniform, why);
}

}  // namespace moe
