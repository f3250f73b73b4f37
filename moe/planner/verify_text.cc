#include <fmt/format.h>

#include <cmath>

#include "moe/base/progress.h"
#include "moe/planner/sweep_report.h"
#include "moe/planner/verify.h"
#include "moe/planner/wrapped.h"

namespace moe {
namespace {

std::string Percent(double share) {
  return std::isnan(share) ? "-" : fmt::format("{:.1f} %", 100 * share);
}

std::string Signed(double predicted, double measured) {
  return fmt::format("{:+.1f} %", 100 * (predicted / measured - 1));
}

std::string PlateauText(std::string_view verb, const Plateau& plateau) {
  return fmt::format("Plateau {}: {}, within {:.0f} % of 1 over batches {:.3g} to {:.3g} at best.", verb,
                     plateau.exists() ? "yes" : "no", 100 * *plateau.deviation, plateau.from, 2 * plateau.from);
}

}  // namespace

TerminalPlot ValleyOf(const SweepReport& report, const Verification* v) {
  TerminalPlot plot{.title = "speed-up of the MoE over dense models", .x_name = "batch"};
  const SweepSubject* twin = report.Find(SweepRole::kDenseTotal);
  std::vector<int64_t> batches;
  PlotSeries total{"of equal total size", {}}, active{"of equal active size", {}},
      predicted{"of equal total size, predicted", {}};
  for (size_t r = 0; r < report.rows.size(); ++r) {
    const SweepRow& row = report.rows[r];
    batches.push_back(row.batch), plot.x.push_back(static_cast<double>(row.batch));
    if (const auto x = report.Speedup(row, SweepRole::kDenseTotal)) total.y.push_back(*x);
    if (const auto x = report.Speedup(row, SweepRole::kDenseActive)) active.y.push_back(*x);
    if (v == nullptr || twin == nullptr) continue;
    predicted.y.push_back(v->cells[r][static_cast<size_t>(twin - report.subjects.data())].adjacent.s /
                          v->cells[r][0].adjacent.s);
  }
  if (!total.y.empty()) {
    std::vector<std::string> names;
    const std::vector<Regime> regimes = v != nullptr ? v->regimes : RegimesOf(total.y);
    for (size_t r = 0; r < regimes.size(); ++r) {
      names.emplace_back(v == nullptr || v->named[r] ? Name(regimes[r]) : "not named");
    }
    for (const RegimeBand& band : BandsOf(batches, total.y, names)) plot.bands.push_back({band.from, band.to, band.name});
  }
  for (PlotSeries& series : {std::ref(total), std::ref(active), std::ref(predicted)}) {
    if (!series.y.empty()) plot.series.push_back(std::move(series));
  }
  return plot;
}

std::vector<std::string> Findings(const SweepReport& report, const Verification& v) {
  std::vector<std::string> out;
  if (v.whole) {
    const Boundaries& b = v.closed_forms;
    if (b.b_sat > 0 && b.b_d > 0) {
      out.push_back(
          fmt::format("Plateau in theory: {}, all experts are read from batch {:.1f} on, arithmetic binds from {:.1f} on.",
                      b.plateau() ? "yes" : "no", b.b_sat, b.b_d));
    }
    if (v.predicted_plateau.deviation) out.push_back(PlateauText("predicted", v.predicted_plateau));
    if (v.measured_plateau.deviation) out.push_back(PlateauText("measured", v.measured_plateau));
    out.push_back(
        fmt::format("At batch {} the MoE is {:.2f} times as fast as the dense model of its size, {:.2f} of the FLOP ratio; its "
                    "expert layers alone {:.2f} times, {:.2f} of theirs.",
                    report.rows.back().batch, v.whole->speedup, v.whole->share(), v.experts->speedup, v.experts->share()));
  }
  const auto elsewhere = std::ranges::count_if(report.rows, [&](const SweepRow& row) {
    return v.profile_handover_s > 0 && !SamePlacement(row.handover_s, v.profile_handover_s);
  });
  if (elsewhere > 0) {
    out.push_back(
        fmt::format("At {} of {} batches the cores lay elsewhere than when the profile was measured (a value takes {} "
                    "from one to the next there): predictions are of the profile's placement.",
                    elsewhere, report.rows.size(), FormatSeconds(v.profile_handover_s)));
  }
  return out;
}

std::string VerifyText(const SweepReport& report, const Verification& v) {
  if (report.rows.empty()) return "";
  std::string text = fmt::format("\nPredicted beside measured\n\n{:>5}  {:<12}  {:>9}  {:>9}  {:>9}  {:>12}  {:>9}  {}\n",
                                 "batch", "model", "measured", "predicted", "off by", "cached probe", "repeats", "regime");
  for (size_t r = 0; r < report.rows.size(); ++r) {
    const SweepRow& row = report.rows[r];
    for (size_t i = 0; i < row.cells.size(); ++i) {
      const SweepCell& cell = row.cells[i];
      const CellPrediction& p = v.cells[r][i];
      const bool regime = i == 0 && !v.regimes.empty();
      text +=
          fmt::format("{:>5}  {:<12}  {:>9}  {:>9}  {:>9}  {:>12}  {:>9}  {}\n", i == 0 ? std::to_string(row.batch) : "",
                      SweepLabel(report.subjects[i]), FormatSeconds(cell.s_per_step), FormatSeconds(p.adjacent.s),
                      Signed(p.adjacent.s, cell.s_per_step), Signed(p.cached.s, cell.s_per_step), Percent(cell.repeat_error),
                      !regime      ? ""
                      : v.named[r] ? Name(v.regimes[r])
                                   : "not named");
    }
  }
  text += fmt::format(
      "\nMean error {} ({} by memory, {} middle, {} compute), {} with the cached probe; the sweep repeats itself within {}.\n",
      Percent(v.adjacent.all), Percent(v.adjacent.by_regime[0]), Percent(v.adjacent.by_regime[1]),
      Percent(v.adjacent.by_regime[2]), Percent(v.cached.all), Percent(v.repeat_error));
  for (const BoundaryCheck& b : v.boundaries) {
    const auto side = [&](const char* verb, const std::optional<double>& batch) {
      return batch ? fmt::format("{} at batch {:.1f}", verb, *batch) : fmt::format("not {} among these batches", verb);
    };
    text += fmt::format("- {}: {}, {}, a factor of {}{:.2f}; {:.1f} to {:.1f} within the sweep's own error\n", b.name,
                        side("predicted", b.predicted), side("measured", b.measured), b.exact() ? "" : "at least ", b.factor(),
                        b.from, b.to);
  }
  for (const std::string& finding : Findings(report, v)) text += "- " + finding + "\n";
  const auto unnamed = std::count(v.named.begin(), v.named.end(), uint8_t{0});
  if (unnamed > 0) {
    text += fmt::format("- At {} {} the prediction misses by more than {}: no regime is named there.\n", unnamed,
                        unnamed == 1 ? "batch" : "batches", Percent(v.stated_error));
  }
  return text;
}

}  // namespace moe
