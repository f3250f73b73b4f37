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

void Check(const std::string& name, const std::vector<double>& predicted, const std::vector<double>& measured,
           std::vector<BoundaryCheck>& out) {
  for (size_t i = 0; i < std::min(predicted.size(), measured.size()); ++i) {
    out.push_back({name, predicted[i], measured[i]});
  }
}

}  // namespace

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
  if (!total.predicted.empty()) v.regimes = RegimesOf(total.predicted);
  for (size_t r = 0; r < v.regimes.size(); ++r) {
    const auto& row = report.rows[r].cells;
    v.named.push_back(ErrorOf(v.cells[r][0].adjacent, row[0]) <= v.stated_error &&
                      ErrorOf(v.cells[r][twin].adjacent, row[twin]) <= v.stated_error);
  }
  v.adjacent = Summarise(report, v, &CellPrediction::adjacent);
  v.cached = Summarise(report, v, &CellPrediction::cached);

  // Falling and rising ones apart: noise may cross a level more than once, the first fall and the last rise count.
  const auto falls_and_rises = [&](const std::vector<double>& speedup, bool falls) {
    std::vector<double> out;
    const auto least = static_cast<size_t>(std::min_element(speedup.begin(), speedup.end()) - speedup.begin());
    const std::span<const int64_t> x(batches);
    const std::span<const double> y(speedup);
    if (falls) {
      out = Crossings(x.first(least + 1), y.first(least + 1), kGain);
    } else {
      out = Crossings(x.subspan(least), y.subspan(least), kGain);
    }
    if (out.size() > 1) out = {falls ? out.front() : out.back()};
    return out;
  };
  if (!total.predicted.empty()) {
    for (const bool falls : {true, false}) {
      Check(falls ? "speed-up over equal total falls below 1.25" : "speed-up over equal total rises above 1.25",
            falls_and_rises(total.predicted, falls), falls_and_rises(total.measured, falls), v.boundaries);
    }
  }
  if (!active.predicted.empty()) {
    const auto predicted = ActiveCrossings(batches, active.predicted), measured = ActiveCrossings(batches, active.measured);
    const auto only = [](const std::vector<double>& all, size_t i) {
      return i < all.size() ? std::vector<double>{all[i]} : std::vector<double>{};
    };
    Check("speed-up over equal active is least", only(predicted, 0), only(measured, 0), v.boundaries);
    Check("speed-up over equal active is back at 0.8", only(predicted, 1), only(measured, 1), v.boundaries);
  }
  return v;
}

}  // namespace moe
