#pragma once
// Curves drawn with characters.

#include <cstdint>
#include <string>
#include <vector>

namespace moe {

struct PlotSeries {
  std::string name;
  std::vector<double> y;  // positive, one per x
};

struct PlotBand {
  double from = 1, to = 1;  // x
  std::string name;
};

// Both axes are logarithmic: a ratio and its inverse are equally far from 1.
struct TerminalPlot {
  std::string title;
  std::vector<double> x;           // ascending, positive
  std::vector<PlotSeries> series;  // at most 3
  double level = 1;                // a line across
  std::vector<PlotBand> bands;     // named below the axis
  std::string x_name;
};

// width: columns, taken as 60 to 100. Lines of at most that many; without unicode ASCII alone. Fewer than two x: empty.
std::string Draw(const TerminalPlot& plot, int width, bool unicode);

// Whether the environment says that text is UTF-8: the first of LC_ALL, LC_CTYPE, LANG that is set.
bool Utf8Locale();

}  // namespace moe
