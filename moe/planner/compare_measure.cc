#include "moe/planner/compare_measure.h"

#include <algorithm>
#include <array>

#include "moe/model/load.h"
#include "moe/train/checkpoint.h"
#include "moe/train/run_folder.h"
#include "moe/train/trainer.h"

namespace moe {
namespace {

constexpr int kRounds = 11;
constexpr int kStepsOfRound = 4;  // that count; one before them fills the caches

// A run taken up where its last checkpoint left it.
struct TakenUp {
  Recipe recipe;
  std::unique_ptr<Model> model;
  std::optional<Trainer> trainer;

  Result<double> SecondsOfStep(ExecContext& ctx) {
    StepMetrics metrics;
    double seconds = 0;
    for (int i = 0; i <= kStepsOfRound; ++i) {
      MOE_TRY(trainer->Step(metrics, ctx));
      if (i > 0) seconds += metrics.parts.total() / kStepsOfRound;
    }
    return seconds;
  }
};

Status TakeUp(const std::string& folder, const TrainingData& data, TakenUp& run, ExecContext& ctx) {
  MOE_TRY(const OpenedTrainState opened, OpenTrainState(folder));
  const std::string where = PathIn(folder, "recipe.toml");
  MOE_TRY(run.recipe, ParseRecipe(opened.state.recipe, where, folder, {.own_text = true}));
  const Tokenizer& tokenizer = data.tokenizer;
  MOE_TRY(ModelConfig config,
          MakeModelConfig(run.recipe, tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_id(), where));
  run.model = std::make_unique<Model>(std::move(config), run.recipe.train.dtype, /*training=*/true);
  run.trainer.emplace(run.recipe, data.train, data.token_bytes, *run.model);
  MOE_TRY(ReadTrainState(opened, run.model->parameters(), run.trainer->optimizer()));
  run.model->Repack(ctx);
  if (opened.state.capacity_factors.size() == run.model->config().layers.size()) {
    run.model->SetCapacityFactors(opened.state.capacity_factors);
  }
  return {};
}

}  // namespace

Result<TrainingData> LoadComparedText(const Recipe& recipe, const std::string& where, const std::string& folder,
                                      ExecContext& ctx) {
  Recipe scored = recipe;
  scored.train.eval_tokens = kHeldOutTokens;
  return LoadTrainingData(scored, where, PathIn(folder, "tokenizer.json"), {}, ctx.pool);
}

Result<std::optional<Evaluation>> ScoreHeldOut(const std::string& folder, const Recipe& recipe, const TrainingData& data,
                                               const StopRequested& stop, ExecContext& ctx) {
  MOE_TRY(const auto model, LoadModel(folder, {.format = recipe.train.dtype}, ctx));
  bool stopped = false;
  const EvaluateOptions options{.batch = std::max<int64_t>(1, recipe.train.micro_batch_tokens / recipe.model.context),
                                .on_step = [&](int64_t, int64_t, double) { return !(stopped = stop && stop()); }};
  auto evaluation = Evaluate(*model, data.validation_documents, options, ctx);
  if (stopped) return std::optional<Evaluation>();
  if (!evaluation) return tl::make_unexpected(evaluation.error());
  return std::optional(std::move(*evaluation));
}

Result<std::optional<StepTimes>> TimeInTurns(const std::string& base_folder, const std::string& folder,
                                             const TrainingData& data, const StopRequested& stop, ExecContext& ctx) {
  std::array<TakenUp, 2> runs;
  MOE_TRY(TakeUp(base_folder, data, runs[0], ctx));
  MOE_TRY(TakeUp(folder, data, runs[1], ctx));
  StepTimes times;
  for (int round = -1; round < kRounds; ++round) {  // the first takes memory and does not count
    std::array<double, 2> seconds = {};
    for (int turn = 0; turn < 2; ++turn) {
      const auto who = static_cast<size_t>((turn + round + 1) % 2);
      if (stop && stop()) return std::optional<StepTimes>();
      MOE_TRY(seconds[who], runs[who].SecondsOfStep(ctx));
    }
    if (round < 0) continue;
    times.base_s.push_back(seconds[0]);
    times.own_s.push_back(seconds[1]);
  }
  return std::optional(std::move(times));
}

}  // namespace moe
