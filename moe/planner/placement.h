#pragma once
// Where the threads' cores lie. A virtual machine's are moved within seconds: they are hardware threads of one core for a
// while, then cores that share a cache, then cores that do not. No probe of memory or of arithmetic alone tells these apart,
// but a value takes about 30, 90 or 340 ns from one to the other and back, and what threads pass on to each other between ops
// goes the same way. Figures mean something beside each other when they were taken in the same placement.

#include <functional>
#include <vector>

#include "moe/base/thread_pool.h"

namespace moe {

// Seconds that a value takes round all threads of the pool, by the number of threads; 0 of one thread. Some 20 microseconds.
double HandoverSeconds(ThreadPool& pool);

// Whether two of these are of cores that lie alike.
bool SamePlacement(double handover_s, double other_s);

class Placement {
 public:
  // Of HandoverSeconds; 0: any will do. `patience_s`: what may be spent on waiting, in all.
  Placement(double wanted_s, double patience_s) : wanted_s_(wanted_s), patience_s_(patience_s) {}

  // From now on the one that was seen most.
  void WantTypical() { wanted_s_ = typical_s(); }
  // Waits for the wanted placement while there is patience left and `go_on` agrees; whether this is it.
  bool Await(ThreadPool& pool, const std::function<bool()>& go_on);
  // After work that took so long: whether to do it again, as the cores were moved meanwhile, or as the work itself shows that
  // it was `disturbed`. Its time is patience spent; without any left, or where any placement will do, what was done will do.
  bool Again(bool disturbed, double spent_s, ThreadPool& pool);
  void Spend(double s) { patience_s_ -= s; }
  bool patient() const { return wanted_s_ > 0 && patience_s_ > 0; }
  double typical_s() const;  // median of what was seen; 0: nothing was
  double wanted_s() const { return wanted_s_; }
  double now_s() const { return seen_.empty() ? 0 : seen_.back(); }

 private:
  double wanted_s_, patience_s_;
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
