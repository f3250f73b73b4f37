// What a sweep will measure and what it takes, before it begins; and what its figures say together.

#include <algorithm>

#include "moe/base/cpu_info.h"
#include "moe/base/progress.h"
#include "moe/planner/ceilings.h"
#include "moe/planner/sweep.h"

namespace moe {
namespace {

int64_t PositionsOf(const SweepOptions& options) {
  return options.context + (options.phase == Phase::kDecode ? 1 : 0);
}

ModelConfig RandomConfig(ModelConfig config, const SweepOptions& options) {
  config.context = PositionsOf(options);  // no rotations for positions that nobody visits
  return config;
}

ModelConfig FirstLayers(ModelConfig config, size_t count) {
  config.layers.resize(count);
  return config;
}

// Weights, cache and logits, in double: shapes from a hostile file must not overflow the exact count.
double RoughBytes(const ModelConfig& c, const SweepOptions& options) {
  const double D = static_cast<double>(c.hidden), V = static_cast<double>(c.vocab_size), P = static_cast<double>(c.head_width);
  const double heads = static_cast<double>(c.num_heads), kv_heads = static_cast<double>(c.num_kv_heads);
  const double B = static_cast<double>(options.batches.back()), positions = static_cast<double>(options.context) + 1;
  double values = V * (2 * D + B);
  for (const LayerSpec& layer : c.layers) {
    double width = static_cast<double>(layer.ffn_width);
    if (layer.ffn == FfnKind::kMoe) {
      const MoeConfig& moe = layer.moe;
      const double shared_width = static_cast<double>(moe.shared_expert_width > 0 ? moe.shared_expert_width : moe.expert_width);
      width = static_cast<double>(moe.num_shared_experts) * shared_width;
      for (const ExpertGroup& group : moe.experts()) {
        values += static_cast<double>(group.count) * RoughValuesOf(group.spec, c.hidden);
      }
    }
    values += 3 * D * width + 2 * (heads + kv_heads) * P * D + 2 * B * positions * kv_heads * P;
  }
  return (options.phase == Phase::kTrain ? 24 : 4) * values;
}

// What to do about a sweep that does not fit: weights of half the size, the longest --layers, or the largest batch, that does.
std::string WhatFits(const ModelConfig& config, SweepWeights weights, SweepOptions options, int64_t limit) {
  if (options.format == DType::kF32 && weights != SweepWeights::kLoaded) {
    SweepOptions half = options;
    half.format = DType::kBf16;
    if (CountSweepMemory(config, weights, half).total() <= limit) return "; --dtype bf16 would fit";
  }
  const int64_t largest = options.batches.back();
  while (options.batches.back() > 1) {
    options.batches = {options.batches.back() / 2};
    if (CountSweepMemory(config, weights, options).total() <= limit) {
      return fmt::format("; --batches up to {} would fit", options.batches.back());
    }
  }
  options.batches = {largest};
  for (size_t count = config.layers.size() - 1; count > 0 && weights == SweepWeights::kRandom; --count) {
    if (CountSweepMemory(FirstLayers(config, count), weights, options).total() <= limit) {
      return fmt::format("; --layers {} would fit", count);
    }
  }
  return "";
}

}  // namespace

ExpertChances SweepRouting::Chances(int64_t experts, int64_t top_k) const {
  return kind == kZipf ? ZipfChances(experts, top_k, s) : UniformChances(experts, top_k);
}

std::vector<SweepSubject> SweepSubjects(const ModelConfig& config, SweepWeights weights, const SweepOptions& options) {
  const bool random = weights == SweepWeights::kRandom || options.phase == Phase::kTrain;
  const auto subject = [](SweepRole role, ModelConfig shape, bool random_weights) {
    SweepSubject out{.role = role, .config = std::move(shape), .random_weights = random_weights};
    out.parameters = CountParameters(out.config);
    return out;
  };
  std::vector<SweepSubject> subjects = {subject(SweepRole::kModel, random ? RandomConfig(config, options) : config, random)};
  if (!config.has_experts()) return subjects;
  for (const TwinKind kind : options.against) {
    subjects.push_back(subject(kind == TwinKind::kEqualActive ? SweepRole::kDenseActive : SweepRole::kDenseTotal,
                               RandomConfig(DenseTwin(config, kind), options), true));
  }
  return subjects;
}

SweepMemory CountSweepMemory(const ModelConfig& config, SweepWeights weights, const SweepOptions& options) {
  SweepMemory memory{.probe_buffer = options.probe_bytes > 0 ? options.probe_bytes : CeilingProbe::DefaultBytes()};
  const int64_t batch = options.batches.back();
  int64_t arena = 0;
  for (const SweepSubject& subject : SweepSubjects(config, weights, options)) {
    if (options.phase == Phase::kTrain) {
      const MemoryNeed need = TrainingMemory(subject.config, options.format, batch);
      memory.weights += need.masters + need.packs + need.gradients + need.moments;
      memory.activations = std::max(memory.activations, need.activations);
      continue;
    }
    const Step largest{options.phase, batch, options.context};
    const MemoryNeed need = InferenceMemory(subject.config, options.format, batch, largest.sequences(), PositionsOf(options));
    if (subject.random_weights) {
      arena = std::max(arena, need.packs);
    } else {
      memory.weights += need.packs;
    }
    memory.embeddings += need.masters;
    memory.kv_cache = need.kv_cache;
    memory.activations = std::max(memory.activations, need.activations);
  }
  memory.weights += arena;
  return memory;
}

Status CheckSweep(const ModelConfig& config, SweepWeights weights, const SweepOptions& options) {
  if (options.batches.empty()) return UsageErr("--batches", "got none, expected some");
  for (size_t i = 0; i < options.batches.size(); ++i) {
    if (options.batches[i] < 1) return UsageErr("--batches", "got {}, expected 1 or more", options.batches[i]);
    MOE_CHECK(i == 0 || options.batches[i - 1] < options.batches[i], "batches are not ascending");
  }
  if (options.phase == Phase::kDecode && (options.context < 0 || options.context >= config.context)) {
    return UsageErr("--context", "got {}, expected 0 to {}: the model's context is {} and a step adds one position",
                    options.context, config.context - 1, config.context);
  }
  if (options.phase != Phase::kDecode && (options.context < 1 || options.context > config.context)) {
    return UsageErr("--context", "got {}, expected 1 to {}, the model's context", options.context, config.context);
  }
  int64_t limit = options.memory_bytes >= 0 ? options.memory_bytes : AvailableMemoryBytes();
  constexpr double kMost = 1e16;
  if (RoughBytes(config, options) > kMost) {
    return Err("memory", "got a sweep of {}, expected at most the {} {}", FormatBytes(RoughBytes(config, options)),
               FormatBytes(static_cast<double>(limit)), options.memory_bytes >= 0 ? "allowed" : "that are free");
  }
  if (weights == SweepWeights::kLoaded && options.memory_bytes < 0) {
    const MemoryNeed held = InferenceMemory(config, options.format, 0, 0, 0);
    limit += held.packs + held.masters;
  }
  const SweepMemory need = CountSweepMemory(config, weights, options);
  if (need.total() <= limit) return {};
  const auto size = [](int64_t bytes) { return FormatBytes(static_cast<double>(bytes)); };
  return Err(
      "memory",
      "got a sweep of {} (weights {}, embeddings and routers {}, KV cache {}, activations {}, bandwidth probe {}), expected "
      "at most the {} {}{}",
      size(need.total()), size(need.weights), size(need.embeddings), size(need.kv_cache), size(need.activations),
      size(need.probe_buffer), size(limit), options.memory_bytes >= 0 ? "allowed" : "that are free",
      WhatFits(config, weights, options, limit));
}

double SweepCell::mean_distinct_experts(const ModelConfig& config) const {
  double sum = 0, layers = 0;
  for (size_t l = 0; l < config.layers.size(); ++l) {
    if (config.layers[l].ffn == FfnKind::kMoe) sum += distinct_experts[l], ++layers;
  }
  return layers > 0 ? sum / layers : 0;
}

const SweepSubject* SweepReport::Find(SweepRole role) const {
  const auto it = std::find_if(subjects.begin(), subjects.end(), [&](const SweepSubject& s) { return s.role == role; });
  return it == subjects.end() ? nullptr : &*it;
}

std::optional<double> SweepReport::Speedup(const SweepRow& row, SweepRole twin) const {
  const SweepSubject *model = Find(SweepRole::kModel), *other = Find(twin);
  if (model == nullptr || other == nullptr) return std::nullopt;
  return row.cells[static_cast<size_t>(other - subjects.data())].s_per_step /
         row.cells[static_cast<size_t>(model - subjects.data())].s_per_step;
}

}  // namespace moe
