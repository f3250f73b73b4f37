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
#include "moe/planner/random_weights.h"
#include "moe/planner/sweep_runner.h"

namespace moe {
namespace {

constexpr int64_t kMinRounds = 3, kMaxRounds = 200;
// Rounds whose probe of weights differs more than this from the median were taken in another phase of the machine's memory.
constexpr double kSamePhase = 0.15;
constexpr double kPaceSeconds = 10e-3;
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

// Rounds of the memory phase in which most were taken; all, where so few are left that the phases cannot be told apart.
std::vector<size_t> RoundsInPhase(const std::vector<double>& probes, const std::vector<double>& paces) {
  const double median = MedianOf(probes), pace = *std::max_element(paces.begin(), paces.end());
  std::vector<size_t> used, all(probes.size());
  std::iota(all.begin(), all.end(), size_t{0});
  for (const size_t i : all) {
    if (std::abs(probes[i] - median) <= kSamePhase * median && std::abs(paces[i] - pace) <= kSamePhase * pace)
      used.push_back(i);
  }
  return used.size() >= static_cast<size_t>(kMinRounds) ? used : all;
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

  const double measuring = NowSeconds();
  const double waited = CoreWaitSeconds();
  for (size_t r = 0; r < options.batches.size() && !report.interrupted; ++r) {
    const int64_t batch = options.batches[r];
    // What earlier cells did not need goes to the later ones.
    const double left = std::max(0.0, options.seconds - (NowSeconds() - measuring));
    const double cell_s = left / static_cast<double>(options.batches.size() - r), cell_start = NowSeconds();
    int64_t turns = 0;
    const auto go_on = [&] {
      const double by_time = (NowSeconds() - cell_start) / std::max(cell_s, 1e-9);
      const double by_turns = static_cast<double>(turns) / static_cast<double>(kMinRounds * std::ssize(runners));
      const double in_cell = std::min({1.0, by_time, by_turns});
      const double done = (static_cast<double>(r) + in_cell) / static_cast<double>(options.batches.size());
      return !on_progress || on_progress({.batch = batch, .fraction = done});
    };
    for (SweepRunner& runner : runners) {
      runner.StartCell(batch);
      MOE_TRY(runner.Turn(/*measured=*/false, cache, ctx));
    }
    std::vector<double> probes, weights_probes, paces;
    const auto enough = [&] {
      const auto rounds = static_cast<int64_t>(probes.size());
      return rounds >= kMaxRounds || (rounds >= kMinRounds && NowSeconds() - cell_start >= cell_s);
    };
    while (!enough() && !report.interrupted) {
      for (SweepRunner& runner : runners) {
        if (!go_on()) report.interrupted = true;
        if (!report.interrupted) MOE_TRY(runner.Turn(/*measured=*/true, cache, ctx));
        ++turns;
      }
      if (report.interrupted) break;
      probes.push_back(probe.Sample(Ceiling::kRead, ctx.pool));
      weights_probes.push_back(probe.Sample(Ceiling::kWeights, ctx.pool));
      paces.push_back(probe.Pace(ctx.pool, kPaceSeconds));
    }
    if (report.interrupted) break;

    SweepRow row{.batch = batch, .rounds = static_cast<int64_t>(probes.size())};
    const std::vector<size_t> used = RoundsInPhase(weights_probes, paces);
    row.rounds_used = static_cast<int64_t>(used.size());
    std::vector<double> used_probes, used_weights, used_paces;
    for (const size_t i : used)
      used_probes.push_back(probes[i]), used_paces.push_back(paces[i]), used_weights.push_back(weights_probes[i]);
    row.read_bytes_per_s = MedianOf(used_probes), row.pace_flop_per_s = MedianOf(used_paces);
    row.weights_bytes_per_s = MedianOf(used_weights);
    row.read_min = *std::min_element(probes.begin(), probes.end());
    row.read_max = *std::max_element(probes.begin(), probes.end());
    for (const SweepRunner& runner : runners) row.cells.push_back(runner.Cell(used));
    report.rows.push_back(std::move(row));
  }
  if (config.has_experts()) report.chances = runners.front().Chances();
  report.core_wait = (CoreWaitSeconds() - waited) / (NowSeconds() - measuring) / report.threads;
  report.seconds = NowSeconds() - start;
  return report;
}

}  // namespace moe
