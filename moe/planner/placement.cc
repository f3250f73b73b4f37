#include "moe/planner/placement.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "moe/base/clock.h"
#include "moe/base/cpu_relax.h"

namespace moe {
namespace {

constexpr int kLaps = 64, kLapsPerSample = 8;  // the median sample counts: a thread may lose its core for a while
constexpr int kSpins = 4096;  // longer than any core is away: with more threads than cores the one waited for has none
constexpr double kSame = 1.7;
constexpr std::chrono::milliseconds kPoll{2};

void WaitFor(const std::atomic<int>& turn, int value) {
  for (int spins = 0; turn.load(std::memory_order_acquire) != value; ++spins) {
    if (spins < kSpins) {
      CpuRelax();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace

double HandoverSeconds(ThreadPool& pool) {
  const int n = pool.num_threads();
  if (n < 2) return 0;
  // Whose turn it is, counted on. Every thread has one index, as none leaves its own before the end.
  alignas(64) std::atomic<int> turn{0};
  std::vector<double> samples;
  pool.ParallelFor(n, [&](int64_t index, int) {
    double start = NowSeconds();
    for (int lap = 0; lap < kLaps; ++lap) {
      const int mine = lap * n + static_cast<int>(index);
      WaitFor(turn, mine);
      if (index == 0 && lap % kLapsPerSample == 0) {
        const double now = NowSeconds();
        if (lap > 0) samples.push_back((now - start) / (kLapsPerSample * n));
        start = now;
      }
      turn.store(mine + 1, std::memory_order_release);
    }
  });
  std::ranges::sort(samples);
  return samples[samples.size() / 2];
}

bool SamePlacement(double handover_s, double other_s) {
  return std::max(handover_s, other_s) <= kSame * std::min(handover_s, other_s);
}

bool Placement::Await(ThreadPool& pool, const std::function<bool()>& go_on) {
  const double start = NowSeconds();
  while (true) {
    seen_.push_back(HandoverSeconds(pool));
    if (wanted_s_ <= 0 || SamePlacement(seen_.back(), wanted_s_)) break;
    if (NowSeconds() - start >= patience_s_ || !go_on()) break;
    std::this_thread::sleep_for(kPoll);
  }
  patience_s_ -= NowSeconds() - start;
  return wanted_s_ <= 0 || SamePlacement(seen_.back(), wanted_s_);
}

bool Placement::Again(bool disturbed, double spent_s, ThreadPool& pool) {
  const bool began_there = seen_.empty() || SamePlacement(seen_.back(), wanted_s_);
  seen_.push_back(HandoverSeconds(pool));
  if (!patient() || (!disturbed && began_there && SamePlacement(seen_.back(), wanted_s_))) return false;
  Spend(spent_s);
  return true;
}

double Placement::typical_s() const {
  if (seen_.empty()) return 0;
  std::vector<double> sorted = seen_;
  std::ranges::sort(sorted);
  return sorted[sorted.size() / 2];
}

std::vector<double> PlacedSamples::Of(double handover_s) const {
  std::vector<double> out;
  for (size_t i = 0; i < values.size(); ++i) {
    if (SamePlacement(handovers_s[i], handover_s)) out.push_back(values[i]);
  }
  return out.empty() ? values : out;
}

}  // namespace moe
