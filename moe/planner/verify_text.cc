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

}  // namespace

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
    text += fmt::format("- {}: predicted at batch {:.1f}, measured at {:.1f}, a factor of {:.2f}\n", b.name, b.predicted,
                        b.measured, b.factor());
  }
  const auto unnamed = std::count(v.named.begin(), v.named.end(), uint8_t{0});
  if (unnamed > 0) {
    text += fmt::format("- At {} {} the prediction misses by more than {}: no regime is named there.\n", unnamed,
                        unnamed == 1 ? "batch" : "batches", Percent(v.stated_error));
  }
  return text;
}

}  // namespace moe
