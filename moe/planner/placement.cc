#include "moe/planner/placement.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <thread>

#include "moe/base/clock.h"
#include "moe/base/cpu_relax.h"
#include "moe/planner/probe.h"

namespace moe {
namespace {

constexpr int kLapsPerSample = 8, kSamples = 15;  // the median counts: a thread may lose its core for a while
constexpr int kSpins = 256;                       // then the core is offered to others: the thread waited for may have none
constexpr double kSame = 1.5;
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
  if (n < 2 || n > static_cast<int>(std::thread::hardware_concurrency())) return 0;
  // Whose turn it is, counted on. Every thread has one index, as none leaves its own before the end.
  alignas(64) std::atomic<int> turn{0};
  std::array<double, kSamples + 1> samples{};  // but for the first: code and lines are cold then
  pool.ParallelFor(n, [&](int64_t index, int) {
    double start = 0;
    for (int lap = 0; lap <= kLapsPerSample * (kSamples + 1); ++lap) {
      const int mine = lap * n + static_cast<int>(index);
      WaitFor(turn, mine);
      if (index == 0 && lap % kLapsPerSample == 0) {
        const double now = NowSeconds();
        if (lap > 0) samples[static_cast<size_t>(lap / kLapsPerSample - 1)] = (now - start) / (kLapsPerSample * n);
        start = now;
      }
      turn.store(mine + 1, std::memory_order_release);
    }
  });
  std::ranges::sort(samples.begin() + 1, samples.end());
  return samples[1 + kSamples / 2];
}

bool SamePlacement(double handover_s, double other_s) {
  return std::max(handover_s, other_s) <= kSame * std::min(handover_s, other_s);
}

double TypicalHandover(const std::vector<double>& handovers_s) {
  double best = 0;
  int64_t most = 0;
  for (const double s : handovers_s) {
    const auto alike = std::ranges::count_if(handovers_s, [s](double other) { return SamePlacement(s, other); });
    if (alike > most) most = alike, best = s;
  }
  return best;
}

double BestPlacement(const PlacedSamples& paces) {
  constexpr double kMet = 0.1, kWhole = 0.8;  // of the samples, of the fastest pace
  double fastest = 0;
  std::vector<std::pair<double, double>> met;  // handover, pace
  for (const double s : paces.handovers_s) {
    const std::vector<double> alike = paces.Of(s);
    if (static_cast<double>(alike.size()) < kMet * static_cast<double>(paces.values.size())) continue;
    met.emplace_back(s, Summarize(alike).median);
    fastest = std::max(fastest, met.back().second);
  }
  double best = 0;
  for (const auto& [handover_s, pace] : met) {
    if (pace >= kWhole * fastest && (best == 0 || handover_s < best)) best = handover_s;
  }
  std::vector<double> alike;  // the middle one of those like it
  for (const double s : paces.handovers_s) {
    if (SamePlacement(s, best)) alike.push_back(s);
  }
  return alike.empty() ? 0 : Summarize(std::move(alike)).median;
}

double Placement::See(ThreadPool& pool) {
  seen_.push_back(source_(pool));
  return seen_.back();
}

bool Placement::Await(ThreadPool& pool, const std::function<bool()>& go_on) {
  const double start = NowSeconds();
  bool here = false;
  while (true) {
    here = SamePlacement(See(pool), wanted_s_) || wanted_s_ <= 0;
    if (here || NowSeconds() - start >= patience_s_ || !go_on()) break;
    std::this_thread::sleep_for(kPoll);
  }
  waited_s_ += NowSeconds() - start;
  Spend(NowSeconds() - start);
  return here;
}

bool Placement::Again(const HandoverRange& seen, double spent_s) {
  if (!patient() || seen.In(wanted_s_) || TooLong(spent_s)) return false;
  Spend(spent_s);
  return true;
}

std::vector<double> PlacedSamples::Of(double handover_s) const {
  std::vector<double> out;
  for (size_t i = 0; i < values.size(); ++i) {
    if (SamePlacement(handovers_s[i], handover_s)) out.push_back(values[i]);
  }
  return out.empty() ? values : out;
}

}  // namespace moe
