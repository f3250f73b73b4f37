#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/planner/sweep_report.h"
#include "moe/planner/verify.h"

namespace moe {
namespace {

nlohmann::json NumberOrNull(double x) {
  return std::isnan(x) ? nlohmann::json() : nlohmann::json(x);
}

nlohmann::json PartsJson(const StepTime& time) {
  nlohmann::json out = nlohmann::json::object();
  for (int p = 0; p < kNumStepParts; ++p) {
    out[std::string(Name(static_cast<StepPart>(p)))] = time.part_s[static_cast<size_t>(p)];
  }
  out["imbalance_wait"] = time.imbalance_s, out["sync"] = time.sync_s;
  return out;
}

nlohmann::json ErrorJson(const PredictionError& error) {
  return {{"all", NumberOrNull(error.all)},
          {"memory", NumberOrNull(error.by_regime[static_cast<size_t>(Regime::kMemory)])},
          {"middle", NumberOrNull(error.by_regime[static_cast<size_t>(Regime::kMiddle)])},
          {"compute", NumberOrNull(error.by_regime[static_cast<size_t>(Regime::kCompute)])}};
}

nlohmann::json BatchJson(const std::optional<double>& batch) {
  return batch ? nlohmann::json(*batch) : nlohmann::json();
}

nlohmann::json GainJson(const FlopGain& gain) {
  return {{"speedup", gain.speedup}, {"flop_ratio", gain.flop_ratio}, {"share", gain.share()}};
}

}  // namespace

void AddVerification(const SweepReport& report, const Verification& v, nlohmann::json& sweep) {
  for (size_t r = 0; r < report.rows.size(); ++r) {
    nlohmann::json& row = sweep["rows"][r];
    for (size_t i = 0; i < report.subjects.size(); ++i) {
      const CellPrediction& p = v.cells[r][i];
      const double measured = report.rows[r].cells[i].s_per_step;
      row[SweepKey(report.subjects[i])]["predicted"] = {{"s_per_step", p.adjacent.s},
                                                        {"error", p.adjacent.s / measured - 1},
                                                        {"s_per_step_cached", p.cached.s},
                                                        {"error_cached", p.cached.s / measured - 1},
                                                        {"bound", p.adjacent.memory_bound() ? "memory" : "compute"},
                                                        {"s_by_part", PartsJson(p.adjacent)}};
    }
    row["moe"]["bound"] = row["moe"]["predicted"]["bound"];
    if (v.regimes.empty()) continue;
    row["regime"] = v.named[r] ? nlohmann::json(Name(v.regimes[r])) : nlohmann::json();
    row["moe"]["regime"] = row["regime"];
  }
  sweep["mape"] = ErrorJson(v.adjacent), sweep["mape_cached"] = ErrorJson(v.cached);
  sweep["repeat_error"] = v.repeat_error, sweep["stated_error"] = v.stated_error;
  if (v.closed_forms.b_d > 0) sweep["b_d"] = v.closed_forms.b_d;
  if (v.closed_forms.b_m > 0) sweep["b_m"] = v.closed_forms.b_m;
  sweep["boundaries"] = nlohmann::json::array();
  for (const BoundaryCheck& b : v.boundaries) {
    sweep["boundaries"].push_back({{"name", b.name},
                                   {"predicted", BatchJson(b.predicted)},
                                   {"measured", BatchJson(b.measured)},
                                   {"factor", b.factor()},
                                   {"measured_from", b.from},
                                   {"measured_to", b.to},
                                   {"within_repeats", b.within_repeats()}});
  }
  if (!v.whole) return;
  sweep["plateau_in_theory"] = v.closed_forms.plateau();
  AddPlateau(v.predicted_plateau, "plateau_predicted", sweep);
  sweep["gain_at_largest_batch"] = {{"whole", GainJson(*v.whole)}, {"expert_layers", GainJson(*v.experts)}};
}

}  // namespace moe
