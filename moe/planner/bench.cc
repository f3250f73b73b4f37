#include "moe/planner/bench.h"

#include <algorithm>
#include <cmath>

#include "moe/base/check.h"
#include "moe/base/clock.h"

namespace moe {
namespace {

constexpr int kMinRounds = 3;
constexpr double kRunSeconds = 2e-3;  // of one round, at least: clocks and barriers are lost in it

// Seconds of one run: of `repeats` of them together.
double SecondsOf(const std::function<void()>& run, int64_t repeats) {
  const double start = NowSeconds();
  for (int64_t i = 0; i < repeats; ++i) run();
  return (NowSeconds() - start) / static_cast<double>(repeats);
}

int64_t Repeats(const std::function<void()>& run) {
  run();  // caches, pages and arenas have their state after it
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(kRunSeconds / std::max(SecondsOf(run, 1), 1e-9))));
}

}  // namespace

BenchResult RunBench(const BenchCase& bench, double seconds, CeilingProbe& probe, ExecContext& ctx) {
  MOE_CHECK(bench.work > 0, "{}/{} does nothing", bench.group, bench.name);
  const BenchRun run = bench.prepare(ctx);
  const int64_t repeats = Repeats(run.run), peer_repeats = run.peer ? Repeats(run.peer) : 0;
  std::vector<double> rates, ceilings, fractions, ratios;
  for (const double start = NowSeconds(); rates.size() < kMinRounds || NowSeconds() - start < seconds;) {
    const double ceiling = probe.Sample(bench.ceiling, ctx.pool);
    const double own = SecondsOf(run.run, repeats);
    rates.push_back(bench.work / own);
    ceilings.push_back(ceiling);
    fractions.push_back(rates.back() / ceiling);
    if (run.peer) ratios.push_back(SecondsOf(run.peer, peer_repeats) / own);
  }
  BenchResult result{.rounds = static_cast<int>(rates.size()),
                     .per_s = Summarize(rates),
                     .ceiling = Summarize(ceilings),
                     .fraction = Summarize(fractions)};
  if (!ratios.empty()) result.peer_ratio = Summarize(ratios);
  return result;
}

}  // namespace moe
