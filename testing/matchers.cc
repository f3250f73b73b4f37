#include "testing/matchers.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

namespace moe::test {

testing::AssertionResult Within(std::span<const double> got, std::span<const double> want, std::span<const double> bound) {
  if (got.size() != want.size() || want.size() != bound.size()) {
    return testing::AssertionFailure() << fmt::format("got {} values, expected {} ({} bounds)", got.size(), want.size(),
                                                      bound.size());
  }
  size_t num_wrong = 0, worst = 0;
  double worst_excess = -1, max_abs = 0, max_rel = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == want[i]) continue;
    double error = std::fabs(got[i] - want[i]);
    if (!std::isfinite(got[i]) || !std::isfinite(want[i])) error = std::numeric_limits<double>::infinity();
    max_abs = std::max(max_abs, error);
    if (want[i] != 0) max_rel = std::max(max_rel, error / std::fabs(want[i]));
    if (error <= bound[i]) continue;
    ++num_wrong;
    const double excess = bound[i] > 0 ? error / bound[i] : std::numeric_limits<double>::infinity();
    if (excess > worst_excess) worst_excess = excess, worst = i;
  }
  if (num_wrong == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << fmt::format(
             "{} of {} values are off. Worst: [{}] got {:.9g}, expected {:.9g} within {:.3g}, off by {:.3g} ({:.3g} times the "
             "bound). "
             "Largest error over all: {:.3g} absolute, {:.3g} relative",
             num_wrong, got.size(), worst, got[worst], want[worst], bound[worst], std::fabs(got[worst] - want[worst]),
             worst_excess, max_abs, max_rel);
}

testing::AssertionResult Within(std::span<const double> got, std::span<const double> want, Tolerance tolerance) {
  std::vector<double> bound;
  for (const double x : want) bound.push_back(tolerance.absolute + tolerance.relative * std::fabs(x));
  return Within(got, want, bound);
}

}  // namespace moe::test
