#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/planner/regimes.h"
#include "moe/planner/sweep_report.h"

namespace moe {
namespace {

struct Ratios {
  std::vector<int64_t> batches;
  std::vector<double> ratio;
};

Ratios SpeedupCurve(const SweepReport& report, SweepRole twin) {
  Ratios curve;
  for (const SweepRow& row : report.rows) {
    const auto speedup = report.Speedup(row, twin);
    if (!speedup) return {};
    curve.batches.push_back(row.batch);
    curve.ratio.push_back(*speedup);
  }
  return curve;
}

nlohmann::json SubjectJson(const SweepSubject& subject) {
  nlohmann::json out = {{"parameters_total", subject.parameters.total},
                        {"parameters_active", subject.parameters.active},
                        {"layers", subject.config.layers.size()},
                        {"weight_bytes", subject.weight_bytes},
                        {"random_weights", subject.random_weights}};
  for (const LayerSpec& layer : subject.config.layers) {
    if (layer.ffn != FfnKind::kMoe) continue;
    out["experts"] = layer.moe.router.num_experts;
    out["top_k"] = layer.moe.router.top_k;
    break;
  }
  return out;
}

// Seconds of each part without the waits in them, which stand by themselves.
nlohmann::json PartsJson(const SweepCell& cell) {
  double all = 0;
  for (const double s : cell.part_s) all += s;
  const double working = all > 0 ? std::max(0.0, 1 - cell.wait_s / all) : 1;
  nlohmann::json out = nlohmann::json::object();
  for (int p = 0; p < kNumStepParts; ++p)
    out[std::string(Name(static_cast<StepPart>(p)))] = cell.part_s[static_cast<size_t>(p)] * working;
  out["imbalance_wait"] = cell.wait_s;
  return out;
}

nlohmann::json CellJson(const SweepRow& row, const SweepSubject& subject, const SweepCell& cell) {
  const Cost cost = cell.cost;
  nlohmann::json out = {{"s_per_step", cell.s_per_step},
                        {"s_per_step_min", cell.s_min},
                        {"s_per_step_max", cell.s_max},
                        {"steps", cell.steps},
                        {"tokens_per_s", static_cast<double>(row.batch) / cell.s_per_step},
                        {"bytes", cost.bytes},
                        {"flop", cost.flop},
                        {"bytes_per_s", cost.bytes / cell.s_per_step},
                        {"flop_per_s", cost.flop / cell.s_per_step},
                        {"fraction", cost.bytes / cell.s_per_step / row.read_bytes_per_s},
                        {"repeat_error", cell.repeat_error},
                        {"s_by_part", PartsJson(cell)}};
  if (subject.config.has_experts()) {
    out["distinct_experts"] = cell.mean_distinct_experts(subject.config);
    out["experts_used"] = cell.experts_used;
  }
  return out;
}

double Rounded(double batch) {
  return std::round(batch * 100) / 100;
}

}  // namespace

std::string SweepKey(const SweepSubject& subject) {
  switch (subject.role) {
    case SweepRole::kModel:
      return subject.config.has_experts() ? "moe" : "dense";
    case SweepRole::kDenseActive:
      return "dense_active";
    case SweepRole::kDenseTotal:
      return "dense_total";
  }
  return "";
}

std::vector<double> Crossings(std::span<const int64_t> batches, std::span<const double> ratio, double level) {
  std::vector<double> out;
  for (size_t i = 1; i < batches.size(); ++i) {
    if ((ratio[i - 1] < level) == (ratio[i] < level)) continue;
    const double share = (level - ratio[i - 1]) / (ratio[i] - ratio[i - 1]);
    const double from = std::log(static_cast<double>(batches[i - 1])), to = std::log(static_cast<double>(batches[i]));
    out.push_back(std::exp(from + share * (to - from)));
  }
  return out;
}

std::vector<double> CrossoverTotal(const SweepReport& report) {
  const Ratios curve = SpeedupCurve(report, SweepRole::kDenseTotal);
  return Crossings(curve.batches, curve.ratio, kGain);
}

std::vector<double> CrossoverActive(const SweepReport& report) {
  const Ratios curve = SpeedupCurve(report, SweepRole::kDenseActive);
  return ActiveCrossings(curve.batches, curve.ratio);
}

void AddPlateau(const Plateau& plateau, const std::string& key, nlohmann::json& out) {
  out[key] = plateau.exists();
  out[key + "_from"] = plateau.deviation ? nlohmann::json(Rounded(plateau.from)) : nlohmann::json();
  out[key + "_deviation"] = plateau.deviation ? nlohmann::json(*plateau.deviation) : nlohmann::json();
}

nlohmann::json SweepJson(const SweepReport& report, const std::string& name) {
  nlohmann::json out;
  std::vector<double> probes;
  for (const SweepRow& row : report.rows) probes.push_back(row.read_bytes_per_s);
  std::sort(probes.begin(), probes.end());
  out["machine"] = {{"cpu", report.cpu}, {"isa", report.isa}, {"threads", report.threads}, {"cache_bytes", report.cache_bytes}};
  if (!probes.empty()) out["machine"]["read_bytes_per_s"] = probes[probes.size() / 2];
  out["model"] = name;
  out["phase"] = Name(report.phase);
  out["routing"] = report.routing.kind == SweepRouting::kModel     ? "model"
                   : report.routing.kind == SweepRouting::kUniform ? "uniform"
                                                                   : fmt::format("zipf:{}", report.routing.s);
  out["dtype"] = Name(report.format);
  out["context"] = report.context;
  out["seconds"] = report.seconds;
  out["core_wait"] = report.core_wait;
  out["interrupted"] = report.interrupted;
  out["models"] = nlohmann::json::object();
  for (const SweepSubject& subject : report.subjects) out["models"][SweepKey(subject)] = SubjectJson(subject);
  out["rows"] = nlohmann::json::array();
  for (const SweepRow& row : report.rows) {
    nlohmann::json cells = {{"batch", row.batch},
                            {"read_bytes_per_s", row.read_bytes_per_s},
                            {"weights_bytes_per_s", row.weights_bytes_per_s},
                            {"pace_flop_per_s", row.pace_flop_per_s},
                            {"read_bytes_per_s_min", row.read_min},
                            {"read_bytes_per_s_max", row.read_max},
                            {"handover_s", row.handover_s},
                            {"turns_again", row.turns_again},
                            {"rounds", row.rounds},
                            {"rounds_used", row.rounds_used}};
    for (size_t i = 0; i < report.subjects.size(); ++i) {
      cells[SweepKey(report.subjects[i])] = CellJson(row, report.subjects[i], row.cells[i]);
    }
    if (const auto speedup = report.Speedup(row, SweepRole::kDenseTotal)) cells["speedup_total"] = *speedup;
    if (const auto speedup = report.Speedup(row, SweepRole::kDenseActive)) cells["speedup_active"] = *speedup;
    out["rows"].push_back(std::move(cells));
  }
  std::vector<double> tokens_per_s;
  std::vector<int64_t> measured;
  for (const SweepRow& row : report.rows) {
    measured.push_back(row.batch);
    tokens_per_s.push_back(static_cast<double>(row.batch) / row.cells.front().s_per_step);
  }
  const auto knee = KneeOf(measured, tokens_per_s);
  out["best_batch"] = knee ? nlohmann::json(*knee) : nlohmann::json();
  if (!report.subjects.front().config.has_experts()) return out;
  out["b_sat"] = Rounded(SaturationBatch(report.subjects.front().config));
  const auto list = [](const std::vector<double>& batches) {
    nlohmann::json array = nlohmann::json::array();
    for (const double batch : batches) array.push_back(Rounded(batch));
    return array;
  };
  if (report.Find(SweepRole::kDenseTotal) != nullptr) {
    out["crossover_total"] = list(CrossoverTotal(report));
    const Ratios curve = SpeedupCurve(report, SweepRole::kDenseTotal);
    AddPlateau(PlateauOf(curve.batches, curve.ratio), "plateau", out);
  }
  if (report.Find(SweepRole::kDenseActive) != nullptr) out["crossover_active"] = list(CrossoverActive(report));
  return out;
}

}  // namespace moe
