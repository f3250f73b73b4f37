#include "moe/train/run.h"

#include <malloc.h>

#include <algorithm>
#include <optional>

#include "moe/base/check.h"
#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/files/atomic_file.h"
#include "moe/model/load.h"
#include "moe/model/save.h"
#include "moe/train/run_folder.h"
#include "moe/train/training_data.h"

namespace moe {
namespace {

// The first line of a run's recipe.toml.
constexpr const char* kRecipeHeader = "# Every key of this run. `moe train` on this file, with another --out, repeats it.\n";

// Training needs this much memory before its first step is done; better told now than killed later.
Status CheckMemory(int64_t needed, const TrainRecipe& train, const std::string& where) {
  const double need = static_cast<double>(needed);
  const double there = static_cast<double>(AvailableMemoryBytes());
  if (there <= 0 || need <= there) return {};
  return Err(where,
             "got a model that needs {:.1f} GB to train, expected at most the {:.1f} GB free here; a smaller model, or "
             "train.micro_batch_tokens below {}, needs less",
             need / 1e9, there / 1e9, train.micro_batch_tokens);
}

tl::unexpected<Error> StoppedEarly() {
  constexpr int kInterrupted = 130;  // as shells say it
  return tl::make_unexpected(Error{"calibration", "stopped before the first step; nothing was begun", kInterrupted});
}

// One run, from the files that begin it to the last checkpoint.
class Run {
 public:
  Run(const RunOptions& options, const RunObserver& observer, ExecContext& ctx)
      : options_(options), observer_(observer), ctx_(ctx), folder_(options.folder) {}

  Result<RunSummary> Do() {
    MOE_TRY(options_.resume ? PrepareResumed() : PrepareNew());
    MOE_TRY(options_.resume ? Resume() : Begin());
    return Loop();
  }

 private:
  Status PrepareNew();
  Status PrepareResumed();
  Status LoadData(const std::string& tokenizer_path);
  Status MakeModel();
  Status Restart();
  Status Begin();
  Status Resume();
  Status Calibrate();
  Result<RunSummary> Loop();
  Result<bool> EvaluateStep(StepMetrics& metrics);  // false: stopped in the middle
  Result<std::optional<Evaluation>> EvaluateNow(bool observed);
  Status Checkpoint();
  Status CheckWeights() const;
  tl::unexpected<Error> Ruined(const Error& error) const;
  tl::unexpected<Error> NotSaved(const Error& error) const;

  void Note(const std::string& what) const {
    if (observer_.on_note) observer_.on_note(what);
  }
  bool StopRequested() const { return observer_.stop_requested && observer_.stop_requested(); }
  bool Due(int64_t every) const {
    const int64_t step = trainer_->steps_done();
    return step == recipe_.train.steps || (every > 0 && step > 0 && step % every == 0);
  }

  const RunOptions& options_;
  const RunObserver& observer_;
  ExecContext& ctx_;
  const std::string folder_;
  std::string where_;  // the recipe, in errors
  Recipe recipe_;
  std::optional<OpenedTrainState> opened_;  // when resuming, until its tensors have been read
  TrainState state_;                        // of the last checkpoint; best_* and pending_line run ahead of it
  int64_t saved_step_ = -1;                 // -1: none in this folder yet
  std::optional<TrainingData> data_;
  std::unique_ptr<Model> model_;
  std::optional<Trainer> trainer_;
  std::optional<MetricsFile> metrics_file_;
  RunSummary summary_;
};

Status Run::PrepareNew() {
  where_ = options_.recipe;
  MOE_TRY(recipe_, LoadRecipe(options_.recipe, options_.overrides));
  MOE_TRY(CheckWritable(folder_));
  MOE_TRY(CheckNothingTaken(folder_));
  MOE_TRY(LoadData(""));
  MOE_TRY(MakeModel());
  // Nothing was written until here: a bad recipe or text leaves no folder behind.
  MOE_TRY(MakeFolder(folder_));
  MOE_TRY(metrics_file_, MetricsFile::Open(PathIn(folder_, "metrics.jsonl")));
  return CheckNothingTaken(folder_);  // again, now that the file is locked: another run may have come and gone
}

Status Run::PrepareResumed() {
  if (!HoldsTrainState(folder_)) {
    return Err(folder_, "got no checkpoint there ({}), expected one to resume from; leave --resume out to begin a run",
               kTrainStateName);
  }
  MOE_TRY(metrics_file_, MetricsFile::Open(PathIn(folder_, "metrics.jsonl")));
  MOE_TRY(opened_, OpenTrainState(folder_));
  if (!opened_->warning.empty()) Note(opened_->warning);
  state_ = opened_->state;
  const std::string own = PathIn(folder_, "recipe.toml");
  where_ = options_.recipe.empty() ? own : options_.recipe;
  MOE_TRY(const Recipe begun, ParseRecipe(state_.recipe, own, folder_, {.own_text = true}));
  RecipeOverrides overrides = options_.overrides;
  overrides.begun = &begun.data;
  overrides.own_text = options_.recipe.empty();
  MOE_TRY(recipe_, options_.recipe.empty() ? ParseRecipe(state_.recipe, own, folder_, overrides)
                                           : LoadRecipe(options_.recipe, overrides));
  if (const std::string key = FirstDifference(recipe_, begun); !key.empty()) {
    return Err(fmt::format("{} {}", where_, key), "got {}, expected {}: the run in {} was begun with it; --out names another",
               ValueOf(recipe_, key), ValueOf(begun, key), folder_);
  }
  recipe_.train.steps = begun.train.steps;
  recipe_.train.minutes = 0;
  if (state_.kernels != ctx_.kernels.name) {
    return Err(folder_,
               "got the instruction set {}, expected {}: the run was begun with it, and another would round differently; "
               "MOE_ISA={} chooses it",
               ctx_.kernels.name, state_.kernels, state_.kernels);
  }
  // Where it is missing, the run was killed right after its first checkpoint.
  MOE_TRY(LoadData(Holds(folder_, "tokenizer.json") ? PathIn(folder_, "tokenizer.json") : ""));
  if (Digest(data_->tokenizer) != state_.tokenizer_digest) {
    return Err(PathIn(folder_, "tokenizer.json"), "got another tokenizer, expected the one that the run was begun with");
  }
  if (Digest(data_->train) != state_.data_digest) {
    return Err(recipe_.data.files.front(), "got other training text, expected the files that the run in {} was begun with",
               folder_);
  }
  return MakeModel();
}

Status Run::LoadData(const std::string& tokenizer_path) {
  mallopt(M_MMAP_THRESHOLD, 1 << 20);  // fixed, or what threads free stays with them
  MOE_TRY(data_, LoadTrainingData(recipe_, where_, tokenizer_path, observer_.on_note, ctx_.pool));
  malloc_trim(0);  // texts and counts are gone: back to the system, before the model comes
  return {};
}

Status Run::MakeModel() {
  const Tokenizer& tokenizer = data_->tokenizer;
  auto made = MakeModelConfig(recipe_, tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_id(), where_);
  if (!made) {
    const auto& sets = options_.overrides.sets;  // a shape that flags changed is wrong usage
    if (std::ranges::any_of(sets, [](const std::string& set) { return set.starts_with("model."); })) made.error().exit_code = 2;
    return tl::make_unexpected(made.error());
  }
  ModelConfig config = std::move(*made);
  const MemoryNeed memory = TrainingMemory(config, recipe_.train.dtype, recipe_.train.micro_batch_tokens);
  MOE_TRY(CheckMemory(memory.total(), recipe_.train, where_));
  model_ = std::make_unique<Model>(std::move(config), recipe_.train.dtype, /*training=*/true);
  trainer_.emplace(recipe_, data_->train, data_->token_bytes, *model_);
  {  // one block for the first step already, which would else touch more than it needs
    const Arena::Scope scope(ctx_.arena);
    ctx_.arena.Alloc<std::byte>(memory.activations);
  }
  ctx_.arena.Reset();
  return {};
}

Status Run::Restart() {
  trainer_->Restart(ctx_);
  if (recipe_.model.from.empty()) return {};
  return LoadWeights(recipe_.model.from, *model_, ctx_);
}

Status Run::Begin() {
  MOE_TRY(Restart());
  if (!recipe_.model.from.empty()) {
    MOE_TRY(const ModelFiles files, ModelFiles::Open(recipe_.model.from));
    state_.weights_digest = files.Digest();
  }
  std::string origin;
  if (recipe_.train.steps == 0) {
    origin = fmt::format("# steps were calibrated from minutes = {}\n", recipe_.train.minutes);
    MOE_TRY(Calibrate());
    recipe_.train.minutes = 0;
    MOE_TRY(Restart());
  }
  state_.data_digest = Digest(data_->train);
  state_.tokenizer_digest = Digest(data_->tokenizer);
  state_.kernels = ctx_.kernels.name;
  state_.recipe = kRecipeHeader + origin + ToToml(recipe_);
  return {};
}

Status Run::Resume() {
  MOE_TRY(ReadTrainState(*opened_, model_->parameters(), trainer_->optimizer()));
  opened_.reset();
  model_->Repack(ctx_);
  if (const std::string ruined = RuinedWeights(model_->parameters()); !ruined.empty()) {
    return Err(PathIn(folder_, kTrainStateName),
               "got a checkpoint of step {} in which {}, expected weights that can be trained; begin anew with another --out",
               state_.step, ruined);
  }
  if (!state_.capacity_factors.empty()) {
    if (state_.capacity_factors.size() != model_->config().layers.size()) {
      return Err(folder_, "got a checkpoint with {} capacity factors, expected one of each of the {} layers",
                 state_.capacity_factors.size(), model_->config().layers.size());
    }
    model_->SetCapacityFactors(state_.capacity_factors);
  }
  trainer_->seconds = state_.seconds;
  saved_step_ = state_.step;
  state_.recipe = kRecipeHeader + ToToml(recipe_);
  return metrics_file_->Truncate(state_.metrics_bytes);
}

// A few steps and one evaluation, to say how many steps fit into recipe_.train.minutes. They leave no trace in the weights.
Status Run::Calibrate() {
  TrainRecipe& train = recipe_.train;
  Note("measuring how many steps fit into the time");
  const double start = NowSeconds(), budget = train.minutes * 60;
  trainer_->set_steps(1000000);  // a schedule to take the first steps of
  StepMetrics metrics;
  MOE_TRY(trainer_->Step(metrics, ctx_));  // memory is taken, caches fill
  const double first = NowSeconds();
  int64_t count = 0;
  while (count < 3 || NowSeconds() - first < 0.02 * budget) {
    if (StopRequested()) return StoppedEarly();
    MOE_TRY(trainer_->Step(metrics, ctx_));
    ++count;
  }
  const double step_s = (NowSeconds() - first) / static_cast<double>(count);
  double evaluation_s = 0;
  if (!data_->validation_documents.empty()) {
    const double begin = NowSeconds();
    MOE_TRY(const auto evaluation, EvaluateNow(/*observed=*/false));
    if (!evaluation) return StoppedEarly();
    evaluation_s = NowSeconds() - begin;
  }
  const double left = budget - (NowSeconds() - start) - evaluation_s;  // the last evaluation is always there
  const double per_step = step_s + (train.eval_every > 0 ? evaluation_s / static_cast<double>(train.eval_every) : 0);
  train.steps = std::max<int64_t>(1, std::llround(std::floor(left / per_step)));
  trainer_->set_steps(train.steps);
  return {};
}

Result<RunSummary> Run::Loop() {
  if (observer_.on_start) {
    observer_.on_start({.model = model_->config(),
                        .train = recipe_.train,
                        .vocab_size = data_->tokenizer.vocab_size(),
                        .train_bytes = data_->train.num_bytes,
                        .train_tokens = data_->train.num_tokens,
                        .validation_bytes = data_->validation_bytes(),
                        .validation_tokens = data_->validation_tokens(),
                        .steps_done = trainer_->steps_done(),
                        .folder = folder_});
  }
  StepMetrics metrics{.step = trainer_->steps_done(),
                      .steps = recipe_.train.steps,
                      .tokens = trainer_->steps_done() * recipe_.train.batch_tokens,
                      .seconds = trainer_->seconds};
  for (;;) {
    bool stop = false;
    if (!state_.pending_line.empty()) {
      if (Due(recipe_.train.eval_every) && !data_->validation_documents.empty()) {
        MOE_TRY(CheckWeights());  // or best/ may get them
        MOE_TRY(const bool evaluated, EvaluateStep(metrics));
        stop = !evaluated;
      }
      if (!stop) {
        if (const Status status = metrics_file_->Append(state_.pending_line); !status) return NotSaved(status.error());
        state_.pending_line.clear();
      }
    }
    const bool finished = trainer_->steps_done() == recipe_.train.steps;
    stop = stop || StopRequested();
    const bool due = Due(recipe_.train.checkpoint_every) && trainer_->steps_done() != saved_step_;
    if (due || finished || stop || saved_step_ < 0) {
      MOE_TRY(CheckWeights());
      if (const Status status = Checkpoint(); !status) return NotSaved(status.error());
    }
    if (finished || stop) {
      summary_.interrupted = !finished || !state_.pending_line.empty();
      break;
    }
    if (const Status status = trainer_->Step(metrics, ctx_); !status) return Ruined(status.error());
    summary_.loss = metrics.loss;
    state_.pending_line = ToJsonLine(metrics);
    if (observer_.on_step) observer_.on_step(metrics);
  }
  summary_.step = trainer_->steps_done();
  summary_.steps = recipe_.train.steps;
  summary_.tokens = summary_.step * recipe_.train.batch_tokens;
  summary_.seconds = trainer_->seconds;
  if (state_.best_step > 0) {
    summary_.best_loss = state_.best_loss;
    summary_.best_bits_per_byte = state_.best_bits_per_byte;
    summary_.best_step = state_.best_step;
  }
  return summary_;
}

// Nothing: stopped in the middle.
Result<std::optional<Evaluation>> Run::EvaluateNow(bool observed) {
  bool stopped = false;
  const EvaluateOptions options{.batch = std::max<int64_t>(1, recipe_.train.micro_batch_tokens / recipe_.model.context),
                                .on_step = [&](int64_t done, int64_t total, double) {
                                  if (observed && observer_.on_evaluating) observer_.on_evaluating(done, total);
                                  stopped = StopRequested();
                                  return !stopped;
                                }};
  auto evaluation = Evaluate(*model_, data_->validation_documents, options, ctx_);
  if (!evaluation && !stopped) return tl::make_unexpected(evaluation.error());
  if (!evaluation) return std::optional<Evaluation>();
  return std::optional(std::move(*evaluation));
}

Result<bool> Run::EvaluateStep(StepMetrics& metrics) {
  const double start = NowSeconds();
  MOE_TRY(const auto evaluation, EvaluateNow(/*observed=*/true));
  if (!evaluation) return false;
  if (state_.validation_digest != data_->validation_digest) {
    if (!state_.validation_digest.empty()) {  // losses of different texts do not compare
      state_.best_loss = std::numeric_limits<double>::infinity();
      state_.best_step = 0;
    }
    state_.validation_digest = data_->validation_digest;
  }
  const ValidationMetrics validation{.loss = evaluation->loss(),
                                     .bits_per_byte = evaluation->bits_per_byte(),
                                     .seconds = NowSeconds() - start,
                                     .is_best = evaluation->loss() < state_.best_loss,
                                     .layers = evaluation->layers};
  state_.pending_line = WithValidation(state_.pending_line, validation);
  summary_.validation_loss = validation.loss;
  summary_.bits_per_byte = validation.bits_per_byte;
  if (validation.is_best) {
    const std::string best = PathIn(folder_, "best");
    Status status = MakeFolder(best);
    if (status) status = data_->tokenizer.Save(best);
    if (status) status = SaveModel(*model_, best, DType::kF32);
    if (!status) return NotSaved(status.error());
    state_.best_loss = validation.loss;
    state_.best_bits_per_byte = validation.bits_per_byte;
    state_.best_step = trainer_->steps_done();
  }
  if (observer_.on_validation) observer_.on_validation(metrics, validation);
  return true;
}

Status Run::Checkpoint() {
  MOE_TRY(metrics_file_->Sync());
  state_.step = trainer_->steps_done();
  state_.capacity_factors = model_->CapacityFactors();
  state_.seconds = trainer_->seconds;
  state_.metrics_bytes = metrics_file_->bytes();
  MOE_TRY(SaveTrainState(folder_, state_, model_->parameters(), trainer_->optimizer()));
  saved_step_ = state_.step;
  // Not before the first checkpoint: a run that is killed without one leaves nothing that could be another's.
  if (!Holds(folder_, "recipe.toml")) MOE_TRY(WriteFileAtomically(PathIn(folder_, "recipe.toml"), state_.recipe));
  if (!Holds(folder_, "tokenizer.json") || !Holds(folder_, "tokenizer_config.json")) MOE_TRY(data_->tokenizer.Save(folder_));
  if (state_.step > 0) MOE_TRY(SaveModel(*model_, folder_, DType::kF32));
  return {};
}

// Weights that are ruined never become a checkpoint: the last one stays good.
Status Run::CheckWeights() const {
  const std::string ruined = RuinedWeights(model_->parameters());
  if (ruined.empty()) return {};
  return Ruined(trainer_->Diverged(trainer_->steps_done(), ruined + ", expected weights that can be trained").value());
}

tl::unexpected<Error> Run::Ruined(const Error& error) const {
  if (saved_step_ < 0) return tl::make_unexpected(error);
  return Err(error.where, "{}, in a run begun anew with another --out; the checkpoint of step {} in {} is good", error.what,
             saved_step_, folder_);
}

tl::unexpected<Error> Run::NotSaved(const Error& error) const {
  if (saved_step_ < 0) return tl::make_unexpected(error);
  return Err(error.where, "{}; the checkpoint of step {} in {} is whole: --resume goes on from there", error.what, saved_step_,
             folder_);
}

}  // namespace

Result<RunSummary> RunTraining(const RunOptions& options, const RunObserver& observer, ExecContext& ctx) {
  return Run(options, observer, ctx).Do();
}

}  // namespace moe
