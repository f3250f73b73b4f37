#include "moe/base/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace moe {
namespace {

// Three significant digits for x in [1, 1000).
std::string ThreeDigits(double x) {
  const double size = std::fabs(x);
  return fmt::format("{:.{}f}", x, size < 9.995 ? 2 : size < 99.95 ? 1 : 0);
}

// Whole numbers below 1000 print without decimals.
std::string WithPrefix(double x, std::string_view unit, std::span<const std::string_view> prefixes) {
  if (!std::isfinite(x)) return fmt::format("{} {}", x, unit);
  size_t i = 0;
  while (std::fabs(x) >= 999.5 && i + 1 < prefixes.size()) x /= 1000, ++i;
  const std::string number = i == 0 && x == std::floor(x) ? fmt::format("{:.0f}", x) : ThreeDigits(x);
  const std::string suffix = std::string(prefixes[i]) + std::string(unit);
  return suffix.empty() || suffix[0] == ' ' ? number + suffix : number + " " + suffix;
}

constexpr std::array<std::string_view, 5> kCountPrefixes = {"", "k", "M", "B", "T"};
constexpr std::array<std::string_view, 6> kSiPrefixes = {"", "k", "M", "G", "T", "P"};

bool IsContinuation(char c) {
  return (static_cast<unsigned char>(c) & 0xc0) == 0x80;
}

}  // namespace

int TerminalWidth(std::FILE* stream) {
  winsize size{};
  if (ioctl(fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  const char* columns = std::getenv("COLUMNS");
  const int width = columns == nullptr ? 0 : std::atoi(columns);
  return width > 0 ? width : 80;
}

bool IsTerminal(std::FILE* stream) {
  const char* term = std::getenv("TERM");
  return isatty(fileno(stream)) == 1 && term != nullptr && std::string_view(term) != "dumb";
}

std::string FormatCount(double count) {
  return WithPrefix(count, "", kCountPrefixes);
}
std::string FormatBytes(double bytes) {
  return WithPrefix(bytes, "B", kSiPrefixes);
}
std::string FormatRate(double per_s, std::string_view unit) {
  return WithPrefix(per_s, std::string(unit) + "/s", kSiPrefixes);
}

std::string FormatSeconds(double seconds) {
  if (!std::isfinite(seconds)) return "?";
  if (seconds < 0) return "-" + FormatSeconds(-seconds);
  if (seconds == 0) return "0 s";
  if (seconds < 0.9995e-6) return fmt::format("{:.3g} ns", seconds * 1e9);
  if (seconds < 0.9995e-3) return ThreeDigits(seconds * 1e6) + " us";
  if (seconds < 0.9995) return ThreeDigits(seconds * 1e3) + " ms";
  if (seconds < 9.995) return ThreeDigits(seconds) + " s";
  if (seconds >= 1e15) return "?";
  const int64_t s = std::llround(seconds);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  return fmt::format("{}d{:02}h", s / 86400, s / 3600 % 24);
}

std::string LoadBars(std::span<const int64_t> counts) {
  static constexpr std::array<std::string_view, 8> kBars = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  int64_t largest = 1;
  for (const int64_t count : counts) largest = std::max(largest, count);
  std::string bars;
  for (const int64_t count : counts) {
    const double share = static_cast<double>(count) / static_cast<double>(largest);
    bars += kBars[count <= 0 ? 0 : 1 + static_cast<size_t>(share * 6)];
  }
  return bars;
}

std::string ProgressBar(double fraction, int width) {
  const double clamped = fraction >= 0 ? std::min(fraction, 1.0) : 0.0;  // NaN: nothing done
  const int halves = static_cast<int>(clamped * 2 * width);
  std::string bar;
  for (int i = 0; i < width; ++i) bar += 2 * i + 2 <= halves ? "━" : 2 * i + 1 <= halves ? "╸" : "─";
  return bar;
}

int DisplayWidth(std::string_view utf8) {
  return static_cast<int>(std::ranges::count_if(utf8, [](char c) { return !IsContinuation(c); }));
}

std::string Truncate(std::string_view utf8, int width) {
  if (DisplayWidth(utf8) <= width) return std::string(utf8);
  if (width <= 0) return "";
  size_t end = 0;
  for (int columns = 0; end < utf8.size(); ++end) {
    if (!IsContinuation(utf8[end]) && ++columns == width) break;
  }
  return std::string(utf8.substr(0, end)) + "…";
}

ProgressLine::ProgressLine(const ProgressOptions& options) : options_(options) {
  using Terminal = ProgressOptions::Terminal;
  terminal_ = options.terminal == Terminal::kYes || (options.terminal == Terminal::kDetect && IsTerminal(options.stream));
  shown_s_ = -std::numeric_limits<double>::infinity();  // the first line shows at once
}

ProgressLine::~ProgressLine() {
  Finish();
}

bool ProgressLine::Due() const {
  return options_.now() - shown_s_ >= (terminal_ ? options_.redraw_every_s : options_.plain_every_s);
}

void ProgressLine::Update(std::string_view line) {
  line_ = line;
  pending_ = true;
  if (Due()) Show();
}

void ProgressLine::Show() {
  if (terminal_) {  // one column stays free: a full line would make some terminals wrap
    Write("\r" + Truncate(line_, TerminalWidth(options_.stream) - 1) + "\x1b[K");
  } else {
    Write(line_ + "\n");
  }
  drawn_ = terminal_;
  pending_ = false;
  shown_s_ = options_.now();
}

void ProgressLine::Print(std::string_view line) {
  Write((drawn_ ? "\r\x1b[K" : "") + std::string(line) + "\n");
  if (drawn_) Show();
}

void ProgressLine::Finish() {
  if (pending_) Show();
  if (drawn_) Write("\n");
  drawn_ = false;
}

void ProgressLine::Write(const std::string& text) {
  std::fputs(text.c_str(), options_.stream);
  std::fflush(options_.stream);
}

}  // namespace moe
