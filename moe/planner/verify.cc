#include "moe/planner/verify.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/planner/sweep_report.h"

namespace moe {
namespace {

double ErrorOf(const StepTime& predicted, const SweepCell& cell) {
  return std::abs(predicted.s / cell.s_per_step - 1);
}

// The chances are the model's; of what else its experts did, only a router of its own has a say.
StepModel ModelOf(const SweepReport& report, size_t subject, const SweepCell& cell) {
  StepModel model{.config = report.subjects[subject].config, .format = report.format};
  if (!model.config.has_experts()) return model;
  model.chances = report.chances;
  if (report.routing.kind == SweepRouting::kModel) model.distinct_experts = cell.distinct_experts;
  return model;
}

size_t IndexOf(const SweepReport& report, SweepRole role) {
  const SweepSubject* subject = report.Find(role);
  return subject == nullptr ? report.subjects.size() : static_cast<size_t>(subject - report.subjects.data());
}

// Twin's time over the model's, row by row; empty without that twin.
struct SpeedUps {
  std::vector<double> predicted, measured;
};
SpeedUps SpeedUpsOver(const SweepReport& report, const Verification& v, SweepRole role) {
  const size_t twin = IndexOf(report, role);
  SpeedUps out;
  for (size_t r = 0; r < report.rows.size() && twin < report.subjects.size(); ++r) {
    out.predicted.push_back(v.cells[r][twin].adjacent.s / v.cells[r][0].adjacent.s);
    out.measured.push_back(*report.Speedup(report.rows[r], role));
  }
  return out;
}

PredictionError Summarise(const SweepReport& report, const Verification& v, StepTime CellPrediction::*which) {
  PredictionError out;
  double sum = 0, count = 0;
  std::array<double, 3> sums{}, counts{};
  for (size_t r = 0; r < report.rows.size(); ++r) {
    for (size_t i = 0; i < report.subjects.size(); ++i) {
      const double error = ErrorOf(v.cells[r][i].*which, report.rows[r].cells[i]);
      sum += error, ++count;
      if (v.regimes.empty()) continue;
      sums[static_cast<size_t>(v.regimes[r])] += error, ++counts[static_cast<size_t>(v.regimes[r])];
    }
  }
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  out.all = count > 0 ? sum / count : kNone;
  for (size_t i = 0; i < sums.size(); ++i) out.by_regime[i] = counts[i] > 0 ? sums[i] / counts[i] : kNone;
  return out;
}

std::optional<double> At(const std::vector<double>& all, size_t i) {
  return i < all.size() ? std::optional(all[i]) : std::nullopt;
}

// Noise may cross a level more than once: left of the least the first fall counts, right of it the last rise.
std::optional<double> Passes(std::span<const int64_t> batches, std::span<const double> speedup, bool falls) {
  const auto least = static_cast<size_t>(std::ranges::min_element(speedup) - speedup.begin());
  if (falls) return At(Crossings(batches.first(least + 1), speedup.first(least + 1), kGain), 0);
  const auto rises = Crossings(batches.subspan(least), speedup.subspan(least), kGain);
  return rises.empty() ? std::nullopt : std::optional(rises.back());
}

void Check(BoundaryCheck check, std::vector<BoundaryCheck>& out) {
  if (check.predicted || check.measured) out.push_back(std::move(check));
}

std::vector<BoundaryCheck> BoundaryChecks(std::span<const int64_t> batches, const SpeedUps& total, const SpeedUps& active) {
  std::vector<BoundaryCheck> out;
  if (batches.empty()) return out;
  const auto first = static_cast<double>(batches.front()), last = static_cast<double>(batches.back());
  if (!total.predicted.empty()) {
    for (const bool falls : {true, false}) {
      Check({falls ? "speed-up over equal total falls below 1.25" : "speed-up over equal total rises above 1.25",
             Passes(batches, total.predicted, falls), Passes(batches, total.measured, falls), falls ? first : last},
            out);
    }
  }
  if (!active.predicted.empty()) {
    const auto predicted = ActiveCrossings(batches, active.predicted), measured = ActiveCrossings(batches, active.measured);
    Check({"speed-up over equal active is least", At(predicted, 0), At(measured, 0), last}, out);
    Check({"speed-up over equal active is back at 0.8", At(predicted, 1), At(measured, 1), last}, out);
  }
  return out;
}

double Flop(const StepTime& time, bool experts) {
  const auto part = [&](StepPart p) { return time.part_flop[static_cast<size_t>(p)]; };
  return experts ? part(StepPart::kExperts) + part(StepPart::kRouter) : time.flop;
}
double Seconds(const SweepCell& cell, bool experts) {
  const auto part = [&](StepPart p) { return cell.part_s[static_cast<size_t>(p)]; };
  return experts ? part(StepPart::kExperts) + part(StepPart::kRouter) : cell.s_per_step;
}

FlopGain GainAt(const SweepRow& row, const std::vector<CellPrediction>& cells, size_t twin, bool experts) {
  return {.speedup = Seconds(row.cells[twin], experts) / Seconds(row.cells[0], experts),
          .flop_ratio = Flop(cells[twin].adjacent, experts) / Flop(cells[0].adjacent, experts)};
}

}  // namespace

double BoundaryCheck::factor() const {
  const double a = predicted.value_or(edge), b = measured.value_or(edge);
  return std::max(a / b, b / a);
}

Verification Verify(const SweepReport& report, const MachineProfile& machine) {
  Verification v;
  std::vector<int64_t> batches;
  double repeats = 0, cells = 0;
  for (const SweepRow& row : report.rows) {
    batches.push_back(row.batch);
    const Step step{report.phase, row.batch, report.context};
    const Conditions now{machine, row.weights_bytes_per_s / machine.memory_bytes_per_s(),
                         machine.pace_flop_per_s > 0 ? row.pace_flop_per_s / machine.pace_flop_per_s : 1};
    std::vector<CellPrediction>& predictions = v.cells.emplace_back();
    for (size_t i = 0; i < report.subjects.size(); ++i) {
      const StepModel model = ModelOf(report, i, row.cells[i]);
      predictions.push_back({Predict(model, step, now), Predict(model, step, {machine})});
      repeats += row.cells[i].repeat_error, ++cells;
    }
  }
  v.repeat_error = cells > 0 ? repeats / cells : 0;
  v.stated_error = std::max(0.1, 2 * v.repeat_error);

  const SpeedUps total = SpeedUpsOver(report, v, SweepRole::kDenseTotal);
  const SpeedUps active = SpeedUpsOver(report, v, SweepRole::kDenseActive);
  const size_t twin = IndexOf(report, SweepRole::kDenseTotal);
  for (size_t r = 0; r < total.predicted.size(); ++r) {
    v.regimes.push_back(RegimeOf(total.predicted[r], v.cells[r][twin].adjacent.memory_bound()));
  }
  for (size_t r = 0; r < v.regimes.size(); ++r) {
    const auto& row = report.rows[r].cells;
    v.named.push_back(ErrorOf(v.cells[r][0].adjacent, row[0]) <= v.stated_error &&
                      ErrorOf(v.cells[r][twin].adjacent, row[twin]) <= v.stated_error);
  }
  v.adjacent = Summarise(report, v, &CellPrediction::adjacent);
  v.cached = Summarise(report, v, &CellPrediction::cached);

  v.profile_handover_s = machine.handover_s;
  v.boundaries = BoundaryChecks(batches, total, active);
  v.closed_forms =
      BoundariesOf(report.subjects[0].config, machine, report.format, static_cast<double>(SizeOf(report.format)), report.phase);
  if (total.predicted.empty()) return v;
  v.predicted_plateau = PlateauOf(batches, total.predicted), v.measured_plateau = PlateauOf(batches, total.measured);
  v.whole = GainAt(report.rows.back(), v.cells.back(), twin, false);
  v.experts = GainAt(report.rows.back(), v.cells.back(), twin, true);
  return v;
}

}  // namespace moe
