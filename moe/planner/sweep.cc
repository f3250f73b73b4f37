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

namespace moe {
namespace {

constexpr int64_t kMinRounds = 3, kMaxRounds = 200;
// A subject's turn in a round: steps until this much time; their median is the round's, so that a step during which somebody
// else had the core does not count.
constexpr double kTurnSeconds = 0.01;
constexpr int64_t kMaxTurnSteps = 32;
// The others and the probe have emptied the caches before every turn. In a decode loop a model finds there what its last step
// left, so one step goes untimed first, unless steps are so long that filling a cache is lost in them.
constexpr double kWarmStepSeconds = 0.05;
// Rounds whose probe differs more than this from the median probe were taken in another phase of the machine's memory.
constexpr double kSamePhase = 0.15;
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

double Median(std::vector<double> values) {
  const size_t middle = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(middle), values.end());
  if (values.size() % 2 == 1) return values[middle];
  return (values[middle] + *std::max_element(values.begin(), values.begin() + static_cast<int64_t>(middle))) / 2;
}

// A model and the step it repeats.
struct Runner {
  const SweepSubject* subject = nullptr;
  const Model* model = nullptr;
  std::unique_ptr<Model> owned;
  Rng tokens{0};
  std::vector<RowInfo> rows;        // [B]
  std::vector<int32_t> logit_rows;  // [B]
  StepStats stats;
  double last_s = 0;

  int64_t steps = 0;                       // measured ones of this cell
  std::vector<double> distinct_sum;        // [L] over those steps
  std::vector<std::vector<uint8_t>> used;  // [L][E] whether a token came in any of them
  std::vector<double> turn_s;              // steps of the turn
  std::vector<double> round_s;             // median step of each round

  void StartCell(int64_t batch, int64_t context) {
    rows.assign(static_cast<size_t>(batch), {});
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].sequence = static_cast<int32_t>(i);
      rows[i].position = static_cast<int32_t>(context);
    }
    logit_rows.resize(rows.size());
    std::iota(logit_rows.begin(), logit_rows.end(), 0);
    steps = 0;
    distinct_sum.assign(subject->config.layers.size(), 0);
    used.assign(subject->config.layers.size(), {});
    round_s.clear();
  }

  Result<double> Step(KvCache& cache, ExecContext& ctx) {
    for (RowInfo& row : rows) row.token_id = static_cast<int32_t>(tokens.Below(subject->config.vocab_size));
    stats.Clear();
    ctx.arena.Reset();
    const double start = NowSeconds();
    MOE_TRY(model->Forward({.rows = rows, .logit_rows = logit_rows, .cache = &cache}, &stats, ctx));
    return last_s = NowSeconds() - start;
  }

  Status Turn(bool measured, KvCache& cache, ExecContext& ctx) {
    if (!measured || last_s < kWarmStepSeconds) MOE_TRY(Step(cache, ctx));
    if (!measured && last_s >= kWarmStepSeconds) return {};
    double total = 0;
    turn_s.clear();
    do {
      MOE_TRY(const double s, Step(cache, ctx));
      total += s;
      turn_s.push_back(s);
      if (!measured) continue;
      for (size_t l = 0; l < stats.layers.size(); ++l) {
        const auto& tokens_per_expert = stats.layers[l].tokens_per_expert;
        distinct_sum[l] += static_cast<double>(
            std::count_if(tokens_per_expert.begin(), tokens_per_expert.end(), [](int64_t n) { return n > 0; }));
        used[l].resize(tokens_per_expert.size());
        for (size_t e = 0; e < used[l].size(); ++e) used[l][e] |= tokens_per_expert[e] > 0;
      }
    } while (total < kTurnSeconds && std::ssize(turn_s) < kMaxTurnSteps);
    if (!measured) return {};
    steps += std::ssize(turn_s);
    round_s.push_back(Median(turn_s));
    return {};
  }

  SweepCell Cell(const std::vector<size_t>& rounds, DType format, const DecodeStep& step) const {
    std::vector<double> times;
    for (const size_t round : rounds) times.push_back(round_s[round]);
    SweepCell cell{.s_per_step = Median(std::move(times)), .steps = steps, .distinct_experts = distinct_sum};
    cell.s_min = *std::min_element(round_s.begin(), round_s.end());
    cell.s_max = *std::max_element(round_s.begin(), round_s.end());
    for (double& distinct : cell.distinct_experts) distinct /= static_cast<double>(steps);
    for (const auto& layer : used) cell.experts_used.push_back(std::count(layer.begin(), layer.end(), 1));
    cell.cost = DecodeCost(subject->config, format, step, cell.distinct_experts);
    return cell;
  }
};

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

// Rounds of the memory phase in which most were taken; all, where so few are left that the phases cannot be told apart.
std::vector<size_t> RoundsInPhase(const std::vector<double>& probes) {
  const double median = Median(probes);
  std::vector<size_t> used, all(probes.size());
  std::iota(all.begin(), all.end(), size_t{0});
  for (const size_t i : all) {
    if (std::abs(probes[i] - median) <= kSamePhase * median) used.push_back(i);
  }
  return used.size() >= static_cast<size_t>(kMinRounds) ? used : all;
}

}  // namespace

Result<SweepReport> MeasureSweep(const ModelConfig& config, const Model* loaded, const SweepOptions& options,
                                 const std::function<bool(const SweepProgress&)>& on_progress, ExecContext& ctx) {
  const SweepWeights source = loaded == nullptr ? SweepWeights::kRandom : SweepWeights::kLoaded;
  MOE_TRY(CheckSweep(config, source, options));
  const double start = NowSeconds();
  SweepReport report{.format = options.format,
                     .context = options.context,
                     .cpu = GetCpuInfo().name,
                     .isa = ctx.kernels.name,
                     .threads = ctx.pool.num_threads(),
                     .cache_bytes = GetCpuInfo().l3_bytes,
                     .subjects = SweepSubjects(config, source, options)};

  std::vector<Runner> runners(report.subjects.size());
  int64_t arena_bytes = 0;
  for (size_t i = 0; i < runners.size(); ++i) {
    SweepSubject& subject = report.subjects[i];
    runners[i].subject = &subject;
    runners[i].tokens = Rng(options.seed, i);
    runners[i].model = loaded;
    if (subject.random_weights) {
      runners[i].owned = std::make_unique<Model>(subject.config, options.format, /*training=*/false, /*masters=*/false);
      runners[i].model = runners[i].owned.get();
      arena_bytes = std::max(arena_bytes, runners[i].model->PackedStorageBytes());
    }
    subject.weight_bytes = runners[i].model->PackedStorageBytes();
  }
  const AlignedBytes arena = AllocateAligned(static_cast<size_t>(arena_bytes));
  const std::span<std::byte> weights(arena.get(), static_cast<size_t>(arena_bytes));
  FillRandomWeights(weights, options.seed, ctx);
  for (const Runner& runner : runners) {
    if (runner.owned) GiveRandomWeights(*runner.owned, weights, options.seed, ctx);
  }
  KvCache cache = KvCache::Make(config, options.batches.back(), options.context + 1);
  MOE_TRY(FillCache(loaded, options.context, options.seed, cache, ctx));
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
    for (Runner& runner : runners) {
      runner.StartCell(batch, options.context);
      MOE_TRY(runner.Turn(/*measured=*/false, cache, ctx));
    }
    std::vector<double> probes;
    const auto enough = [&] {
      const auto rounds = static_cast<int64_t>(probes.size());
      return rounds >= kMaxRounds || (rounds >= kMinRounds && NowSeconds() - cell_start >= cell_s);
    };
    while (!enough() && !report.interrupted) {
      for (Runner& runner : runners) {
        if (!go_on()) report.interrupted = true;
        if (!report.interrupted) MOE_TRY(runner.Turn(/*measured=*/true, cache, ctx));
        ++turns;
      }
      if (!report.interrupted) probes.push_back(probe.Sample(Ceiling::kRead, ctx.pool));
    }
    if (report.interrupted) break;

    SweepRow row{.batch = batch, .rounds = static_cast<int64_t>(probes.size())};
    const std::vector<size_t> used = RoundsInPhase(probes);
    row.rounds_used = static_cast<int64_t>(used.size());
    std::vector<double> used_probes;
    for (const size_t i : used) used_probes.push_back(probes[i]);
    row.read_bytes_per_s = Median(used_probes);
    row.read_min = *std::min_element(probes.begin(), probes.end());
    row.read_max = *std::max_element(probes.begin(), probes.end());
    for (const Runner& runner : runners) row.cells.push_back(runner.Cell(used, options.format, {batch, options.context}));
    report.rows.push_back(std::move(row));
  }
  report.core_wait = (CoreWaitSeconds() - waited) / (NowSeconds() - measuring) / report.threads;
  report.seconds = NowSeconds() - start;
  return report;
}

}  // namespace moe
