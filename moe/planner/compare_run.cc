#include <filesystem>
#include <nlohmann/json.hpp>

#include "moe/files/atomic_file.h"
#include "moe/planner/compare.h"
#include "moe/planner/compare_measure.h"
#include "moe/planner/compare_summary.h"
#include "moe/train/checkpoint.h"
#include "moe/train/run_folder.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

constexpr int kInterrupted = 130;  // exit code of an error that is a stop

// Models and checkpoints of a run whose results are written down.
Status DropModels(const std::string& folder, bool keep_checkpoint) {
  for (const char* name : {"best", "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
                           kPreviousTrainStateName, kTrainStateName}) {
    if (keep_checkpoint && name == kTrainStateName) continue;
    std::error_code error;
    fs::remove_all(fs::path(folder) / name, error);
    if (error) return Err(PathIn(folder, name), "cannot remove: {}", error.message());
  }
  return {};
}

class Comparison {
 public:
  Comparison(ComparePlan& plan, const CompareObserver& observer, ExecContext& ctx)
      : plan_(plan), observer_(observer), ctx_(ctx) {}

  Result<bool> Do() {
    std::vector<CompareRun> runs;
    for (const int64_t seed : plan_.seeds) {
      for (size_t i = 0; i < plan_.variants.size(); ++i) {
        if (plan_.variants[i].runs_of == i) runs.push_back({.variant = i, .seed = seed, .index = std::ssize(runs)});
      }
    }
    for (CompareRun& run : runs) {
      run.count = std::ssize(runs);
      MOE_TRY(const bool done, Take(run));
      if (!done) return false;
      if (run.index == 0) MOE_TRY(FixSteps(plan_.FolderOf(0, run.seed)));
    }
    return true;
  }

 private:
  // False: stopped.
  Result<bool> Take(CompareRun& run);
  Result<bool> Measure(const CompareRun& run, const std::string& folder, const Recipe& recipe, RunSummaryFile& summary);
  Result<std::string> WeightsOf(const CompareRun& run, const std::string& folder);
  Status FixSteps(const std::string& folder);
  RunOptions OptionsOf(const CompareRun& run) const;
  Recipe RecipeOf(const CompareRun& run) const;

  bool IsFirst(const CompareRun& run) const { return run.variant == 0 && run.seed == plan_.seeds.front(); }

  ComparePlan& plan_;
  const CompareObserver& observer_;
  ExecContext& ctx_;
  std::optional<TrainingData> data_;
  std::string data_digest_;
  WeightsSeen weights_;
};

Recipe Comparison::RecipeOf(const CompareRun& run) const {
  Recipe recipe = plan_.variants[run.variant].recipe;
  recipe.train.seed = run.seed;
  return recipe;
}

RunOptions Comparison::OptionsOf(const CompareRun& run) const {
  const CompareVariant& variant = plan_.variants[run.variant];
  RunOptions options{.recipe = variant.path,
                     .overrides = plan_.options.overrides,
                     .folder = plan_.FolderOf(run.variant, run.seed),
                     .resume = run.resumed};
  options.overrides.variant = &variant.given;
  options.overrides.sets.push_back(fmt::format("train.seed={}", run.seed));
  if (variant.recipe.train.steps > 0) {
    options.overrides.minutes = 0;
    options.overrides.sets.push_back("train.minutes=");
    options.overrides.sets.push_back(fmt::format("train.steps={}", variant.recipe.train.steps));
  }
  return options;
}

// Digest of the model that the run begins, or began, with; empty: with none.
Result<std::string> Comparison::WeightsOf(const CompareRun& run, const std::string& folder) {
  const std::string& from = plan_.variants[run.variant].recipe.model.from;
  if (from.empty()) return std::string();
  if (run.resumed) {
    MOE_TRY(const OpenedTrainState opened, OpenTrainState(folder));
    return opened.state.weights_digest;
  }
  MOE_TRY(const ModelFiles files, ModelFiles::Open(from));
  return files.Digest();
}

// All further runs take as many steps as the base's first did.
Status Comparison::FixSteps(const std::string& folder) {
  const std::string path = PathIn(folder, "recipe.toml");
  MOE_TRY(const std::string text, ReadFile(path));
  MOE_TRY(const Recipe recipe, ParseRecipe(text, path, folder, {.own_text = true}));
  for (CompareVariant& variant : plan_.variants) {
    variant.recipe.train.steps = recipe.train.steps;
    variant.recipe.train.minutes = 0;
  }
  return {};
}

Result<bool> Comparison::Take(CompareRun& run) {
  const std::string folder = plan_.FolderOf(run.variant, run.seed);
  MOE_TRY(CheckRunFolder(folder, RecipeOf(run)));
  if (Holds(folder, kSummaryName)) {
    MOE_TRY(const RunSummaryFile summary, ReadRunSummary(folder));
    MOE_TRY(CheckWeights(plan_.variants[run.variant].recipe.model.from, summary.weights_digest, folder, weights_));
    if (!summary.models_kept)
      MOE_TRY(DropModels(folder, IsFirst(run) && summary.failed.empty()));  // a kill may have come between
    return true;
  }
  run.resumed = HoldsTrainState(folder);
  MOE_TRY(const std::string weights, WeightsOf(run, folder));
  MOE_TRY(CheckWeights(plan_.variants[run.variant].recipe.model.from, weights, folder, weights_));
  if (observer_.on_begin) observer_.on_begin(run);
  const RunObserver observer{.on_note =
                                 [&](const std::string& what) {
                                   if (observer_.on_note) observer_.on_note(run, what);
                                 },
                             .on_start =
                                 [&](const RunInfo& info) {
                                   if (observer_.on_start) observer_.on_start(run, info);
                                 },
                             .on_step =
                                 [&](const StepMetrics& step) {
                                   if (observer_.on_step) observer_.on_step(run, step);
                                 },
                             .stop_requested = observer_.stop_requested};
  const auto trained = RunTraining(OptionsOf(run), observer, ctx_);
  RunSummaryFile summary{.seed = run.seed,
                         .kernels = ctx_.kernels.name,
                         .weights_digest = weights,
                         .threads = ctx_.pool.num_threads(),
                         .models_kept = plan_.options.keep_models};
  if (trained) {
    if (trained->interrupted) return false;
  } else {
    if (trained.error().exit_code == kInterrupted) return false;
    if (!trained.error().where.starts_with("step ")) return tl::make_unexpected(trained.error());
    const std::string& what = trained.error().what;  // numbers that went wrong; advice follows the first semicolon
    summary.failed = trained.error().where + ": " + what.substr(0, what.find(';'));
  }
  MOE_TRY(const bool measured, Measure(run, folder, RecipeOf(run), summary));
  if (!measured) return false;
  MOE_TRY(WriteRunSummary(folder, summary));
  if (!plan_.options.keep_models) MOE_TRY(DropModels(folder, IsFirst(run) && summary.failed.empty()));
  if (observer_.on_end) observer_.on_end(run, summary.held_out.bits_per_byte(), summary.failed);
  return true;
}

Result<bool> Comparison::Measure(const CompareRun& run, const std::string& folder, const Recipe& recipe,
                                 RunSummaryFile& summary) {
  const auto note = [&](const std::string& what) {
    if (observer_.on_note) observer_.on_note(run, what);
  };
  if (!data_) {
    MOE_TRY(data_, LoadComparedText(recipe, plan_.variants[run.variant].path, folder, ctx_));
    data_digest_ = Digest(data_->train);
    if (data_->validation_documents.empty()) {
      return Err(plan_.base().path + " data.validation",
                 "got none, expected held-out text to compare on (also: --validation FILE)");
    }
  }
  const Tokenizer& tokenizer = data_->tokenizer;
  MOE_TRY(const ModelConfig config,
          MakeModelConfig(recipe, tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_id(), folder));
  const ParameterCount count = CountParameters(config);
  summary.parameters_total = count.total, summary.parameters_active = count.active;
  summary.data_digest = data_digest_, summary.held_out_digest = data_->validation_digest;
  if (!summary.failed.empty()) return true;
  note("scoring the held-out text");
  MOE_TRY(const auto evaluation, ScoreHeldOut(folder, recipe, *data_, observer_.stop_requested, ctx_));
  if (!evaluation) return false;
  summary.held_out = *evaluation;
  const std::string base = plan_.FolderOf(0, plan_.seeds.front());
  if (run.variant == 0 || run.seed != plan_.seeds.front() || !HoldsTrainState(base)) return true;
  note("step times, in turns with the base");
  const auto times = TimeInTurns(base, folder, *data_, observer_.stop_requested, ctx_);
  if (!times && times.error().where.starts_with("step ")) return true;  // numbers that go wrong only now: no times
  if (!times) return tl::make_unexpected(times.error());
  if (!*times) return false;
  summary.times = **times;
  return true;
}

}  // namespace

Result<bool> RunComparison(ComparePlan& plan, const CompareObserver& observer, ExecContext& ctx) {
  return Comparison(plan, observer, ctx).Do();
}

}  // namespace moe
