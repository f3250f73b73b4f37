#pragma once
// A quantity measured at a few sizes, read between them.

#include <vector>

namespace moe {

struct CurvePoint {
  double x = 0, y = 0;
};

// x ascending and positive, y positive.
struct Curve {
  std::vector<CurvePoint> points;

  bool empty() const { return points.empty(); }
  // Between points a straight line in log x; outside them the nearest point's. Not empty.
  double At(double x) const;
  // Between points a straight line in x; above the last in proportion to x, below the first the first's. For times of so many
  // rows, which grow with them. Not empty.
  double TimeAt(double rows) const;
};

// Points that never fall, or never rise, as x grows: each run of offenders becomes its mean (isotonic regression, pool adjacent
// violators). What theory says of a curve, noise does not change.
Curve NeverFalling(Curve curve);
Curve NeverRising(Curve curve);
// Times by rows: from `many` rows on, where rates hardly differ from one point to the next, the middle one of three neighbours'
// times per row stands for each, so that one that was disturbed does not. The first and the last point stay.
Curve MiddleRates(Curve times, double many);

}  // namespace moe
