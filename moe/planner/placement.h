#pragma once
// Where the threads' cores lie. A virtual machine's are moved within seconds: they are hardware threads of one core for a
// while, then cores that share a cache, then cores that do not. No probe of memory or of arithmetic alone tells these apart,
// but a value takes about 30, 90 or 340 ns from one to the other and back, and what threads pass on to each other between ops
// goes the same way. Figures mean something beside each other when they were taken in the same placement.

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "moe/base/thread_pool.h"

namespace moe {

struct PlacedSamples;

// Seconds that a value takes round all threads of the pool, by the number of threads; 0 of one thread, and of more threads than
// the process has processors, which have no place of their own. Some 50 microseconds.
double HandoverSeconds(ThreadPool& pool);

// Whether two of these are of cores that lie alike.
bool SamePlacement(double handover_s, double other_s);

// The one that most others are like; 0 of none.
double TypicalHandover(const std::vector<double>& handovers_s);

// Of placements that the samples of the cores' pace were taken in the one where a value is handed over fastest, but not by
// hardware threads of one core, which halve the pace; and not one that was hardly met. 0 of none.
double BestPlacement(const PlacedSamples& paces);

// All that were seen during something.
struct HandoverRange {
  double min_s = 1e300, max_s = 0;
  void Add(double handover_s) { min_s = std::min(min_s, handover_s), max_s = std::max(max_s, handover_s); }
  bool In(double handover_s) const { return SamePlacement(min_s, handover_s) && SamePlacement(max_s, handover_s); }
};

// A placement that is wanted, and how long one waits for it.
class Placement {
 public:
  using Source = std::function<double(ThreadPool&)>;

  // Of HandoverSeconds; 0: any will do. `patience_s`: what may be spent on waiting and on doing things again, in all.
  Placement(double wanted_s, double patience_s, Source source = HandoverSeconds)
      : wanted_s_(wanted_s), patience_s_(patience_s), at_once_s_(kAtOnce * patience_s), source_(std::move(source)) {}

  void Want(double handover_s) { wanted_s_ = handover_s; }
  // Waits for the wanted placement while there is patience left and `go_on` agrees; whether this is it.
  bool Await(ThreadPool& pool, const std::function<bool()>& go_on);
  // How the cores lie.
  double See(ThreadPool& pool);
  // After work that took so long, with the cores in `seen` meanwhile: whether to do it again. Its time is patience spent; where
  // none is left, or it is so long that the cores would hardly stay that long, what was done will do.
  bool Again(const HandoverRange& seen, double spent_s);
  bool patient() const { return wanted_s_ > 0 && patience_s_ > 0; }
  bool TooLong(double s) const { return s > at_once_s_; }
  void Spend(double s) { patience_s_ -= s; }

  double wanted_s() const { return wanted_s_; }
  double now_s() const { return seen_.empty() ? 0 : seen_.back(); }
  double waited_s() const { return waited_s_; }

 private:
  static constexpr double kAtOnce = 0.1;  // of the patience

  double wanted_s_, patience_s_, at_once_s_, waited_s_ = 0;
  Source source_;
  std::vector<double> seen_;
};

// Samples of a figure, and how the cores lay.
struct PlacedSamples {
  std::vector<double> values, handovers_s;

  void Add(double value, const Placement& placement) { values.push_back(value), handovers_s.push_back(placement.now_s()); }
  // Those of this placement; all, where there are none.
  std::vector<double> Of(double handover_s) const;
};

}  // namespace moe
