#pragma once
// Reports as one HTML file that opens from disk, without a network, light or dark. Pieces are strings of HTML, put together by
// whoever writes the report; text in them is escaped here. Charts are drawn by Chart.js (MIT), which goes into the file;
// without JavaScript a chart is what its fall-back shows, so numbers that matter stand in tables too.

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moe {

// & < > " ' as entities; bytes that are not UTF-8 as U+FFFD.
std::string HtmlEscape(std::string_view text);

// <h2>, <p>; the text is plain.
std::string HtmlHeading(std::string_view text);
std::string HtmlParagraph(std::string_view text);

struct HtmlTable {
  std::string caption;                         // may be empty
  std::vector<std::string> head;               // plain text
  std::vector<std::vector<std::string>> rows;  // plain text; a row of one cell is a heading across the table
  size_t text_columns = 1;                     // so many on the left are words, the others numbers, flush right
};
std::string HtmlTableOf(const HtmlTable& table);

// What a chart of Chart.js 3.9 shows, as its constructor takes it; `fallback` is HTML shown until it is drawn. Colours of text
// and grid follow the page.
std::string HtmlChart(std::string_view title, const nlohmann::json& config, std::string_view fallback);

// Lines or points over a number, with an SVG of the same as fall-back. What is not finite, or not above 0 on a logarithmic
// axis, is left out.
struct ChartSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x, y
  bool line = true;                               // else points alone
  bool dashed = false;
  int color = -1;                   // index into kChartColors, modulo their number; -1: the series' own
  bool dots = true;                 // of a line
  std::vector<std::string> labels;  // of the points, in their tooltips; empty: none
  bool labels_beside = true;        // of ChartOfLines::show_labels
};
// A stretch of x, shaded and named at its top; and a line across.
struct ChartBand {
  double from = 0, to = 0;
  std::string name;
  int color = -1;  // -1: not shaded
};
struct ChartMark {
  double x = 0;
  std::string name;
};
struct ChartOfLines {
  std::string title, x_title, y_title;
  bool log_x = false, log_y = false;
  std::vector<ChartSeries> series;
  std::vector<double> x_ticks = {};  // ascending; empty: round numbers. What lies outside of them is cut off
  std::string label_name = {};       // "batch" of a label "16"
  bool show_labels = false;          // beside the points too, where there is room
  std::vector<ChartBand> bands = {};
  std::vector<ChartMark> marks = {};  // those outside of the axis are left out
};
std::string HtmlLineChart(const ChartOfLines& chart);
nlohmann::json LineChartConfig(const ChartOfLines& chart);  // to add to: annotations, limits
std::string LineChartSvg(const ChartOfLines& chart);

// Told apart on white and on black.
inline constexpr const char* kChartColors[] = {"#3b82f6", "#e8590c", "#2b9e5f", "#b5509c", "#c99700",
                                               "#0aa3a3", "#d6336c", "#7c6ae6", "#8a8d91", "#8c6239"};
const char* ChartColor(size_t index);

// Round numbers from about `low` to about `high`, both finite: at most about `count`, at least two.
std::vector<double> AxisTicks(double low, double high, int count);

// The whole file. Chart.js and its licence are in it where `body` has a chart.
std::string HtmlPage(std::string_view title, std::string_view body);

}  // namespace moe
