#include "moe/costs/curve.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "moe/base/check.h"

namespace moe {
namespace {

// The point at or after x; points.end() when all are before it.
auto FirstFrom(const std::vector<CurvePoint>& points, double x) {
  return std::lower_bound(points.begin(), points.end(), x, [](const CurvePoint& p, double value) { return p.x < value; });
}

}  // namespace

double Curve::At(double x) const {
  MOE_CHECK(!points.empty(), "a curve without points");
  const auto after = FirstFrom(points, x);
  if (after == points.begin()) return points.front().y;
  if (after == points.end()) return points.back().y;
  const CurvePoint &a = *(after - 1), &b = *after;
  return a.y + (b.y - a.y) * std::log(x / a.x) / std::log(b.x / a.x);
}

double Curve::TimeAt(double rows) const {
  MOE_CHECK(!points.empty(), "a curve without points");
  const auto after = FirstFrom(points, rows);
  if (after == points.begin()) return points.front().y;
  if (after == points.end()) return points.back().y * rows / points.back().x;
  const CurvePoint &a = *(after - 1), &b = *after;
  return a.y + (b.y - a.y) * (rows - a.x) / (b.x - a.x);
}

Curve MiddleRates(Curve times, double many) {
  const std::vector<CurvePoint> was = times.points;
  const auto per_row = [&](size_t i) { return was[i].y / was[i].x; };
  for (size_t i = 1; i + 1 < was.size(); ++i) {
    if (was[i].x < many) continue;
    std::array<double, 3> near{per_row(i - 1), per_row(i), per_row(i + 1)};
    std::ranges::sort(near);
    times.points[i].y = near[1] * was[i].x;
  }
  return times;
}

Curve NeverFalling(Curve curve) {
  struct Run {
    double sum;
    size_t count;
    double mean() const { return sum / static_cast<double>(count); }
  };
  std::vector<Run> runs;
  for (const CurvePoint& p : curve.points) {
    runs.push_back({p.y, 1});
    while (runs.size() > 1 && runs[runs.size() - 2].mean() > runs.back().mean()) {
      const Run last = runs.back();
      runs.pop_back();
      runs.back().sum += last.sum, runs.back().count += last.count;
    }
  }
  size_t i = 0;
  for (const Run& run : runs) {
    for (size_t n = 0; n < run.count; ++n) curve.points[i++].y = run.mean();
  }
  return curve;
}

Curve NeverRising(Curve curve) {
  for (CurvePoint& p : curve.points) p.y = -p.y;
  curve = NeverFalling(std::move(curve));
  for (CurvePoint& p : curve.points) p.y = -p.y;
  return curve;
}

}  // namespace moe
