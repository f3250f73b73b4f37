#include "moe/planner/switches.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/base/progress.h"
#include "moe/ops/gemm.h"

namespace moe {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// The first point from which on the second way is taken. From the usual one it moves, point by point, as long as that gains.
size_t FirstTaken(const std::vector<CurvePoint>& points, size_t usual) {
  size_t first = usual;
  while (first > 0 && points[first - 1].y >= kSwitchGain) --first;
  if (first < usual) return first;
  while (first < points.size() && points[first].y <= 1 / kSwitchGain) ++first;
  return first;
}

std::string Gain(double speedup) {
  const double percent = 100 * (speedup - 1);
  if (std::abs(percent) < 0.5) return "as fast";
  return fmt::format("{:.0f} % {}", std::abs(percent), percent > 0 ? "faster" : "slower");
}

// "7 % faster at 4 panels, 2 % slower at 2 panels (measured)": on both sides of the switch.
template <class Named>
std::string Measurements(const std::vector<CurvePoint>& points, size_t first, Named&& named) {
  std::string text;
  const auto add = [&](const CurvePoint& p) {
    text += fmt::format("{}{} at {}", text.empty() ? "" : ", ", Gain(p.y), named(p.x));
  };
  if (first < points.size()) add(points[first]);
  if (first > 0) add(points[first - 1]);
  return text + " (measured)";
}

std::string Panels(double panels) {
  return fmt::format("{:.0f} panel{}", panels, panels == 1 ? "" : "s");
}

void ChooseInterleaving(const SwitchGains& gains, SwitchChoice& choice) {
  const auto& points = gains.interleave.points;
  int64_t& least = choice.switches.least_panels;
  const auto above = std::ranges::find_if(points, [&](const CurvePoint& p) { return p.x >= static_cast<double>(least); });
  const auto usual = static_cast<size_t>(above - points.begin());
  if (points.empty()) {
    choice.why.push_back(fmt::format("rows are interleaved from {} panels on, as usual: not measured here", least));
    return;
  }
  const size_t first = FirstTaken(points, usual);
  if (first != usual) least = first < points.size() ? static_cast<int64_t>(points[first].x) : kNever;
  choice.why.push_back(fmt::format("rows are {}{}: {}",
                                   least == kNever ? "never interleaved" : "interleaved from " + Panels(double(least)) + " on",
                                   first == usual ? ", as usual" : "", Measurements(points, first, Panels)));
}

void ChooseStreaming(const MachineProfile& machine, SwitchChoice& choice) {
  const auto& points = machine.switches.stream.points;
  const int64_t kept = CachedOutputBytes(machine.threads);
  const auto bytes = [](double n) { return FormatBytes(n); };
  if (points.empty()) {
    choice.why.push_back(fmt::format("outputs of more than {} are written past the caches, as usual: not measured here",
                                     bytes(static_cast<double>(kept))));
    return;
  }
  const auto above = std::ranges::find_if(points, [&](const CurvePoint& p) { return p.x > static_cast<double>(kept); });
  const auto usual = static_cast<size_t>(above - points.begin());
  const size_t first = FirstTaken(points, usual);
  int64_t from = kept;
  if (first != usual) {
    from = first == points.size() ? kNever : static_cast<int64_t>(first > 0 ? points[first - 1].x : points[0].x - 1);
    choice.switches.stream_bytes = std::max<int64_t>(from, 1);
  }
  const std::string which =
      from == kNever ? "outputs are never" : fmt::format("outputs of more than {} are", bytes(static_cast<double>(from)));
  choice.why.push_back(fmt::format("{} written past the caches{}: {}", which, first == usual ? ", as usual" : "",
                                   Measurements(points, first, bytes)));
}

}  // namespace

SwitchChoice ChooseSwitches(const MachineProfile& machine) {
  SwitchChoice choice;
  ChooseInterleaving(machine.switches, choice);
  ChooseStreaming(machine, choice);
  return choice;
}

}  // namespace moe
