#include "moe/planner/sweep.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/base/rng.h"
#include "moe/planner/ceilings.h"
#include "moe/planner/placement.h"
#include "moe/planner/random_weights.h"
#include "moe/planner/sweep_runner.h"

namespace moe {
namespace {

constexpr int64_t kMinRounds = 3, kMaxRounds = 200;
// Rounds whose probe of weights differs more than this from the median were taken in another phase of the machine's memory.
constexpr double kSamePhase = 0.15;
constexpr double kPaceSeconds = 10e-3;
constexpr int64_t kMostAgain =
    3;  // turns of a round: where cores are moved all the time, every batch has its share of the patience
constexpr double kTurnsPerProbe = 0.1;  // seconds
constexpr int64_t kMostProbes = 7;
constexpr int64_t kPrefilled = 8;  // sequences whose past a loaded model computes; the others' is a copy
constexpr float kCacheRms = 0.5f;  // what random weights give, rows of rms 1 times weights of 0.02, in width 600

// Seconds that threads of this process could have run but waited for a core; 0 where the system does not say.
double CoreWaitSeconds() {
  double ns = 0;
  std::error_code ignored;
  for (std::filesystem::directory_iterator task("/proc/self/task", ignored), end; task != end; task.increment(ignored)) {
    std::ifstream file(task->path() / "schedstat");
    double ran = 0, waited = 0;
    if (file >> ran >> waited) ns += waited;
  }
  return ns * 1e-9;
}

// Keys and values of `context` past positions of every sequence. For random weights values are 0: attention would else bring
// the same to every token of a sequence, outweigh the token, and choose the same experts step after step.
Status FillCache(const Model* loaded, int64_t context, uint64_t seed, KvCache& cache, ExecContext& ctx) {
  for (size_t l = 0; l < cache.k.size(); ++l) {
    FillRandomValues(cache.k[l].span(), kCacheRms, MixBits(seed) + 2 * l, ctx);
    if (loaded != nullptr) FillRandomValues(cache.v[l].span(), kCacheRms, MixBits(seed) + 2 * l + 1, ctx);
  }
  if (loaded == nullptr || context == 0) return {};
  // A trained router looks at what attention brings, so a loaded model reads a past of its own making.
  const int64_t prefilled = std::min(kPrefilled, cache.num_slots);
  Rng rng(seed, 1);
  std::vector<RowInfo> rows(static_cast<size_t>(context));
  for (int64_t slot = 0; slot < prefilled; ++slot) {
    for (int64_t p = 0; p < context; ++p) {
      rows[static_cast<size_t>(p)] = {.sequence = static_cast<int32_t>(slot),
                                      .position = static_cast<int32_t>(p),
                                      .token_id = static_cast<int32_t>(rng.Below(loaded->config().vocab_size))};
    }
    ctx.arena.Reset();
    MOE_TRY(loaded->Forward({.rows = rows, .cache = &cache}, nullptr, ctx));
  }
  const int64_t per_slot = cache.capacity * cache.width;
  for (size_t l = 0; l < cache.k.size(); ++l) {
    for (int64_t slot = prefilled; slot < cache.num_slots; ++slot) {
      for (Tensor* tensor : {&cache.k[l], &cache.v[l]}) {
        std::copy_n(tensor->data() + slot % prefilled * per_slot, per_slot, tensor->data() + slot * per_slot);
      }
    }
  }
  return {};
}

KvCache SweepCache(const ModelConfig& config, const SweepOptions& options) {
  const Step largest{options.phase, options.batches.back(), options.context};
  if (options.phase == Phase::kTrain) return KvCache::Make(config, 1, 1);
  return KvCache::Make(config, largest.sequences(), options.context + (options.phase == Phase::kDecode ? 1 : 0));
}

// A turn of every model at one batch size, and what was probed beside them.
struct Round {
  double read = 0, weights = 0, pace = 0;  // see SweepRow
  HandoverRange handovers;                 // before, during and after the turns, and after the probes

  // More often after long turns. Weights first: after a read in order, part of the buffer is in the caches.
  void Probe(double turns_s, CeilingProbe& probe, ThreadPool& pool, Placement& placement, const std::function<bool()>& go_on) {
    const auto times = std::clamp<int64_t>(static_cast<int64_t>(turns_s / kTurnsPerProbe), 1, kMostProbes);
    const auto median = [&](auto&& sample) {
      std::vector<double> samples;
      while (std::ssize(samples) < times) {
        placement.Await(pool, go_on);
        samples.push_back(sample());
      }
      return MedianOf(std::move(samples));
    };
    weights = median([&] { return probe.Sample(Ceiling::kWeights, pool); });
    pace = median([&] { return probe.Pace(pool, kPaceSeconds); });
    read = probe.Sample(Ceiling::kRead, pool);
    handovers.Add(placement.See(pool));
  }
};

// Of one batch size.
struct Rounds {
  std::vector<Round> all;
  double spent_s = 0;
  int64_t good = 0;  // of all: in the wanted placement
  int64_t turns_again = 0;
  int64_t count() const { return std::ssize(all); }
  std::vector<double> Values(double Round::*of) const {
    std::vector<double> out;
    for (const Round& round : all) out.push_back(round.*of);
    return out;
  }
};

// The next batch to have a round: the one that has had the least time, so that slow minutes of the machine fall on all batches.
// Once the time is up, kMinRounds for each and no more, good ones while there is patience; empty: done.
std::optional<size_t> NextBatch(const std::vector<Rounds>& all, double seconds_left, const Placement& placement) {
  for (const Rounds& rounds : all) {  // kept back for rounds that must be
    if (rounds.count() == 0) continue;
    const auto missing = static_cast<double>(std::max<int64_t>(kMinRounds - rounds.count(), 0));
    seconds_left -= missing * rounds.spent_s / static_cast<double>(rounds.count());
  }
  std::optional<size_t> next;
  for (size_t i = 0; i < all.size(); ++i) {
    const double mean_s = all[i].spent_s / std::max(1.0, static_cast<double>(all[i].count()));
    const bool only_good = placement.patient() && !placement.TooLong(mean_s);
    const bool enough = (only_good ? all[i].good : all[i].count()) >= kMinRounds;
    if (all[i].count() >= kMaxRounds || (enough && seconds_left <= 0)) continue;
    if (!next || all[i].spent_s < all[*next].spent_s) next = i;
  }
  return next;
}

// Of a sweep's rounds those of the phase of the machine that was asked for, or in which most were taken; all of a batch, where
// so few of it are left that phases cannot be told apart.
struct MachinePhase {
  double weights = 0, pace = 0, handover = 0;

  MachinePhase(const std::vector<Rounds>& batches, double wanted_handover) {
    Rounds together;
    for (const Rounds& rounds : batches) together.all.insert(together.all.end(), rounds.all.begin(), rounds.all.end());
    if (together.all.empty()) return;
    std::vector<double> handovers;
    for (const Round& round : together.all) handovers.push_back(round.handovers.max_s);
    handover = wanted_handover > 0 ? wanted_handover : TypicalHandover(handovers);
    std::erase_if(together.all, [this](const Round& round) { return !Has(round); });
    if (together.all.empty()) return;
    weights = MedianOf(together.Values(&Round::weights)), pace = MedianOf(together.Values(&Round::pace));
  }
  bool Has(const Round& round) const {
    const auto near = [](double here, double there) { return there <= 0 || std::abs(here - there) <= kSamePhase * there; };
    return round.handovers.In(handover) && near(round.weights, weights) && near(round.pace, pace);
  }
};

SweepRow RowOf(int64_t batch, size_t index, const Rounds& rounds, const MachinePhase& phase,
               const std::vector<SweepRunner>& runners) {
  std::vector<size_t> used;
  Rounds some;
  for (size_t i = 0; i < rounds.all.size(); ++i) {
    if (phase.Has(rounds.all[i])) used.push_back(i), some.all.push_back(rounds.all[i]);
  }
  if (some.count() < kMinRounds) {
    used.resize(rounds.all.size()), some = rounds;
    std::iota(used.begin(), used.end(), size_t{0});
  }
  SweepRow row{.batch = batch,
               .read_bytes_per_s = MedianOf(some.Values(&Round::read)),
               .weights_bytes_per_s = MedianOf(some.Values(&Round::weights)),
               .pace_flop_per_s = MedianOf(some.Values(&Round::pace)),
               .turns_again = rounds.turns_again,
               .rounds = rounds.count(),
               .rounds_used = some.count()};
  std::vector<double> handovers;
  for (const Round& round : some.all) handovers.push_back(round.handovers.max_s);
  row.handover_s = MedianOf(std::move(handovers));
  const auto reads = rounds.Values(&Round::read);
  row.read_min = *std::ranges::min_element(reads), row.read_max = *std::ranges::max_element(reads);
  for (const SweepRunner& runner : runners) row.cells.push_back(runner.Cell(index, used));
  return row;
}

}  // namespace

Result<SweepReport> MeasureSweep(const ModelConfig& config, const Model* loaded, const SweepOptions& options,
                                 const std::function<bool(const SweepProgress&)>& on_progress, ExecContext& ctx) {
  const SweepWeights source = loaded == nullptr ? SweepWeights::kRandom : SweepWeights::kLoaded;
  MOE_TRY(CheckSweep(config, source, options));
  const double start = NowSeconds();
  SweepReport report{.phase = options.phase,
                     .format = options.format,
                     .context = options.context,
                     .routing = options.routing,
                     .cpu = GetCpuInfo().name,
                     .isa = ctx.kernels.name,
                     .threads = ctx.pool.num_threads(),
                     .cache_bytes = GetCpuInfo().l3_bytes,
                     .subjects = SweepSubjects(config, source, options)};

  std::vector<SweepRunner> runners;
  int64_t arena_bytes = 0;
  for (size_t i = 0; i < report.subjects.size(); ++i) {
    SweepSubject& subject = report.subjects[i];
    const SweepRunner& runner = runners.emplace_back(subject, options, subject.random_weights ? nullptr : loaded, i);
    subject.weight_bytes = runner.packed_bytes();
    if (subject.random_weights) arena_bytes = std::max(arena_bytes, subject.weight_bytes);
  }
  if (options.phase == Phase::kTrain) arena_bytes = 0;  // weights of their own, each
  const AlignedBytes arena = AllocateAligned(static_cast<size_t>(arena_bytes));
  const std::span<std::byte> weights(arena.get(), static_cast<size_t>(arena_bytes));
  FillRandomWeights(weights, options.seed, ctx);
  for (SweepRunner& runner : runners) runner.Prepare(weights, ctx);
  KvCache cache = SweepCache(config, options);
  if (options.phase == Phase::kDecode) MOE_TRY(FillCache(loaded, options.context, options.seed, cache, ctx));
  CeilingProbe probe(options.probe_bytes, ctx.kernels);

  double measuring = NowSeconds();  // the start; later by what was spent on waiting
  const double waited = CoreWaitSeconds(), began = NowSeconds();
  Placement placement(options.handover_s, options.seconds, options.handover);
  std::vector<Rounds> all(options.batches.size());
  int64_t turns = 0;  // but for those beyond kMinRounds of a batch
  double told = 0;
  const auto go_on = [&](size_t index) {
    const double by_time = (NowSeconds() - measuring) / std::max(options.seconds, 1e-9);
    const double by_turns =
        static_cast<double>(turns) / static_cast<double>(kMinRounds * std::ssize(runners) * std::ssize(all));
    told = std::max(told, std::min({1.0, by_time, by_turns}));
    return !on_progress || on_progress({.batch = options.batches[index], .fraction = told});
  };
  while (!report.interrupted) {
    const auto next = NextBatch(all, options.seconds - (NowSeconds() - measuring), placement);
    if (!next) break;
    Rounds& rounds = all[*next];
    const auto ask = [&] { return go_on(*next); };
    const bool first = rounds.count() == 0;
    const double began_round = NowSeconds(), waited_before = placement.waited_s();
    double again_s = 0, turns_s = 0;
    int64_t again = 0;  // of this round
    Round round;
    for (size_t i = 0; i < runners.size() && !report.interrupted;) {
      SweepRunner& runner = runners[i];
      if (!ask()) report.interrupted = true;
      if (report.interrupted) break;
      if (first && !runner.Begun(*next)) MOE_TRY(runner.Turn(*next, /*measured=*/false, cache, ctx));
      placement.Await(ctx.pool, ask);
      HandoverRange seen;
      seen.Add(placement.now_s());
      runner.Watch([&] { seen.Add(placement.See(ctx.pool)); });
      const double start_of_turn = NowSeconds();
      MOE_TRY(runner.Turn(*next, /*measured=*/true, cache, ctx));
      const double spent = NowSeconds() - start_of_turn;
      runner.Watch({});
      seen.Add(placement.See(ctx.pool));
      if (again < kMostAgain && placement.Again(seen, spent)) {
        runner.ForgetTurn(*next), again_s += spent, ++rounds.turns_again, ++again;
        continue;
      }
      round.handovers.Add(seen.min_s), round.handovers.Add(seen.max_s);
      turns_s += spent, turns += rounds.count() < kMinRounds ? 1 : 0, ++i;
    }
    if (!report.interrupted) round.Probe(turns_s, probe, ctx.pool, placement, ask);
    const double lost = again_s + placement.waited_s() - waited_before;  // not of the time for measuring
    measuring += lost;
    if (report.interrupted) break;
    const double took = NowSeconds() - began_round - lost;
    if (rounds.count() >= kMinRounds && rounds.good < kMinRounds) placement.Spend(took);
    rounds.all.push_back(round), rounds.spent_s += took;
    rounds.good += round.handovers.In(options.handover_s) ? 1 : 0;
  }
  const MachinePhase phase(all, options.handover_s);
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].count() > 0) report.rows.push_back(RowOf(options.batches[i], i, all[i], phase, runners));
  }
  if (config.has_experts()) report.chances = runners.front().Chances();
  report.core_wait = (CoreWaitSeconds() - waited) / (NowSeconds() - began - placement.waited_s()) / report.threads;
  report.seconds = NowSeconds() - start;
  return report;
}

}  // namespace moe
