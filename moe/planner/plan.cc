#include "moe/planner/plan.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "moe/base/check.h"
#include "moe/base/progress.h"
#include "moe/ops/chunks.h"
#include "moe/planner/step_cost.h"
#include "moe/planner/sweep_report.h"

namespace moe {
namespace {

double D(int64_t n) {
  return static_cast<double>(n);
}

// Bytes of a block of 32 values with its scale, as GGUF and the OCP microscaling formats store them.
constexpr std::array kTypes = {
    WeightType{"f32", DType::kF32, 4, true},
    WeightType{"bf16", DType::kBf16, 2, true},
    WeightType{"q8_0", DType::kBf16, 34.0 / 32, false},
    WeightType{"q4_0", DType::kBf16, 18.0 / 32, false},
    WeightType{"mxfp4", DType::kBf16, 17.0 / 32, false},
};

void Add(StepTime& sum, const StepTime& time, double factor) {
  sum.s += factor * time.s;
  for (size_t i = 0; i < sum.part_s.size(); ++i) sum.part_s[i] += factor * time.part_s[i];
  sum.imbalance_s += factor * time.imbalance_s, sum.sync_s += factor * time.sync_s;
  sum.memory_s += factor * time.memory_s, sum.compute_s += factor * time.compute_s;
  sum.bytes += factor * time.bytes, sum.flop += factor * time.flop;
  sum.distinct_experts += factor * time.distinct_experts;
}

struct Planner {
  const ModelConfig& config;
  const PlanOptions& options;
  Conditions now;

  Step StepOf(int64_t batch) const { return {options.phase, batch, options.context}; }
  double ranks() const { return D(options.parallel.ranks); }
  double kv_value_bytes() const { return options.phase == Phase::kTrain ? D(SizeOf(DType::kF32)) : options.kv_value_bytes; }
  int64_t SequencesOf(int64_t batch) const { return StepOf(batch).sequences(); }

  StepTime Time(const ModelConfig& shape, int64_t batch, std::vector<ExpertChances> chances,
                std::vector<double> distinct = {}) const {
    const WeightType& type = options.dtype;
    return Predict({shape, type.format, std::move(chances), type.ours ? 0 : type.bytes, std::move(distinct), kv_value_bytes()},
                   StepOf(batch), now);
  }

  // Of the experts of one rank: of skewed ones the rank with the most popular, which all others wait for. [L]
  std::vector<ExpertChances> Chances() const {
    if (options.measured == nullptr) return Chances(options.routing);
    std::vector<ExpertChances> all;
    for (const ExpertChances& chances : options.measured->chances) {
      all.push_back(BusiestRank(chances, options.parallel.ranks));
    }
    return all;
  }
  std::vector<ExpertChances> Chances(const SweepRouting& routing) const {
    std::vector<ExpertChances> all(config.layers.size());
    for (size_t l = 0; l < all.size(); ++l) {
      if (config.layers[l].ffn != FfnKind::kMoe) continue;
      const RouterConfig& router = config.layers[l].moe.router;
      const ExpertChances chances = routing.Chances(router.num_experts, router.top_k);
      for (int64_t e = 0; e < router.num_experts; e += options.parallel.ranks) {
        all[l].p.push_back(chances.p[static_cast<size_t>(e)]);
      }
    }
    return all;
  }

  // Where tokens come as runs of a text, which choose alike. Tokens of a decode step do not: their chances say all. [L]
  std::vector<double> Distinct(int64_t batch) const {
    if (options.measured == nullptr || options.phase == Phase::kDecode) return {};
    return DistinctExpertsOf(*options.measured, StepOf(batch), options.parallel.ranks);
  }

  std::optional<AssumedExperts> Assumed(int64_t batch) const {
    if (options.measured == nullptr) return std::nullopt;
    const double tokens = D(batch) * ranks();
    const std::vector<ExpertChances> own = Chances(), uniform = Chances({.kind = SweepRouting::kUniform});
    const std::vector<double> runs = Distinct(batch);
    AssumedExperts sum;
    double layers = 0;
    for (size_t l = 0; l < own.size(); ++l) {
      if (own[l].p.empty()) continue;
      ++layers, sum.uniform += DistinctExperts(uniform[l], tokens), sum.by_frequency += DistinctExperts(own[l], tokens);
      if (!runs.empty()) sum.runs = sum.runs.value_or(0) + runs[l];
    }
    sum.uniform /= layers, sum.by_frequency /= layers;
    if (sum.runs) *sum.runs /= layers;
    return sum;
  }

  // A rank's step: its own tokens for everything but the experts, and its experts' share of everybody's. What experts' products
  // take is the difference of two steps with all tokens, one of which comes to no expert.
  StepTime RankTime(int64_t batch) const {
    if (options.parallel.ranks == 1) return Time(config, batch, Chances(), Distinct(batch));
    const std::vector<ExpertChances> none(config.layers.size());
    const int64_t all = batch * options.parallel.ranks;
    StepTime time = Time(config, batch, none);
    Add(time, Time(config, all, Chances(), Distinct(batch)), 1);
    Add(time, Time(config, all, none), -1);
    return time;
  }

  PlanCell DenseCell(const ModelConfig& shape, int64_t batch) const {
    PlanCell cell{.time = Time(shape, batch, {})};
    cell.tokens_per_s = D(batch) * ranks() / cell.time.s;
    return cell;
  }

  // Rows go to their experts and come back, and in training their gradients do too.
  void Exchange(int64_t batch, PlanCell& cell) const {
    if (options.parallel.ranks == 1) return;
    const double exchanges = options.phase == Phase::kTrain ? 4 : 2, size = D(SizeOf(options.dtype.format));
    for (const LayerSpec& layer : config.layers) {
      if (layer.ffn != FfnKind::kMoe) continue;
      const double bytes = exchanges * D(batch * layer.moe.router.top_k) * D(config.hidden) * size * (1 - 1 / ranks());
      cell.all_to_all_bytes += bytes;
      cell.all_to_all_s += bytes / options.parallel.bytes_per_s + exchanges * options.parallel.latency_s;
    }
    cell.time.s += cell.all_to_all_s;
  }

  PlanCell ModelCell(int64_t batch) const {
    if (!config.has_experts()) return DenseCell(config, batch);
    PlanCell cell{.time = RankTime(batch)};
    Exchange(batch, cell);
    cell.tokens_per_s = D(batch) * ranks() / cell.time.s;
    return cell;
  }

  // --- memory of a rank ---
  // Parameters of experts that the fullest rank, the one that RankTime is of, does not hold: it has E/ranks of a layer, rounded
  // up.
  double Elsewhere() const {
    double sum = 0;
    ModelConfig one = config;
    for (const LayerSpec& layer : config.layers) {
      if (layer.ffn != FfnKind::kMoe) continue;
      const int64_t E = layer.moe.router.num_experts, held = CeilDiv(E, options.parallel.ranks);
      one.layers = {layer};
      sum += D(CountParameters(one).experts) * D(E - held) / D(E);
    }
    return sum;
  }
  double Weights(const ModelConfig& shape, const WeightType& type, double elsewhere) const {
    const MemoryNeed need = InferenceMemory(shape, type.format, 0, 0, 0);
    const double packs = D(need.packs) * type.bytes / D(SizeOf(type.format));
    return D(need.masters) + packs - elsewhere * type.bytes;
  }
  double TrainingState() const {
    const DType format = options.dtype.format;
    const MemoryNeed need = TrainingMemory(config, format, 1);
    const double per_value = 16 + 2 * D(SizeOf(format));
    return D(need.masters + need.packs + need.gradients + need.moments) - Elsewhere() * per_value;
  }
  PlanMemory Memory() const {
    PlanMemory memory;
    for (const WeightType& type : kTypes) memory.types.push_back({type, Weights(config, type, Elsewhere())});
    memory.weights = Weights(config, options.dtype, Elsewhere());
    const int64_t positions = options.context + (options.phase == Phase::kDecode ? 1 : 0);
    memory.cache_per_sequence =
        D(InferenceMemory(config, DType::kF32, 0, 1, positions).kv_cache) * options.kv_value_bytes / D(SizeOf(DType::kF32));
    memory.training_state = TrainingState();
    memory.program = D(MemoryNeed{}.program);
    return memory;
  }
  double MemoryAt(const PlanMemory& memory, double weights, int64_t batch) const {
    if (options.phase == Phase::kTrain) {
      return memory.training_state + D(TrainingMemory(config, options.dtype.format, batch).activations) + memory.program;
    }
    const MemoryNeed need = InferenceMemory(config, options.dtype.format, batch, SequencesOf(batch), 0);
    return weights + D(SequencesOf(batch)) * memory.cache_per_sequence + D(need.activations) + memory.program;
  }
};

// The widest type of weights with which `batch` takes no more than `limit`, else the smallest.
Plan::OtherType OtherTypeFor(const Planner& planner, const PlanMemory& memory, double limit, int64_t batch) {
  Plan::OtherType out;
  for (const PlanMemory::OfType& type : memory.types) {
    const double bytes = planner.MemoryAt(memory, type.weights, batch);
    out = {type.type.name, bytes, bytes <= limit};
    if (out.fits) break;
  }
  return out;
}

// What the least step takes must fit what the user allows.
Status CheckMemory(const Planner& planner, const PlanMemory& memory) {
  const PlanOptions& options = planner.options;
  if (!options.memory_bytes) return {};
  const double limit = *options.memory_bytes, need = planner.MemoryAt(memory, memory.weights, 1);
  if (need <= limit) return {};
  if (options.phase == Phase::kTrain) {
    const std::string text = fmt::format("{} to train with {} weights at batch 1", FormatBytes(need), options.dtype.name);
    if (options.dtype.format == DType::kBf16) return Err("--memory", "got {}, expected at least {}", FormatBytes(limit), text);
    PlanOptions narrow = options;
    narrow.dtype = *std::ranges::find(kTypes, DType::kBf16, &WeightType::format);
    const Planner other{planner.config, narrow, planner.now};
    const double bytes = other.MemoryAt(other.Memory(), 0, 1);
    return Err("--memory", "got {}, expected at least {}; --dtype {} takes {}, {}", FormatBytes(limit), text, narrow.dtype.name,
               FormatBytes(bytes), bytes <= limit ? "which fits" : "the least of all, which does not fit either");
  }
  const Plan::OtherType other = OtherTypeFor(planner, memory, limit, 1);
  const std::string size = FormatBytes(other.memory_bytes);
  if (other.type == options.dtype.name) {
    return Err("--memory", "got {}, expected at least {}: {} weights, the smallest there are, and batch 1", FormatBytes(limit),
               size, other.type);
  }
  return Err("--memory", "got {}, expected at least {} for {} weights and batch 1; --dtype {} takes {}, {}", FormatBytes(limit),
             FormatBytes(need), options.dtype.name, other.type, size,
             other.fits ? "which fits" : "the least of all, which does not fit either");
}

bool Keeps(const Plan& plan, const PlanCell& cell, double memory_bytes) {
  return (!plan.options.max_s || cell.time.s <= *plan.options.max_s) &&
         memory_bytes <= plan.memory_limit().value_or(memory_bytes);
}

// Between the batches of the table the largest that still keeps the bounds is found by halving: time and memory grow with it.
std::optional<int64_t> BestWithinBounds(const Plan& plan, const Planner& planner) {
  const std::vector<PlanRow>& rows = plan.rows;
  size_t best = rows.size();
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!Keeps(plan, rows[i].model, rows[i].memory_bytes)) continue;
    if (best == rows.size() || rows[i].model.tokens_per_s > rows[best].model.tokens_per_s) best = i;
  }
  if (best == rows.size()) return std::nullopt;
  if (best + 1 == rows.size() || Keeps(plan, rows[best + 1].model, rows[best + 1].memory_bytes)) return rows[best].batch;
  int64_t keeps = rows[best].batch, breaks = rows[best + 1].batch;
  double tokens_per_s = rows[best].model.tokens_per_s;
  while (breaks - keeps > 1) {
    const int64_t batch = keeps + (breaks - keeps) / 2;
    const PlanCell cell = planner.ModelCell(batch);
    const bool ok = Keeps(plan, cell, planner.MemoryAt(plan.memory, plan.memory.weights, batch));
    (ok ? keeps : breaks) = batch;
    if (ok) tokens_per_s = cell.tokens_per_s;
  }
  return tokens_per_s > rows[best].model.tokens_per_s ? keeps : rows[best].batch;
}

std::optional<int64_t> BestOf(const Plan& plan, const Planner& planner) {
  if (plan.options.max_s || plan.options.memory_bytes) return BestWithinBounds(plan, planner);
  // Memory grows with the batch: where the knee, or else the last batch, fits, nothing bounds it.
  const auto wanted = std::ranges::find(plan.rows, plan.knee.value_or(plan.rows.back().batch), &PlanRow::batch);
  return plan.fits(*wanted) ? plan.knee : BestWithinBounds(plan, planner);
}

// The layer with the most experts for each chosen.
void CountExperts(Plan& plan) {
  double most = 0;
  for (const LayerSpec& layer : plan.config.layers) {
    if (layer.ffn != FfnKind::kMoe) continue;
    const RouterConfig& router = layer.moe.router;
    const double ratio = D(router.num_experts) / D(router.top_k);
    if (ratio > most) most = ratio, plan.experts = router.num_experts, plan.top_k = router.top_k;
  }
}

struct Twins {
  std::optional<ModelConfig> total, active;
};

PlanRow RowOf(int64_t batch, const Plan& plan, const Planner& planner, const Twins& twins) {
  PlanRow row{.batch = batch, .model = planner.ModelCell(batch)};
  if (twins.total) row.dense_total = planner.DenseCell(*twins.total, batch);
  if (twins.active) row.dense_active = planner.DenseCell(*twins.active, batch);
  row.memory_bytes = planner.MemoryAt(plan.memory, plan.memory.weights, batch);
  row.regime = row.model.time.memory_bound() ? Regime::kMemory : Regime::kCompute;
  row.assumed = planner.Assumed(batch);
  return row;
}

void Judge(Plan& plan) {
  std::vector<double> tokens_per_s;
  for (const PlanRow& row : plan.rows) tokens_per_s.push_back(row.model.tokens_per_s);
  const std::vector<int64_t> batches = plan.Batches();
  plan.knee = KneeOf(batches, tokens_per_s);
  if (!plan.moe()) return;
  const std::vector<double> total = plan.SpeedupTotal(), active = plan.SpeedupActive();
  for (PlanRow& row : plan.rows) row.regime = RegimeOf(row.speedup_total(), row.dense_total->time.memory_bound());
  plan.plateau = PlateauOf(batches, total);
  plan.crossover_total = Crossings(batches, total, kGain);
  plan.crossover_active = ActiveCrossings(batches, active);
}

}  // namespace

std::span<const WeightType> WeightTypes() {
  return kTypes;
}

std::string_view PlanCell::bound() const {
  const double most = std::max({time.memory_s, time.compute_s, time.sync_s, all_to_all_s});
  if (most == all_to_all_s) return "link";
  if (most == time.sync_s) return "overhead";
  return time.memory_bound() ? "memory" : "compute";
}

std::optional<double> Plan::memory_limit() const {
  if (options.memory_bytes || machine.memory_bytes <= 0) return options.memory_bytes;
  return D(machine.memory_bytes);
}

std::vector<int64_t> Plan::Batches() const {
  std::vector<int64_t> out;
  for (const PlanRow& row : rows) out.push_back(row.batch);
  return out;
}

std::vector<double> Plan::SpeedupTotal() const {
  std::vector<double> out;
  for (const PlanRow& row : rows) {
    if (row.dense_total) out.push_back(row.speedup_total());
  }
  return out;
}

std::vector<double> Plan::SpeedupActive() const {
  std::vector<double> out;
  for (const PlanRow& row : rows) {
    if (row.dense_active) out.push_back(row.speedup_active());
  }
  return out;
}

Status CheckPlan(const ModelConfig& config, const PlanOptions& options) {
  if (options.batches.empty()) return UsageErr("--batches", "got none, expected some");
  for (size_t i = 0; i < options.batches.size(); ++i) {
    if (options.batches[i] < 1) return UsageErr("--batches", "got {}, expected 1 or more", options.batches[i]);
    MOE_CHECK(i == 0 || options.batches[i - 1] < options.batches[i], "batches are not ascending");
  }
  const int64_t least = options.phase == Phase::kDecode ? 0 : 1, most = config.context - 1 + least;
  if (options.context < least || options.context > most) {
    return UsageErr("--context", "got {}, expected {} to {}: the model's context is {}{}", options.context, least, most,
                    config.context, least == 0 ? " and a step adds one position" : "");
  }
  if (options.parallel.ranks == 1) return {};
  if (!config.has_experts()) return UsageErr("--ranks", "got a dense model, expected one with experts to spread over ranks");
  for (const LayerSpec& layer : config.layers) {
    if (layer.ffn == FfnKind::kMoe && options.parallel.ranks > layer.moe.router.num_experts) {
      return UsageErr("--ranks", "got {}, expected 1 to {}, the experts of a layer", options.parallel.ranks,
                      layer.moe.router.num_experts);
    }
  }
  return {};
}

Result<Plan> MakePlan(const std::string& name, const ModelConfig& config, const MachineProfile& machine,
                      const PlanOptions& options) {
  MOE_TRY(CheckPlan(config, options));
  MOE_CHECK(options.measured == nullptr || options.measured->chances.size() == config.layers.size(),
            "routing of {} layers, expected {}", options.measured->chances.size(), config.layers.size());
  Plan plan{.name = name, .config = config, .machine = machine, .options = options};
  const Planner planner{plan.config, plan.options, {.machine = plan.machine}};
  plan.parameters = CountParameters(config);
  plan.memory = planner.Memory();
  MOE_TRY(CheckMemory(planner, plan.memory));
  CountExperts(plan);
  Twins twins;
  if (plan.moe()) {
    twins = {DenseTwin(config, TwinKind::kEqualTotal), DenseTwin(config, TwinKind::kEqualActive)};
    plan.active_twin_weights = planner.Weights(*twins.active, options.dtype, 0);
  }
  for (const int64_t batch : options.batches) plan.rows.push_back(RowOf(batch, plan, planner, twins));
  plan.boundaries = BoundariesOf(config, machine, options.dtype.format, options.dtype.bytes, options.phase);
  Judge(plan);
  if (!plan.fits(plan.rows.front()) && options.phase != Phase::kTrain) {
    plan.other_type = OtherTypeFor(planner, plan.memory, *plan.memory_limit(), plan.rows.front().batch);
  }
  plan.best_batch = BestOf(plan, planner);
  if (!plan.best_batch) return plan;
  const auto listed = std::ranges::find(plan.rows, *plan.best_batch, &PlanRow::batch);
  plan.best = listed != plan.rows.end() ? *listed : RowOf(*plan.best_batch, plan, planner, twins);
  return plan;
}

}  // namespace moe
