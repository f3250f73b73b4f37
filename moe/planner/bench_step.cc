// Whole training steps, as moe train takes them.

#include "moe/base/rng.h"
#include "moe/planner/bench_grouped.h"
#include "moe/planner/bench_moe.h"
#include "moe/planner/bench_operands.h"
#include "moe/train/trainer.h"

namespace moe {
namespace {

constexpr int64_t kLeastTokens = 4096;
constexpr int64_t kLayers = 2, kVocab = 1024, kContext = 1024;

Recipe RecipeOf(const MoeShape& s, DType format) {
  Recipe r;
  const int64_t P = s.D % 64 == 0 ? 64 : 16;
  r.model.layers = kLayers, r.model.hidden = s.D, r.model.heads = r.model.kv_heads = s.D / P, r.model.head_width = P;
  r.model.context = kContext;
  r.model.experts = s.E, r.model.top_k = s.k, r.model.expert_width = s.F;
  r.router.config.normalize = s.k > 1 || s.E == 1;
  r.train.steps = 1 << 20, r.train.batch_tokens = r.train.micro_batch_tokens = s.T, r.train.context = kContext;
  r.train.lr = 1e-5, r.train.min_lr = 1e-5, r.train.dtype = format;
  return r;
}

ModelConfig ConfigOf(const MoeShape& s, DType format) {
  const auto config = MakeModelConfig(RecipeOf(s, format), kVocab, /*bos_id=*/0, /*eos_id=*/-1, "bench");
  MOE_CHECK(config.has_value(), "{}", config.error().Message());
  return *config;
}

struct StepWork {
  Corpus corpus;
  Model model;
  Trainer trainer;
  StepMetrics metrics;

  StepWork(const ModelConfig& config, const Recipe& recipe, ExecContext& ctx)
      : corpus(RandomCorpus()),
        model(config, recipe.train.dtype, /*training=*/true),
        trainer(recipe, corpus, std::vector<int32_t>(static_cast<size_t>(kVocab), 1), model) {
    trainer.Restart(ctx);
  }
  static Corpus RandomCorpus() {
    Rng rng(5);
    std::vector<int32_t> tokens(1 << 16);
    for (int32_t& t : tokens) t = static_cast<int32_t>(rng.Below(kVocab));
    const auto n = static_cast<int64_t>(tokens.size());
    return {.documents = {std::move(tokens)}, .num_tokens = n, .num_bytes = n};
  }
};

std::function<void()> StepsOf(const ModelConfig& config, const Recipe& recipe, ExecContext& ctx) {
  const auto work = std::make_shared<StepWork>(config, recipe, ctx);
  return [work, &ctx] {
    const Status status = work->trainer.Step(work->metrics, ctx);
    MOE_CHECK(status.has_value(), "{}", status.error().Message());
  };
}

}  // namespace

std::vector<BenchCase> MoeStepCases(const BenchShapes& shapes, DType format) {
  std::vector<BenchCase> out;
  for (const MoeShape& s : shapes.moe) {
    if (s.T < kLeastTokens || s.T % kContext != 0) continue;
    const ModelConfig config = ConfigOf(s, format), twin = DenseTwin(config, TwinKind::kEqualActive);
    // Backward is twice the forward's products; causal attention reads half of the positions.
    const double flop = 6.0 * static_cast<double>(s.T) * static_cast<double>(CountParameters(config).active) +
                        3.0 * kLayers * GemmFlop(s.T, kContext, s.D);
    out.push_back({.group = "step",
                   .name = fmt::format("{}/{}", Name(format), NameOf(s)),
                   .kind = "training",
                   .bounds = {{PeakOf(format), flop}},
                   .reference = {.name = "dense twin of equal active parameters"},
                   .memory_bytes = TrainingMemory(config, format, s.T).total() + TrainingMemory(twin, format, s.T).total(),
                   .prepare = [=](ExecContext& ctx) {
                     return BenchRun{.run = StepsOf(config, RecipeOf(s, format), ctx),
                                     .reference = StepsOf(twin, RecipeOf(s, format), ctx)};
                   }});
  }
  return out;
}

}  // namespace moe
