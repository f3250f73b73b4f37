#include "moe/planner/verify.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

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

std::vector<double> Times(std::span<const double> curve, double factor) {
  std::vector<double> out(curve.begin(), curve.end());
  for (double& y : out) y *= factor;
  return out;
}

// Batches between which the least of a curve may lie that is known within `error`.
std::pair<double, double> RangeOfLeast(std::span<const int64_t> batches, std::span<const double> curve, double error) {
  const auto at = static_cast<size_t>(std::ranges::min_element(curve) - curve.begin());
  const double level = curve[at] * (1 + error);
  const auto left = Crossings(batches.first(at + 1), curve.first(at + 1), level);
  const auto right = Crossings(batches.subspan(at), curve.subspan(at), level);
  return {left.empty() ? static_cast<double>(batches.front()) : left.back(),
          right.empty() ? static_cast<double>(batches.back()) : right.front()};
}

std::vector<BoundaryCheck> BoundaryChecks(std::span<const int64_t> batches, const SpeedUps& total, const SpeedUps& active,
                                          double repeat_error) {
  std::vector<BoundaryCheck> out;
  if (batches.empty()) return out;
  const auto first = static_cast<double>(batches.front()), last = static_cast<double>(batches.back());
  // `passes`: of a curve, the batch at which it passes the level, if it does.
  const auto check = [&](const char* name, const SpeedUps& curves, double level, bool falls, auto&& passes) {
    BoundaryCheck b{name, passes(curves.predicted), passes(curves.measured), falls ? first : last};
    if (!b.predicted && !b.measured) return;
    // A curve that does not has done so before the first batch, or will after the last.
    const auto at = [&](const std::vector<double>& curve) {
      const bool passed = falls ? curve.front() <= level : std::ranges::min(curve) >= level;
      return passes(curve).value_or(passed ? first : last);
    };
    const double low = at(Times(curves.measured, 1 - repeat_error)), high = at(Times(curves.measured, 1 + repeat_error));
    b.from = std::min(low, high), b.to = std::max(low, high);
    out.push_back(std::move(b));
  };
  if (!total.predicted.empty()) {
    for (const bool falls : {true, false}) {
      check(falls ? "speed-up over equal total falls below 1.25" : "speed-up over equal total rises above 1.25", total, kGain,
            falls, [&](const std::vector<double>& curve) { return Passes(batches, curve, falls); });
    }
  }
  if (!active.predicted.empty()) {
    const auto crossing = [&](size_t i) {
      return [&, i](const std::vector<double>& curve) { return At(ActiveCrossings(batches, curve), i); };
    };
    const size_t before = out.size();
    check("speed-up over equal active is least", active, 1, false, crossing(0));
    if (out.size() > before) std::tie(out.back().from, out.back().to) = RangeOfLeast(batches, active.measured, repeat_error);
    check("speed-up over equal active is back at 0.8", active, 0.8, false, crossing(1));
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

bool BoundaryCheck::within_repeats() const {
  const double batch = predicted.value_or(edge);
  return from <= batch && batch <= to;
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
  v.boundaries = BoundaryChecks(batches, total, active, v.repeat_error);
  v.closed_forms =
      BoundariesOf(report.subjects[0].config, machine, report.format, static_cast<double>(SizeOf(report.format)), report.phase);
  if (total.predicted.empty()) return v;
  v.predicted_plateau = PlateauOf(batches, total.predicted), v.measured_plateau = PlateauOf(batches, total.measured);
  v.whole = GainAt(report.rows.back(), v.cells.back(), twin, false);
  v.experts = GainAt(report.rows.back(), v.cells.back(), twin, true);
  return v;
}

}  // namespace moe
