#pragma once
// What a person watches while long work runs. For programs; libraries do not print.

#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

#include "moe/base/clock.h"

namespace moe {

// Three digits and a unit, as people write them. SI: 1 kB = 1000 bytes.
std::string FormatCount(double count);  // "950", "12.3 k", "7.60 M", "1.20 B"
std::string FormatBytes(double bytes);  // "950 B", "30.4 MB", "1.20 GB"
std::string FormatRate(double per_s,
                       std::string_view unit);  // "11.3 GFLOP/s" from ("FLOP"), "1.63 k tokens/s" from (" tokens")
std::string FormatSeconds(double seconds);      // "4.50 us", "12.0 ms", "1.30 s", "45 s", "3m12s", "1h02m", "2d03h"

// One of ▁▂▃▄▅▆▇█ per count, scaled to the largest; ▁ is kept for 0, so that a dead expert shows.
std::string LoadBars(std::span<const int64_t> counts);
// "━━━━━━╸─────" of `width` columns.
std::string ProgressBar(double fraction, int width);
// Whether a person watches it there; and the columns they have, 80 where it does not say.
bool IsTerminal(std::FILE* stream);
int TerminalWidth(std::FILE* stream);
// Columns the text takes on a terminal: one per code point.
int DisplayWidth(std::string_view utf8);
// At most `width` columns of it, the last one "…" where something is cut.
std::string Truncate(std::string_view utf8, int width);

struct ProgressOptions {
  std::FILE* stream = stderr;
  enum class Terminal { kDetect, kYes, kNo } terminal = Terminal::kDetect;
  double redraw_every_s = 0.1;  // on a terminal
  double plain_every_s = 10;    // elsewhere
  double (*now)() = NowSeconds;
};

// One line that is redrawn in place on a terminal, and a plain line now and then elsewhere.
class ProgressLine {
 public:
  explicit ProgressLine(const ProgressOptions& options = {});
  ~ProgressLine();  // Finish
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  bool Due() const;                    // whether Update would show anything: ask before building an expensive line
  void Update(std::string_view line);  // shows the line if it is due
  void Print(std::string_view line);   // a line that stays, above the moving one
  void Finish();                       // shows the last line given to Update, if it was not, and ends it

 private:
  void Show();
  void Write(const std::string& text);

  ProgressOptions options_;
  bool terminal_ = false;
  bool drawn_ = false;    // the terminal's cursor stands in our line
  bool pending_ = false;  // line_ has not been shown
  double shown_s_ = 0;
  std::string line_;
};

}  // namespace moe
