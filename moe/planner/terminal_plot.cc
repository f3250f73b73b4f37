#include "moe/planner/terminal_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <span>

#include "moe/base/check.h"
#include "moe/base/progress.h"

namespace moe {
namespace {

constexpr int kRows = 13, kMargin = 8;  // columns of the y axis and its labels
constexpr int kOverhang = 2;            // of the last label

struct Glyphs {
  const char* series[3];
  const char *level, *y_axis, *y_tick, *x_axis, *x_tick, *corner, *band_begin, *band_end, *band;
};
constexpr Glyphs kUnicode = {{"●", "○", "◆"}, "┈", "│", "┤", "─", "┴", "└", "├", "┤", "─"};
constexpr Glyphs kAscii = {{"*", "o", "x"}, ".", "|", "+", "-", "+", "+", "|", "|", "-"};

// 1, 2, 5 in every decade; only the decades where there are too many for the rows.
std::vector<double> Ticks(double least, double most) {
  std::vector<double> ticks;
  const bool fine = std::log10(most / least) < 2;
  for (double decade = std::pow(10, std::floor(std::log10(least))); decade <= most * 1.001; decade *= 10) {
    for (const double digit : {1.0, 2.0, 5.0}) {
      const double tick = decade * digit;
      if ((fine || digit == 1) && tick >= least * 0.999 && tick <= most * 1.001) ticks.push_back(tick);
    }
  }
  return ticks;
}

// y at x, straight lines between points on both logarithmic axes.
double ValueAt(std::span<const double> x, std::span<const double> y, double at) {
  const auto after = std::upper_bound(x.begin() + 1, x.end() - 1, at);
  const auto i = static_cast<size_t>(after - x.begin());
  const double share = std::clamp(std::log(at / x[i - 1]) / std::log(x[i] / x[i - 1]), 0.0, 1.0);
  return std::exp(std::log(y[i - 1]) + share * std::log(y[i] / y[i - 1]));
}

struct Canvas {
  const TerminalPlot& plot;
  const Glyphs& glyphs;
  int columns = 0;
  double bottom = 1, top = 1;  // y
  std::vector<std::vector<const char*>> cells = {};

  double first() const { return plot.x.front(); }
  double span() const { return std::log(plot.x.back() / first()); }
  int Column(double x) const {
    return std::clamp(static_cast<int>(std::lround(std::log(x / first()) / span() * (columns - 1))), 0, columns - 1);
  }
  double XAt(int column) const { return first() * std::exp(span() * column / (columns - 1)); }
  int Row(double y) const {
    const double share = std::log(y / bottom) / std::log(top / bottom);
    return std::clamp(static_cast<int>(std::lround((1 - share) * (kRows - 1))), 0, kRows - 1);
  }

  void Scale() {
    bottom = top = plot.level;
    for (const PlotSeries& series : plot.series) {
      bottom = std::min(bottom, *std::ranges::min_element(series.y));
      top = std::max(top, *std::ranges::max_element(series.y));
    }
    bottom = std::min(bottom, plot.level / 1.25), top = std::max(top, plot.level * 1.25);
  }

  void Paint() {
    cells.assign(kRows, std::vector<const char*>(static_cast<size_t>(columns), " "));
    for (const char*& cell : cells[static_cast<size_t>(Row(plot.level))]) cell = glyphs.level;
    for (size_t s = plot.series.size(); s-- > 0;) {  // the first lies on top
      int last = Row(plot.series[s].y.front());
      for (int column = 0; column < columns; ++column) {
        const int row = Row(ValueAt(plot.x, plot.series[s].y, XAt(column)));
        for (int r = row; r != last; r += r < last ? 1 : -1) At(r, column) = glyphs.series[s];
        At(row, column) = glyphs.series[s];
        last = row;
      }
    }
  }
  const char*& At(int row, int column) { return cells[static_cast<size_t>(row)][static_cast<size_t>(column)]; }

  std::string Lines() const {
    std::vector<std::string> labels(kRows);
    for (const double tick : Ticks(bottom, top)) labels[static_cast<size_t>(Row(tick))] = fmt::format("{:g}x", tick);
    std::string text;
    for (size_t row = 0; row < kRows; ++row) {
      std::string line =
          fmt::format("{:>{}} {}", labels[row], kMargin - 2, labels[row].empty() ? glyphs.y_axis : glyphs.y_tick);
      for (const char* cell : cells[row]) line += cell;
      text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
    }
    return text;
  }

  // The axis, and a label under each x that has room.
  std::string Axis() const {
    std::vector<const char*> line(static_cast<size_t>(columns), glyphs.x_axis);
    std::string labels(static_cast<size_t>(columns + kOverhang), ' ');
    int free_from = 0;
    for (const double x : plot.x) {
      const std::string label = fmt::format("{:g}", x);
      const int column = Column(x), size = static_cast<int>(label.size());
      const int begin = std::clamp(column - size / 2, 0, std::max(0, columns + kOverhang - size));
      if (begin < free_from) continue;
      labels.replace(static_cast<size_t>(begin), label.size(), label);
      line[static_cast<size_t>(column)] = glyphs.x_tick;
      free_from = begin + size + 2;
    }
    std::string text(kMargin - 1, ' ');
    text += glyphs.corner;
    for (const char* cell : line) text += cell;
    labels.resize(labels.find_last_not_of(' ') + 1);
    return text + "\n" + Named(plot.x_name) + labels + "\n";
  }

  static std::string Named(const std::string& name) { return fmt::format("{:<{}}", name, kMargin); }

  // "├─ memory ─┤├ middle ┤"; of a band without room the first letters.
  std::string Bands() const {
    if (plot.bands.empty()) return "";
    std::string text(kMargin, ' ');
    int at = 0;
    for (const PlotBand& band : plot.bands) {
      const int begin = std::max(Column(band.from), at), end = Column(band.to);
      const int room = end - begin + 1;
      if (room < 3) continue;
      text += std::string(static_cast<size_t>(begin - at), ' ');
      std::string name = band.name.substr(0, static_cast<size_t>(std::max(0, room - 2)));
      if (static_cast<int>(name.size()) + 4 <= room) name = " " + name + " ";
      const int left = room - 2 - static_cast<int>(name.size());
      text += glyphs.band_begin;
      for (int i = 0; i < left / 2; ++i) text += glyphs.band;
      text += name;
      for (int i = left / 2; i < left; ++i) text += glyphs.band;
      text += glyphs.band_end;
      at = end + 1;
    }
    return text + "\n";
  }
};

}  // namespace

std::string Draw(const TerminalPlot& plot, int width, bool unicode) {
  if (plot.x.size() < 2) return "";
  constexpr int kLeast = 60, kMost = 100;
  Canvas canvas{.plot = plot, .glyphs = unicode ? kUnicode : kAscii};
  canvas.columns = std::clamp(width, kLeast, kMost) - kMargin - kOverhang;
  for (const PlotSeries& series : plot.series) {
    MOE_CHECK(series.y.size() == plot.x.size(), "{} values, {} x", series.y.size(), plot.x.size());
  }
  canvas.Scale();
  canvas.Paint();
  std::string text = plot.title + "\n";
  for (size_t s = 0; s < plot.series.size(); ++s) {
    text += fmt::format("  {} {}", canvas.glyphs.series[s], plot.series[s].name);
  }
  return text + "\n" + canvas.Lines() + canvas.Axis() + canvas.Bands();
}

bool Utf8Locale() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == 0) continue;
    std::string text = value;
    std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text.find("utf-8") != std::string::npos || text.find("utf8") != std::string::npos;
  }
  return false;
}

}  // namespace moe
