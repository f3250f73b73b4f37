// The charts of the page.

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "moe/planner/report_html.h"

namespace moe {
namespace {

using nlohmann::json;
constexpr int kGrey = 8;
constexpr int kColorOfRole[] = {0, 3, 1};                                // of SweepRole, in kChartColors
constexpr int kColorOfPart[kNumReportParts] = {0, 4, 1, 3, 8, 6, 5, 9};  // attention router experts optimizer other ...

int ColorOf(SweepRole role) {
  return kColorOfRole[static_cast<size_t>(role)];
}

// Numbers of any size in ticks and tooltips; Chart.js would show three decimals.
json Compact(const ChartOfLines& chart) {
  json config = LineChartConfig(chart);
  config["options"]["plugins"]["legend"]["labels"] = {{"usePointStyle", true}, {"boxHeight", 7}};
  for (json& set : config["data"]["datasets"]) {
    set["clip"] = 8;  // px: points at the border are whole
    if (set["pointRadius"] == 0) set["pointStyle"] = "line";
  }
  for (const char* axis : {"x", "y"}) {
    config["options"]["scales"][axis]["ticks"]["format"] = {{"notation", "compact"}, {"maximumSignificantDigits", 4}};
  }
  return config;
}

std::string Drawn(const ChartOfLines& chart) {
  return HtmlChart(chart.title, Compact(chart), LineChartSvg(chart));
}

std::vector<double> Batches(const EconomicsReport& report) {
  std::vector<double> out;
  for (const ReportRow& row : report.rows) out.push_back(static_cast<double>(row.batch));
  return out;
}

// As ticks: with many batches only every other one, or fewer.
std::vector<double> BatchTicks(const EconomicsReport& report) {
  constexpr size_t kMost = 14;
  const std::vector<double> all = Batches(report);
  if (all.size() < 2) return {};
  const size_t step = (all.size() + kMost - 1) / kMost;
  std::vector<double> out;
  for (size_t i = 0; i < all.size(); i += step) out.push_back(all[i]);
  if (out.back() != all.back()) out.push_back(all.back());
  return out;
}

// What is drawn of one row, of predicted or of measured figures; nothing: no point.
using PointOf =
    std::function<std::optional<std::pair<double, double>>(const ReportRow&, std::optional<ReportFigures> ReportCell::*)>;

// Predictions are lines; measured points alone where there are predictions, else lines.
void AddCurves(const EconomicsReport& report, const std::string& name, int color, const PointOf& point, ChartOfLines& chart) {
  for (const bool measured : {false, true}) {
    if (measured ? !report.measured() : !report.predicted()) continue;
    const bool both = report.measured() && report.predicted();
    ChartSeries series{
        .name = both ? name + (measured ? ", measured" : ", predicted") : name, .line = !(both && measured), .color = color};
    series.dots = !both, series.labels_beside = !both || measured;
    for (const ReportRow& row : report.rows) {
      const auto at = point(row, measured ? &ReportCell::measured : &ReportCell::predicted);
      if (!at) continue;
      series.points.push_back(*at);
      series.labels.push_back(std::to_string(row.batch));
    }
    chart.series.push_back(std::move(series));
  }
}

ChartOfLines ByBatch(const EconomicsReport& report, const std::string& title, const std::string& y_title) {
  ChartOfLines chart{.title = title, .x_title = "batch", .y_title = y_title, .log_x = true};
  chart.x_ticks = BatchTicks(report), chart.label_name = "batch";
  return chart;
}

ChartSeries Level(const EconomicsReport& report, const std::string& name, double y) {
  ChartSeries series{.name = name, .dashed = true, .color = kGrey, .dots = false};
  const std::vector<double> batches = Batches(report);
  series.points = {{batches.front(), y}, {batches.back(), y}};
  return series;
}

bool NoneMeasured(const EconomicsReport& report, size_t part) {
  return std::ranges::none_of(report.rows, [&](const ReportRow& row) { return row.cells.front().measured->part_s[part] > 0; });
}

}  // namespace

std::string ValleyChart(const EconomicsReport& report) {
  if (report.models.size() < 2 || report.rows.empty()) return "";
  ChartOfLines chart = ByBatch(report, "The valley: how much faster the MoE is than a dense model", "speed-up");
  chart.log_y = true, chart.bands = report.regimes;
  for (const ReportBoundary& b : report.boundaries) chart.marks.push_back({b.batch, b.name});
  for (const SweepRole role : {SweepRole::kDenseTotal, SweepRole::kDenseActive}) {
    const auto twin = report.Find(role);
    if (!twin) continue;
    AddCurves(
        report, report.models[*twin].name, ColorOf(role),
        [&](const ReportRow& row, const auto which) -> std::optional<std::pair<double, double>> {
          return std::pair(static_cast<double>(row.batch), (row.cells[*twin].*which)->s / (row.cells[0].*which)->s);
        },
        chart);
  }
  chart.series.push_back(Level(report, "as fast", 1));
  return Drawn(chart);
}

std::string ThroughputChart(const EconomicsReport& report) {
  if (report.rows.empty()) return "";
  ChartOfLines chart{.title = "Throughput against latency; labels are batches",
                     .x_title = "ms per step",
                     .y_title = "tokens per second",
                     .log_x = true,
                     .log_y = true};
  chart.label_name = "batch", chart.show_labels = true;
  for (size_t i = 0; i < report.models.size(); ++i) {
    AddCurves(
        report, report.models[i].name, ColorOf(report.models[i].role),
        [&](const ReportRow& row, const auto which) -> std::optional<std::pair<double, double>> {
          return std::pair((row.cells[i].*which)->s * 1e3, (row.cells[i].*which)->tokens_per_s);
        },
        chart);
  }
  return Drawn(chart);
}

std::string DistinctChart(const EconomicsReport& report) {
  if (report.experts == 0 || report.rows.empty()) return "";
  ChartOfLines chart = ByBatch(report, "Experts of a layer that have a token", "distinct experts");
  if (!report.boundaries.empty() && report.boundaries.front().name == "B_sat") {
    chart.marks = {{report.boundaries.front().batch, "B_sat"}};
  }
  AddCurves(
      report, "experts", ColorOf(SweepRole::kModel),
      [&](const ReportRow& row, const auto which) -> std::optional<std::pair<double, double>> {
        return std::pair(static_cast<double>(row.batch), (row.cells[0].*which)->distinct_experts);
      },
      chart);
  chart.series.push_back(Level(report, "all", static_cast<double>(report.experts)));
  return Drawn(chart);
}

std::string RooflineChart(const EconomicsReport& report) {
  if (report.rows.empty() || report.memory_bytes_per_s <= 0) return "";
  ChartOfLines chart{
      .title = "Roofline; labels are batches", .x_title = "FLOP per byte", .y_title = "GFLOP/s", .log_x = true, .log_y = true};
  chart.label_name = "batch", chart.show_labels = true;
  double low = 1e300, high = 0;
  for (const ReportRow& row : report.rows) {
    for (const ReportCell& cell : row.cells) {
      const double x = cell.best().flop / cell.best().bytes;
      low = std::min(low, x), high = std::max(high, x);
    }
  }
  const double peak = report.peak_flop_per_s;
  if (peak > 0) high = std::max(high, 2 * peak / report.memory_bytes_per_s);
  const auto roof = [&](const std::string& name, double bytes_per_s) {
    ChartSeries series{.name = name, .dashed = true, .color = kGrey, .dots = false};
    series.points = {{low, std::min(low * bytes_per_s, peak > 0 ? peak : 1e300) / 1e9}};
    const double ridge = peak / bytes_per_s;
    if (ridge > low && ridge < high) series.points.emplace_back(ridge, peak / 1e9);
    series.points.emplace_back(high, (peak > 0 ? std::min(peak, high * bytes_per_s) : high * bytes_per_s) / 1e9);
    chart.series.push_back(std::move(series));
  };
  for (size_t i = 0; i < report.models.size(); ++i) {
    AddCurves(
        report, report.models[i].name, ColorOf(report.models[i].role),
        [&](const ReportRow& row, const auto which) -> std::optional<std::pair<double, double>> {
          const ReportFigures& f = *(row.cells[i].*which);
          return std::pair(f.flop / f.bytes, f.flop / f.s / 1e9);
        },
        chart);
  }
  for (ChartSeries& series : chart.series)
    series.labels_beside &= series.color == ColorOf(SweepRole::kModel);  // they lie close
  roof(peak > 0 ? "memory, arithmetic" : "memory", report.memory_bytes_per_s);
  if (report.cache_bytes_per_s > 1.05 * report.memory_bytes_per_s) {
    roof("caches, arithmetic", report.cache_bytes_per_s);
    chart.series.back().color = 9;
  }
  return Drawn(chart);
}

std::string PartsChart(const EconomicsReport& report) {
  if (report.rows.empty()) return "";
  const bool both = report.predicted() && report.measured();
  json labels = json::array(), sets = json::array();
  for (const ReportRow& row : report.rows) labels.push_back(std::to_string(row.batch));
  for (const bool measured : {true, false}) {
    if (measured ? !report.measured() : !report.predicted()) continue;
    for (int p = 0; p < kNumReportParts; ++p) {
      json values = json::array();
      double most = 0;
      for (const ReportRow& row : report.rows) {
        const ReportCell& cell = row.cells.front();
        const ReportFigures& figures = measured ? *cell.measured : *cell.predicted;
        const double share = 100 * figures.part_s[static_cast<size_t>(p)] / cell.best().s;
        values.push_back(share), most = std::max(most, share);
      }
      const std::string color = ChartColor(static_cast<size_t>(kColorOfPart[p]));
      if (most <= 0) continue;
      const bool named = !both || measured || NoneMeasured(report, static_cast<size_t>(p));
      const std::string kind = !both ? "" : measured ? ", measured" : ", predicted";
      sets.push_back({{"label", std::string(NameOfReportPart(p)) + kind},
                      {"data", std::move(values)},
                      {"unnamed", !named},  // in the legend
                      {"stack", measured ? "measured" : "predicted"},
                      {"backgroundColor", both && !measured ? color + "80" : color}});
    }
  }
  const json config = {{"type", "bar"},
                       {"data", {{"labels", std::move(labels)}, {"datasets", std::move(sets)}}},
                       {"options",
                        {{"scales",
                          {{"x", {{"stacked", true}, {"title", {{"display", true}, {"text", "batch"}}}}},
                           {"y",
                            {{"stacked", true},
                             {"ticks", {{"format", {{"maximumSignificantDigits", 3}}}}},
                             {"title", {{"display", true}, {"text", both ? "% of the measured step" : "% of the step"}}}}}}},
                         {"plugins", {{"tooltip", {{"mode", "nearest"}}}}}}}};
  return HtmlChart(both                 ? "Where the MoE's time goes: measured, and predicted in paler colours beside it"
                   : report.experts > 0 ? "Where the MoE's time goes"
                                        : "Where the time goes",
                   config, HtmlParagraph("The table of parts below has the numbers."));
}

}  // namespace moe
