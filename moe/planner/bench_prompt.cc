// A prompt through a whole model, as an engine reads it.

#include <memory>

#include "moe/base/rng.h"
#include "moe/planner/bench_grouped.h"
#include "moe/planner/bench_moe.h"
#include "moe/planner/bench_operands.h"
#include "moe/planner/random_weights.h"

namespace moe {
namespace {

constexpr int64_t kLeastTokens = 256, kMostTokens = 1024;
constexpr int64_t kLayers = 4, kVocab = 1024, kHeadWidth = 128;

ModelConfig ConfigOf(const MoeShape& s) {
  ModelConfig config;
  config.vocab_size = kVocab, config.hidden = s.D, config.context = s.T;
  config.head_width = s.D % kHeadWidth == 0 ? kHeadWidth : 16;
  config.num_heads = config.num_kv_heads = s.D / config.head_width;
  LayerSpec layer{.ffn = FfnKind::kMoe};
  layer.moe.router = {.num_experts = s.E, .top_k = s.k};
  layer.moe.expert_width = s.F;
  config.layers.assign(kLayers, layer);
  return config;
}

struct PromptWork {
  AlignedBytes storage;
  Model model;
  KvCache cache;
  Arena arena;
  std::vector<RowInfo> rows;  // [T]
  std::vector<int32_t> last;  // the row whose logits are wanted

  PromptWork(const ModelConfig& config, int64_t T, DType format, ExecContext& ctx)
      : model(config, format, /*training=*/false, /*masters=*/false),
        cache(KvCache::Make(config, 1, T)),
        last{static_cast<int32_t>(T - 1)} {
    const auto size = static_cast<size_t>(model.PackedStorageBytes());
    storage = AllocateAligned(size);
    FillRandomWeights({storage.get(), size / 8 * 8}, 1, ctx);
    GiveRandomWeights(model, {storage.get(), size}, 2, ctx);
    Rng rng(3);
    for (int64_t t = 0; t < T; ++t)
      rows.push_back({.position = static_cast<int32_t>(t), .token_id = static_cast<int32_t>(rng.Below(kVocab))});
  }
};

}  // namespace

std::vector<BenchCase> MoePromptCases(const BenchShapes& shapes, DType format) {
  std::vector<BenchCase> out;
  for (const MoeShape& s : shapes.moe) {
    if (s.T < kLeastTokens || s.T > kMostTokens) continue;
    const ModelConfig config = ConfigOf(s);
    // Every token goes through the layers' matrices and sees half of the positions; one row through the head.
    const ParameterCount count = CountParameters(config);
    const double matrices = static_cast<double>(count.active - count.embedding - count.head - count.norms);
    const double flop =
        2.0 * static_cast<double>(s.T) * matrices + kLayers * GemmFlop(s.T, s.T + 1, s.D) + GemmFlop(1, kVocab, s.D);
    out.push_back({.group = "step",
                   .name = fmt::format("{}/prompt/{}", Name(format), NameOf(s)),
                   .kind = "prompt",
                   .bounds = {{PeakOf(format), flop}},
                   .memory_bytes = InferenceMemory(config, format, s.T, 1, s.T).total(),
                   .prepare = [=](ExecContext& ctx) {
                     const auto work = std::make_shared<PromptWork>(config, s.T, format, ctx);
                     return BenchRun{.run = [work, &ctx] {
                       ExecContext own{ctx.pool, work->arena, ctx.kernels};
                       own.arena.Reset();
                       const auto logits = work->model.Forward(
                           {.rows = work->rows, .logit_rows = work->last, .cache = &work->cache}, nullptr, own);
                       MOE_CHECK(logits.has_value(), "{}", logits.error().Message());
                     }};
                   }});
  }
  return out;
}

}  // namespace moe
