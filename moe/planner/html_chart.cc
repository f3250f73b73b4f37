// Lines over a number: as Chart.js is told, and as an SVG that needs nothing.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "moe/base/progress.h"
#include "moe/planner/html_page.h"

namespace moe {
namespace {

using Points = std::vector<std::pair<double, double>>;

Points Shown(const ChartOfLines& chart, const ChartSeries& series) {
  Points points;
  for (const auto& [x, y] : series.points) {
    const bool there = std::isfinite(x) && std::isfinite(y) && (!chart.log_x || x > 0) && (!chart.log_y || y > 0);
    if (there) points.emplace_back(x, y);
  }
  return points;
}

const char* ColorOf(const ChartSeries& series, size_t index) {
  return ChartColor(series.color >= 0 ? static_cast<size_t>(series.color) : index);
}

// From values to pixels; on a logarithmic axis by their logarithms.
struct Scale {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  bool log = false;
  double from = 0, to = 1;  // pixels
  std::vector<double> ticks;

  double Of(double value) const { return log ? std::log10(value) : value; }
  void Take(double value) { low = std::min(low, Of(value)), high = std::max(high, Of(value)); }
  void Round() {
    if (!(low <= high)) low = 0, high = 1;
    ticks = AxisTicks(low, high, log ? 5 : 6);
    low = std::min(low, ticks.front()), high = std::max(high, ticks.back());
  }
  double Pixel(double tick) const { return from + (tick - low) / (high - low) * (to - from); }
  std::string Text(double tick) const {
    const double value = log ? std::pow(10, tick) : tick;
    return std::abs(value) >= 1e5 ? FormatCount(value) : fmt::format("{:.4g}", value);
  }
};

}  // namespace

const char* ChartColor(size_t index) {
  return kChartColors[index % std::size(kChartColors)];
}

std::vector<double> AxisTicks(double low, double high, int count) {
  if (high <= low) {
    const double room = low == 0 ? 1 : std::abs(low) / 2;
    low -= room, high += room;
  }
  const double rough = (high - low) / std::max(1, count - 1), power = std::pow(10, std::floor(std::log10(rough)));
  const double unit = rough / power;
  const double step = power * (unit <= 1 ? 1 : unit <= 2 ? 2 : unit <= 5 ? 5 : 10);
  std::vector<double> ticks;
  for (double i = std::floor(low / step); ticks.size() < 2 || ticks.back() < high - step * 1e-9; ++i) ticks.push_back(i * step);
  return ticks;
}

nlohmann::json LineChartConfig(const ChartOfLines& chart) {
  auto sets = nlohmann::json::array();
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const ChartSeries& series = chart.series[i];
    auto points = nlohmann::json::array();
    for (const auto& [x, y] : Shown(chart, series)) points.push_back({{"x", x}, {"y", y}});
    const bool many = points.size() > 40;
    sets.push_back({{"label", series.name},
                    {"data", std::move(points)},
                    {"showLine", series.line},
                    {"borderColor", ColorOf(series, i)},
                    {"backgroundColor", ColorOf(series, i)},
                    {"borderWidth", 2},
                    {"pointRadius", series.line && many ? 0 : 3},
                    {"pointHoverRadius", 5},
                    {"borderDash", series.dashed ? nlohmann::json{6, 4} : nlohmann::json::array()}});
  }
  const auto axis = [](const std::string& title, bool log) {
    return nlohmann::json{{"type", log ? "logarithmic" : "linear"}, {"title", {{"display", true}, {"text", title}}}};
  };
  return {{"type", "line"},
          {"data", {{"datasets", std::move(sets)}}},
          {"options",
           {{"interaction", {{"mode", "nearest"}, {"intersect", false}}},
            {"scales", {{"x", axis(chart.x_title, chart.log_x)}, {"y", axis(chart.y_title, chart.log_y)}}}}}};
}

std::string LineChartSvg(const ChartOfLines& chart) {
  constexpr int kWidth = 860, kHeight = 380, kLeft = 64, kRight = 8, kTop = 8, kBottom = 44, kLegend = 170;
  Scale x{.log = chart.log_x, .from = kLeft, .to = kWidth - kRight - kLegend};
  Scale y{.log = chart.log_y, .from = kHeight - kBottom, .to = kTop};
  for (const ChartSeries& series : chart.series) {
    for (const auto& point : Shown(chart, series)) x.Take(point.first), y.Take(point.second);
  }
  x.Round(), y.Round();
  std::string out = fmt::format(
      "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\" font-size=\"12\" fill=\"currentColor\" "
      "stroke-linejoin=\"round\">\n",
      kWidth, kHeight, HtmlEscape(chart.title));
  const auto line = [&](double x1, double y1, double x2, double y2) {
    out += fmt::format("<path d=\"M{:.1f} {:.1f}L{:.1f} {:.1f}\" stroke=\"currentColor\" stroke-opacity=\"0.2\"/>", x1, y1, x2,
                       y2);
  };
  const auto text = [&](double at_x, double at_y, const char* anchor, std::string_view what) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", at_x, at_y, anchor, HtmlEscape(what));
  };
  for (const double tick : x.ticks) {
    line(x.Pixel(tick), y.from, x.Pixel(tick), y.to);
    text(x.Pixel(tick), y.from + 16, "middle", x.Text(tick));
  }
  for (const double tick : y.ticks) {
    line(x.from, y.Pixel(tick), x.to, y.Pixel(tick));
    text(x.from - 6, y.Pixel(tick) + 4, "end", y.Text(tick));
  }
  text((x.from + x.to) / 2, kHeight - 8, "middle", chart.x_title);
  out += fmt::format("<text transform=\"translate(12 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n", (y.from + y.to) / 2,
                     HtmlEscape(chart.y_title));
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const ChartSeries& series = chart.series[i];
    const char* color = ColorOf(series, i);
    std::string path;
    for (const auto& [px, py] : Shown(chart, series)) {
      const double at_x = x.Pixel(x.Of(px)), at_y = y.Pixel(y.Of(py));
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", at_x, at_y);
      if (!series.line) out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", at_x, at_y, color);
    }
    const char* dash = series.dashed ? " stroke-dasharray=\"6 4\"" : "";
    if (series.line && !path.empty()) {
      out += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>\n", path, color, dash);
    }
    const double at = kTop + 8 + 18 * static_cast<double>(i);
    out += fmt::format("<path d=\"M{} {}h20\" stroke=\"{}\" stroke-width=\"3\"{}/>", x.to + 12, at, color, dash);
    text(x.to + 38, at + 4, "start", series.name);
  }
  return out + "</svg>";
}

std::string HtmlLineChart(const ChartOfLines& chart) {
  return HtmlChart(chart.title, LineChartConfig(chart), LineChartSvg(chart));
}

}  // namespace moe
