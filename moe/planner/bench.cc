#include "moe/planner/bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <thread>

#include "moe/base/check.h"
#include "moe/base/clock.h"
#include "moe/base/interrupt.h"

namespace moe {
namespace {

constexpr int kMinRounds = 3;
constexpr double kSampleSeconds = 2e-3;        // at least: clocks and barriers are lost in it
constexpr double kMemorySampleSeconds = 8e-3;  // about what a probe of the memory takes
constexpr double kWarmSeconds = 30e-3;         // of longer runs the caches' first filling is a small part
// OpenMP's and OpenBLAS's threads spin after their work, on the processors that the next run wants.
constexpr auto kPeersRest = std::chrono::milliseconds(3);

double SecondsOf(const std::function<void()>& run) {
  const double start = NowSeconds();
  run();
  return NowSeconds() - start;
}

// Takes samples of one run: seconds of it, of as many together as it takes to fill a sample.
class Sampler {
 public:
  Sampler(const std::function<void()>& run, double seconds) : run_(run) {
    run_();  // caches, pages and arenas have their state after it
    const double once = std::max(SecondsOf(run_), 1e-9);
    repeats_ = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(seconds / once)));
    warm_first_ = once < kWarmSeconds;
  }
  double Sample() {
    if (warm_first_) run_();  // the others of the round have taken its place in the caches
    const double start = NowSeconds();
    for (int64_t i = 0; i < repeats_; ++i) run_();
    seconds_.push_back((NowSeconds() - start) / static_cast<double>(repeats_));
    return seconds_.back();
  }
  const std::vector<double>& seconds() const { return seconds_; }

 private:
  const std::function<void()>& run_;
  int64_t repeats_ = 1;
  bool warm_first_ = true;
  std::vector<double> seconds_;
};

// Of one run, by each bound.
std::vector<double> BoundSeconds(const std::vector<Bound>& bounds, CeilingProbe& probe, ThreadPool& pool) {
  std::vector<double> out;
  for (const Bound& bound : bounds) out.push_back(bound.work / probe.Sample(bound.ceiling, pool));
  return out;
}

// In the last round, of two bounds and more.
double SlowestOverNext(const std::vector<std::vector<double>>& seconds) {
  std::vector<double> last;
  for (const auto& s : seconds) last.push_back(s.back());
  std::ranges::sort(last, std::greater<>());
  return last[0] / last[1];
}

}  // namespace

BenchResult RunBench(const BenchCase& bench, double seconds, CeilingProbe& probe, ExecContext& ctx) {
  const BenchRun run = bench.prepare(ctx);
  const std::vector<Bound>& bounds = run.bounds.empty() ? bench.bounds : run.bounds;
  MOE_CHECK(!bounds.empty() && bounds[0].work > 0, "{}/{} does nothing", bench.group, bench.name);
  MOE_CHECK((run.reference != nullptr) == !bench.reference.name.empty(), "{}/{}: reference without name, or name without one",
            bench.group, bench.name);
  const double work = bounds[0].work, reference_work = bench.reference.work > 0 ? bench.reference.work : work;
  const bool in_bytes = InBytes(bounds[0].ceiling);
  const double sample_s = in_bytes ? kMemorySampleSeconds : kSampleSeconds;
  Sampler own(run.run, sample_s);
  std::vector<Sampler> others;  // reference, if any, then peers
  if (run.reference) others.emplace_back(run.reference, sample_s);
  for (const BenchPeer& peer : run.peers) others.emplace_back(peer.run, sample_s);
  std::this_thread::sleep_for(run.peers.empty() ? kPeersRest * 0 : kPeersRest);

  std::vector<double> rates, ceilings, fractions, differ, speedups, ceiling_speedups;
  std::vector<std::vector<double>> ratios(others.size()), bound_s(bounds.size());
  for (const double start = NowSeconds(); rates.size() < kMinRounds || NowSeconds() - start < seconds;) {
    if (!rates.empty() && InterruptRequested()) break;
    const std::vector<double> before = BoundSeconds(bounds, probe, ctx.pool);
    const double own_s = own.Sample();
    const std::vector<double> after = BoundSeconds(bounds, probe, ctx.pool);
    for (size_t i = 0; i < bounds.size(); ++i) bound_s[i].push_back((before[i] + after[i]) / 2);
    const double least_s = (std::ranges::max(before) + std::ranges::max(after)) / 2;
    rates.push_back(work / own_s);
    ceilings.push_back(work / least_s);
    fractions.push_back(least_s / own_s);
    if (bounds.size() > 1) differ.push_back(SlowestOverNext(bound_s));
    for (size_t i = 0; i < others.size(); ++i) {
      const bool is_reference = i == 0 && run.reference;
      const double other_s = others[i].Sample();
      ratios[i].push_back(is_reference ? work / own_s * other_s / reference_work : other_s / own_s);
      if (is_reference && run.reference_pool) {
        // The ceiling of its threads right after it, and ours once more: ratios of things far apart would be noise.
        const double its_s = std::ranges::max(BoundSeconds(bounds, probe, *run.reference_pool));
        const double ours_s = std::ranges::max(BoundSeconds(bounds, probe, ctx.pool));
        speedups.push_back(ratios[i].back());
        ceiling_speedups.push_back(its_s / ((least_s + ours_s) / 2));
        ratios[i].back() = speedups.back() / ceiling_speedups.back();
      }
      if (!is_reference) std::this_thread::sleep_for(kPeersRest);
    }
  }

  BenchResult result{.group = bench.group,
                     .name = bench.name,
                     .kind = bench.kind,
                     .in_bytes = in_bytes,
                     .rounds = static_cast<int>(rates.size()),
                     .run_s = Summarize(own.seconds()),
                     .per_s = Summarize(rates),
                     .ceiling = Summarize(ceilings),
                     .fraction = Summarize(fractions),
                     .reference = bench.reference.name,
                     .reference_is_part = bench.reference.is_part};
  for (size_t i = 0; i < bounds.size(); ++i) result.bounds.push_back({bounds[i].ceiling, Summarize(bound_s[i])});
  if (!differ.empty()) result.bounds_differ = Summarize(differ);
  if (run.reference) result.reference_ratio = Summarize(ratios[0]);
  if (!speedups.empty()) {
    result.scaled = true;
    result.speedup = Summarize(speedups), result.ceiling_speedup = Summarize(ceiling_speedups);
  }
  for (size_t i = 0; i < run.peers.size(); ++i) {
    result.peers.push_back({run.peers[i].name, Summarize(ratios[ratios.size() - run.peers.size() + i])});
  }
  std::ranges::stable_sort(result.peers, {}, [](const PeerResult& p) { return p.ratio.median; });
  return result;
}

}  // namespace moe
