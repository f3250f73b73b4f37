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
    if (!v.regimes.empty()) row["regime"] = v.named[r] ? nlohmann::json(Name(v.regimes[r])) : nlohmann::json();
  }
  sweep["mape"] = ErrorJson(v.adjacent), sweep["mape_cached"] = ErrorJson(v.cached);
  sweep["repeat_error"] = v.repeat_error, sweep["stated_error"] = v.stated_error;
  sweep["boundaries"] = nlohmann::json::array();
  for (const BoundaryCheck& b : v.boundaries) {
    sweep["boundaries"].push_back(
        {{"name", b.name}, {"predicted", b.predicted}, {"measured", b.measured}, {"factor", b.factor()}});
  }
}

}  // namespace moe
