#include <algorithm>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "moe/base/progress.h"
#include "moe/planner/compare_report.h"

namespace moe {
namespace {

using nlohmann::json;
constexpr int kGrey = 8;  // of kChartColors

using Rows = std::vector<size_t>;
using ValueOfPoint = std::function<std::optional<double>(size_t variant, const ComparePoint& point)>;

struct Curves {
  const CompareReport& report;
  const Rows& rows;
  std::vector<std::vector<ComparePoint>> means;  // [rows]

  ChartOfLines Chart(const std::string& title, const char* x_title, const char* y_title, bool seconds,
                     const ValueOfPoint& value) const {
    ChartOfLines chart{.title = title, .x_title = x_title, .y_title = y_title};
    for (size_t i = 0; i < rows.size(); ++i) {
      const bool is_base = report.plan.variants[rows[i]].runs_of == 0;
      ChartSeries series{.name = report.plan.variants[rows[i]].name, .dashed = is_base, .color = is_base ? kGrey : -1};
      const double step_s = StepSecondsOf(report, rows[i]);
      for (const ComparePoint& point : means[i]) {
        const std::optional<double> y = value(rows[i], point);
        const double x = seconds ? static_cast<double>(point.step) * step_s : static_cast<double>(point.tokens);
        if (y) series.points.emplace_back(x, *y);
      }
      chart.series.push_back(std::move(series));
    }
    return chart;
  }

  // The same numbers: a row for each variant, a column for each of at most `kMost` evaluations.
  HtmlTable Table(const std::string& caption, const char* format, const ValueOfPoint& value) const {
    constexpr size_t kMost = 10;
    const auto longest = std::ranges::max_element(means, {}, [](const auto& curve) { return curve.size(); });
    const size_t all = longest->size(), columns = std::min(all, kMost);
    HtmlTable table{.caption = caption, .head = {"after tokens"}};
    std::vector<size_t> shown;
    for (size_t c = 1; c <= columns; ++c) shown.push_back(all * c / columns - 1);
    for (const size_t at : shown) table.head.push_back(FormatCount(static_cast<double>((*longest)[at].tokens)));
    for (size_t i = 0; i < rows.size(); ++i) {
      std::vector<std::string> row = {report.plan.variants[rows[i]].name};
      for (const size_t at : shown) {
        const std::optional<double> y = at < means[i].size() ? value(rows[i], means[i][at]) : std::nullopt;
        row.push_back(y ? fmt::format(fmt::runtime(format), *y) : "–");
      }
      table.rows.push_back(std::move(row));
    }
    return table;
  }
};

// From the second evaluation on: the first is so far above the rest that nothing else would be seen.
std::vector<ComparePoint> Later(std::vector<ComparePoint> curve) {
  if (curve.size() > 3) curve.erase(curve.begin());
  return curve;
}

std::string AxisPart(const CompareReport& report, const std::string& axis, const Rows& rows) {
  Curves curves{report, rows, {}};
  for (const size_t row : rows) curves.means.push_back(Later(MeanCurve(report, row)));
  std::string out = HtmlHeading(axis);
  if (std::ranges::all_of(curves.means, [](const auto& curve) { return curve.empty(); })) {
    return out + HtmlParagraph("No run is done yet.");
  }
  const auto bits = [](size_t, const ComparePoint& point) { return std::optional(point.bits_per_byte); };
  const std::vector<ComparePoint> against = MeanCurve(report, report.plan.against);
  const auto difference = [&](size_t, const ComparePoint& point) -> std::optional<double> {
    const auto it = std::ranges::find(against, point.step, &ComparePoint::step);
    return it == against.end() ? std::nullopt : std::optional(point.bits_per_byte - it->bits_per_byte);
  };
  const auto violation = [](size_t, const ComparePoint& point) { return std::optional(point.max_violation); };
  const auto dropped = [](size_t, const ComparePoint& point) { return std::optional(point.drop_rate * 100); };
  const auto logit = [](size_t, const ComparePoint& point) { return point.largest_logit; };
  const auto any = [&](const ValueOfPoint& value) {
    return std::ranges::any_of(curves.means, [&](const auto& curve) {
      return std::ranges::any_of(curve, [&](const ComparePoint& point) { return value(0, point).value_or(0) != 0; });
    });
  };
  const std::string name = report.plan.variants[report.plan.against].name;
  out += HtmlLineChart(curves.Chart("Bits per byte against tokens", "tokens", "bits per byte", false, bits));
  out += HtmlLineChart(curves.Chart("Bits per byte against seconds", "seconds in steps", "bits per byte", true, bits));
  if (any(difference)) {
    out += HtmlLineChart(curves.Chart("Bits per byte less those of " + name, "tokens", "difference", false, difference));
  }
  out += HtmlTableOf(curves.Table("Bits per byte of the validation text, mean over seeds", "{:.4f}", bits));
  if (any(violation)) {
    out += HtmlLineChart(curves.Chart("Max violation over time", "tokens", "fullest expert / mean - 1", false, violation));
    out += HtmlTableOf(curves.Table("Max violation of training batches, mean over layers and seeds", "{:.3f}", violation));
  }
  if (any(dropped)) {
    out += HtmlLineChart(curves.Chart("Drop rate", "tokens", "% of slots", false, dropped));
    out += HtmlTableOf(curves.Table("Dropped slots in training, %", "{:.2f}", dropped));
  }
  if (any(logit)) {
    out += HtmlLineChart(curves.Chart("Largest logit of the router", "tokens", "largest |logit|", false, logit));
    out += HtmlTableOf(curves.Table("Largest logit of the router since the evaluation before", "{:.1f}", logit));
  }
  return out;
}

// Bars, and the same as a table.
std::string StepTimes(const CompareReport& report) {
  HtmlTable table{.caption = "Time of a training step",
                  .head = {"variant", "step", "ratio to the base", "quartiles of the rounds"}};
  json names = json::array(), values = json::array();
  for (size_t i = 0; i < report.plan.variants.size(); ++i) {
    const double step_s = StepSecondsOf(report, i), ratio = StepRatioOf(report, i);
    if (report.plan.variants[i].runs_of != i || step_s == 0) continue;
    std::vector<double> rounds;
    for (const CompareResult& run : report.runs[i]) rounds.insert(rounds.end(), run.step_ratios.begin(), run.step_ratios.end());
    table.rows.push_back(
        {report.plan.variants[i].name, fmt::format("{:.2f} ms", step_s * 1e3), ratio > 0 ? fmt::format("{:.3f}", ratio) : "–",
         rounds.empty() ? "–" : fmt::format("{:.3f} to {:.3f}", Quantile(rounds, 0.25), Quantile(rounds, 0.75))});
    names.push_back(report.plan.variants[i].name);
    values.push_back(step_s * 1e3);
  }
  if (values.empty()) return "";
  const json config = {
      {"type", "bar"},
      {"data",
       {{"labels", std::move(names)},
        {"datasets", json::array({{{"label", "ms"}, {"data", std::move(values)}, {"backgroundColor", ChartColor(0)}}})}}},
      {"options",
       {{"indexAxis", "y"},
        {"plugins", {{"legend", {{"display", false}}}}},
        {"scales",
         {{"x", {{"beginAtZero", true}, {"title", {{"display", true}, {"text", "ms a step"}}}}},
          {"y", {{"ticks", {{"autoSkip", false}}}}}}}}}};
  return HtmlHeading("Step time") +
         HtmlChart("Time of a training step", config, HtmlParagraph("The table below has the numbers.")) + HtmlTableOf(table);
}

}  // namespace

std::string CompareHtml(const CompareReport& report) {
  const ComparePlan& plan = report.plan;
  std::string body =
      HtmlParagraph(fmt::format("{} variants of {}, {} seeds each, {} tokens a run. Dashed lines are the base.",
                                plan.variants.size(), plan.options.recipes.front(), plan.seeds.size(),
                                FormatCount(static_cast<double>(report.steps * plan.base().recipe.train.batch_tokens))));
  body += HtmlHeading("Results") + HtmlTableOf(CompareTable(report));
  for (const auto& [axis, rows] : RowsByAxis(plan)) body += AxisPart(report, axis, rows);
  body += StepTimes(report);
  body += HtmlHeading("Variants") + HtmlTableOf(VariantsTable(report));
  body += HtmlHeading("How it was measured");
  for (const std::string& sentence : CompareNotes(report)) body += HtmlParagraph(sentence);
  return HtmlPage("Comparison of " + std::filesystem::path(plan.options.recipes.front()).stem().string(), body);
}

}  // namespace moe
