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

struct Point {
  double x = 0, y = 0;
  std::string label;
};

std::vector<Point> Shown(const ChartOfLines& chart, const ChartSeries& series) {
  std::vector<Point> points;
  for (size_t i = 0; i < series.points.size(); ++i) {
    const auto& [x, y] = series.points[i];
    const bool there = std::isfinite(x) && std::isfinite(y) && (!chart.log_x || x > 0) && (!chart.log_y || y > 0);
    if (there) points.push_back({x, y, i < series.labels.size() ? series.labels[i] : ""});
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
    if (log) return RoundLog();
    ticks = AxisTicks(low, high, 6);
    low = std::min(low, ticks.front()), high = std::max(high, ticks.back());
  }
  // Over few decades 1, 2, 5, over many their powers of ten.
  void RoundLog() {
    const double room = std::max(0.02, 0.04 * (high - low));
    low -= room, high += room;
    if (high - low > 3) {
      for (const double tick : AxisTicks(std::ceil(low), std::floor(high), 6)) ticks.push_back(std::round(tick));
    } else {
      for (double decade = std::floor(low); decade <= high; ++decade) {
        for (const double digit : {1.0, 2.0, 5.0}) ticks.push_back(decade + std::log10(digit));
      }
    }
    std::erase_if(ticks, [&](double tick) { return tick < low || tick > high; });
    ticks.erase(std::unique(ticks.begin(), ticks.end()), ticks.end());
  }
  double Pixel(double tick) const { return from + (tick - low) / (high - low) * (to - from); }
  std::string Text(double tick) const {
    const double value = log ? std::pow(10, tick) : tick;
    return std::abs(value) >= 1e5 ? FormatCount(value) : fmt::format("{:.4g}", value);
  }
};

struct Scales {
  Scale x, y;
};
Scales ScalesOf(const ChartOfLines& chart) {
  Scales out{{.log = chart.log_x}, {.log = chart.log_y}};
  for (const ChartSeries& series : chart.series) {
    for (const Point& point : Shown(chart, series)) out.x.Take(point.x), out.y.Take(point.y);
  }
  // Room for the names of bands above and of marks below.
  const double height = std::max(0.0, out.y.high - out.y.low);
  if (!chart.bands.empty() && height > 0) out.y.high += 0.1 * height;
  if (!chart.marks.empty() && height > 0 && chart.log_y) out.y.low -= 0.2 * height;
  out.x.Round(), out.y.Round();
  if (chart.x_ticks.size() < 2) return out;
  out.x.ticks.clear();
  for (const double tick : chart.x_ticks) out.x.ticks.push_back(out.x.Of(tick));
  out.x.low = out.x.ticks.front(), out.x.high = out.x.ticks.back();
  return out;
}

// Beside the point, unless another label is there.
void LabelPoint(const Point& point, double x, double y, std::vector<std::pair<double, double>>& taken, std::string& out) {
  if (point.label.empty()) return;
  for (const auto& [other_x, other_y] : taken) {
    if (std::abs(other_x - x) < 7.0 * static_cast<double>(point.label.size()) + 8 && std::abs(other_y - y) < 12) return;
  }
  taken.emplace_back(x, y);
  out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"11\">{}</text>\n", x + 5, y - 4, HtmlEscape(point.label));
}

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
    for (const Point& point : Shown(chart, series)) {
      points.push_back({{"x", point.x}, {"y", point.y}});
      if (!point.label.empty()) points.back()["label"] = point.label;
    }
    const bool many = points.size() > 40;
    sets.push_back({{"label", series.name},
                    {"data", std::move(points)},
                    {"showLine", series.line},
                    {"quiet", !series.labels_beside},
                    {"borderColor", ColorOf(series, i)},
                    {"backgroundColor", ColorOf(series, i)},
                    {"borderWidth", 2},
                    {"pointRadius", !series.line           ? 4
                                    : many || !series.dots ? 0
                                                           : 3},
                    {"pointHoverRadius", 5},
                    {"borderDash", series.dashed ? nlohmann::json{6, 4} : nlohmann::json::array()}});
  }
  const auto axis = [](const std::string& title, bool log) {
    return nlohmann::json{{"type", log ? "logarithmic" : "linear"}, {"title", {{"display", true}, {"text", title}}}};
  };
  nlohmann::json config = {{"type", "line"},
                           {"data", {{"datasets", std::move(sets)}}},
                           {"options",
                            {{"interaction", {{"mode", "nearest"}, {"intersect", false}}},
                             {"scales", {{"x", axis(chart.x_title, chart.log_x)}, {"y", axis(chart.y_title, chart.log_y)}}}}}};
  // Chart.js would go on to the next power of ten.
  const Scales scales = ScalesOf(chart);
  for (const auto& [name, scale] : {std::pair("x", &scales.x), std::pair("y", &scales.y)}) {
    if (!scale->log) continue;
    nlohmann::json& to = config["options"]["scales"][name];
    to["at"] = nlohmann::json::array(), to["min"] = std::pow(10, scale->low), to["max"] = std::pow(10, scale->high);
    for (const double tick : scale->ticks) to["at"].push_back(std::pow(10, tick));
  }
  if (chart.label_name.empty() && chart.bands.empty() && chart.marks.empty()) return config;
  nlohmann::json bands = nlohmann::json::array(), lines = nlohmann::json::array();
  for (const ChartBand& band : chart.bands) {
    bands.push_back({{"from", band.from}, {"to", band.to}, {"name", band.name}});
    if (band.color >= 0) bands.back()["color"] = ChartColor(static_cast<size_t>(band.color));
  }
  for (const ChartMark& mark : chart.marks) lines.push_back({{"x", mark.x}, {"name", mark.name}});
  config["options"]["marks"] = {
      {"bands", std::move(bands)}, {"lines", std::move(lines)}, {"label", chart.label_name}, {"show", chart.show_labels}};
  return config;
}

std::string LineChartSvg(const ChartOfLines& chart) {
  constexpr int kWidth = 860, kHeight = 380, kLeft = 64, kRight = 8, kTop = 8, kBottom = 44, kLegend = 170;
  auto [x, y] = ScalesOf(chart);
  x.from = kLeft, x.to = kWidth - kRight - kLegend, y.from = kHeight - kBottom, y.to = kTop;
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
  const auto at_x = [&](double value) { return x.Pixel(std::clamp(x.Of(value), x.low, x.high)); };
  for (const ChartBand& band : chart.bands) {
    const double left = at_x(band.from), wide = at_x(band.to) - left;
    const char* fill = band.color >= 0 ? ChartColor(static_cast<size_t>(band.color)) : "none";
    out += fmt::format(
        "<rect class=\"band\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\" fill-opacity=\"0.15\"/>",
        left, y.to, wide, y.from - y.to, fill);
    if (wide > 7.0 * static_cast<double>(band.name.size())) text(left + wide / 2, y.to + 15, "middle", band.name);
  }
  int row = 0;
  for (const ChartMark& mark : chart.marks) {
    if (x.Of(mark.x) < x.low || x.Of(mark.x) > x.high) continue;
    const bool right = at_x(mark.x) + 7.0 * static_cast<double>(mark.name.size()) > x.to;
    out += fmt::format("<path d=\"M{0:.1f} {1:.1f}V{2:.1f}\" stroke=\"currentColor\" stroke-dasharray=\"2 3\"/>", at_x(mark.x),
                       y.from, y.to);
    text(at_x(mark.x) + (right ? -4 : 4), y.from - 8 - 15 * row++, right ? "end" : "start", mark.name);
  }
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
  std::vector<std::pair<double, double>> taken;
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const ChartSeries& series = chart.series[i];
    const char* color = ColorOf(series, i);
    std::string path;
    for (const Point& point : Shown(chart, series)) {
      const double px = x.Pixel(x.Of(point.x)), py = y.Pixel(y.Of(point.y));
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", px, py);
      if (!series.line) out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", px, py, color);
      if (chart.show_labels && series.labels_beside) LabelPoint(point, px, py, taken, out);
    }
    const char* dash = series.dashed ? " stroke-dasharray=\"6 4\"" : "";
    if (series.line && !path.empty()) {
      out += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>\n", path, color, dash);
    }
    const double at = kTop + 8 + 18 * static_cast<double>(i);
    if (!series.line) {
      out += fmt::format("<circle class=\"key\" cx=\"{}\" cy=\"{}\" r=\"3\" fill=\"{}\"/>", x.to + 22, at, color);
    }
    if (series.line)
      out += fmt::format("<path d=\"M{} {}h20\" stroke=\"{}\" stroke-width=\"3\"{}/>", x.to + 12, at, color, dash);
    text(x.to + 38, at + 4, "start", series.name);
  }
  return out + "</svg>";
}

std::string HtmlLineChart(const ChartOfLines& chart) {
  return HtmlChart(chart.title, LineChartConfig(chart), LineChartSvg(chart));
}

}  // namespace moe
