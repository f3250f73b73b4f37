// moe train: a recipe and text in, a model folder out.

#include <errno.h>  // program_invocation_name

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "moe/base/cpu_info.h"
#include "moe/base/interrupt.h"
#include "moe/base/progress.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"
#include "moe/cli/explain.h"
#include "moe/cli/routing_text.h"
#include "moe/mixture/moe_metrics.h"
#include "moe/train/run.h"

namespace moe {
namespace {

constexpr size_t kMostBars = 32;  // beyond this many experts a bar each says nothing

struct TrainFlags {
  CommonFlags common;
  ExplainFlag explain;
  RunOptions run;
};

std::string Count(int64_t count) {
  return FormatCount(static_cast<double>(count));
}
std::string Bytes(int64_t bytes) {
  return FormatBytes(static_cast<double>(bytes));
}

// "8 experts, 2 per token" of the first MoE layer.
std::string ExpertsOf(const ModelConfig& config) {
  for (const LayerSpec& layer : config.layers) {
    if (layer.ffn != FfnKind::kMoe) continue;
    const MoeConfig& moe = layer.moe;
    return fmt::format("{}, {} per token", ExpertsText(moe), moe.router.top_k);
  }
  return fmt::format("dense, width {}", config.layers.front().ffn_width);
}

// Averages that a person can read: exponential over about `kSteps` steps.
struct Smooth {
  static constexpr double kSteps = 20;
  double sum = 0, weight = 0;
  void Add(double x) {
    sum = sum * (1 - 1 / kSteps) + x;
    weight = weight * (1 - 1 / kSteps) + 1;
  }
  double value() const { return weight == 0 ? 0 : sum / weight; }
};

// Says what the run does, on stdout; on stderr when the JSON result goes to stdout.
class Screen {
 public:
  Screen(const TrainFlags& flags, const RunContext& run)
      : run_(run), line_({.stream = flags.common.json_on_stdout() ? stderr : stdout}) {}

  void Note(const std::string& what) { line_.Print("  " + what); }

  void Start(const RunInfo& info) {
    info_ = info;
    const ParameterCount count = CountParameters(info.model);
    const TrainRecipe& train = info.train;
    line_.Print(fmt::format("model       {} layers of width {}, {}: {} parameters, {} active per token",
                            info.model.layers.size(), info.model.hidden, ExpertsOf(info.model), Count(count.total),
                            Count(count.active)));
    for (const LayerSpec& layer : info.model.layers) {  // the first that routes
      if (layer.ffn != FfnKind::kMoe) continue;
      const RouterConfig& router = layer.moe.router;
      line_.Print(
          fmt::format("routing     {}; losses {} (Switch), {} (z)", RoutingText(router), router.balance_loss, router.z_loss));
      if (router.top_k == router.num_experts && router.num_experts > 1 && !router.has_varying_k()) {
        line_.Print(fmt::format("            every token goes to all {} experts, so nothing is chosen", router.num_experts));
      }
      break;
    }
    line_.Print(fmt::format("text        {} in {} tokens of a vocabulary of {}, {:.2f} bytes each", Bytes(info.train_bytes),
                            Count(info.train_tokens), info.vocab_size,
                            static_cast<double>(info.train_bytes) / static_cast<double>(info.train_tokens)));
    line_.Print(fmt::format("validation  {}",
                            info.validation_tokens == 0
                                ? std::string("none")
                                : fmt::format("{} in {} tokens", Bytes(info.validation_bytes), Count(info.validation_tokens))));
    const double epochs = static_cast<double>(train.steps * train.batch_tokens) / static_cast<double>(info.train_tokens);
    line_.Print(fmt::format("run         {} steps of {} tokens, {:.2g} times the text; {}, {}, {} threads; seed {}",
                            train.steps, train.batch_tokens, epochs, Name(train.dtype), run_.kernels.name,
                            run_.pool.num_threads(), train.seed));
    line_.Print(fmt::format("folder      {}{}", info.folder,
                            info.steps_done > 0 ? fmt::format(", going on after step {}", info.steps_done) : ""));
  }

  void Step(const StepMetrics& metrics) {
    loss_.Add(metrics.loss);
    bits_.Add(metrics.bits_per_byte);
    step_s_.Add(metrics.parts.total());
    if (line_.Due() || metrics.step == metrics.steps) line_.Update(Text(metrics));
  }

  void Evaluating(int64_t done, int64_t total) {
    if (line_.Due()) line_.Update(fmt::format("evaluating {} of {} tokens", Count(done), Count(total)));
  }

  void Validation(const StepMetrics& metrics, const ValidationMetrics& validation) {
    evaluation_s_ = validation.seconds;
    const std::string trained = loss_.weight > 0 ? fmt::format("loss {:.3f}  ", loss_.value()) : "";
    line_.Print(fmt::format("step {:>6}  {} tokens, {}  {}validation {:.4f} nats/token, {:.4f} bits/byte{}", metrics.step,
                            Count(metrics.tokens), FormatSeconds(metrics.seconds), trained, validation.loss,
                            validation.bits_per_byte, validation.is_best ? "  (best so far)" : ""));
  }

  void Finish() { line_.Finish(); }

 private:
  std::string Text(const StepMetrics& metrics) const {
    const double share = static_cast<double>(metrics.step) / static_cast<double>(metrics.steps);
    const int64_t left = metrics.steps - metrics.step;
    const int64_t every = info_.train.eval_every;
    const double evaluations = every > 0 ? static_cast<double>(left) / static_cast<double>(every) : 0;
    const double eta = static_cast<double>(left) * step_s_.value() + evaluations * evaluation_s_;
    const double tokens_per_s = static_cast<double>(info_.train.batch_tokens) / step_s_.value();
    return fmt::format("{} step {}/{}  {} tokens, {}  loss {:.3f}  {:.3f} bits/byte  {} left{}", ProgressBar(share, 8),
                       metrics.step, metrics.steps, Count(metrics.tokens), FormatRate(tokens_per_s, ""), loss_.value(),
                       bits_.value(), FormatSeconds(eta), LoadText(metrics));
  }

  // Of the layer whose load is the least even.
  static std::string LoadText(const StepMetrics& metrics) {
    const LayerStats* worst = nullptr;
    for (const LayerStats& layer : metrics.layers) {
      if (layer.tokens_per_expert.empty()) continue;
      if (worst == nullptr || MaxViolation(layer.tokens_per_expert) > MaxViolation(worst->tokens_per_expert)) worst = &layer;
    }
    if (worst == nullptr) return "";
    const std::string bars = worst->tokens_per_expert.size() <= kMostBars ? LoadBars(worst->tokens_per_expert) + " " : "";
    std::string text = fmt::format("  {}max/mean {:.2f}", bars, 1 + metrics.max_violation());
    if (metrics.drop_rate() > 0) text += fmt::format("  dropped {:.1f}%", metrics.drop_rate() * 100);
    if (metrics.dead_experts() > 0) text += fmt::format("  dead {}", metrics.dead_experts());
    return text;
  }

  const RunContext& run_;
  ProgressLine line_;
  RunInfo info_;
  Smooth loss_, bits_, step_s_;
  double evaluation_s_ = 0;
};

// What `moe inspect` says the run needs, micro-batches as large as its own.
int64_t MemoryNeeded(const RunInfo& info) {
  return TrainingMemory(info.model, info.train.dtype, info.train.micro_batch_tokens).total();
}

// A word as shells read it, quoted where it must be.
std::string ShellWord(const std::string& word) {
  const bool plain = !word.empty() && word.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                          "_-./+,:=@%") == std::string::npos;
  if (plain) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string Summary(const RunSummary& summary, const RunInfo& info) {
  const std::string& folder = info.folder;
  const std::string program = ShellWord(program_invocation_name);  // as it was called
  std::string text;
  if (summary.interrupted) {
    return fmt::format("stopped after step {} of {}; nothing is lost, this goes on: {} train --resume --out {}\n", summary.step,
                       summary.steps, program, ShellWord(folder));
  }
  text =
      fmt::format("done        {} steps, {} tokens in {}: {}\n", summary.steps, Count(summary.tokens),
                  FormatSeconds(summary.seconds), FormatRate(static_cast<double>(summary.tokens) / summary.seconds, " tokens"));
  if (info.steps_done < summary.steps) {
    text += fmt::format("memory      {} at its peak; moe inspect --rows {} counts {}\n", Bytes(PeakResidentBytes()),
                        info.train.micro_batch_tokens, Bytes(MemoryNeeded(info)));
  }
  if (summary.best_step > 0) {
    text += fmt::format("best        {:.4f} bits/byte on the validation text after step {}: {}\n", summary.best_bits_per_byte,
                        summary.best_step, (std::filesystem::path(folder) / "best").string());
  }
  return text + fmt::format("last        {}   ({} generate --model {} --prompt \"...\")\n", folder, program, ShellWord(folder));
}

nlohmann::json ToJson(const RunSummary& summary, const RunInfo& info, const RunContext& run) {
  const ParameterCount count = CountParameters(info.model);
  nlohmann::json result = {{"folder", info.folder},
                           {"interrupted", summary.interrupted},
                           {"step", summary.step},
                           {"steps", summary.steps},
                           {"tokens", summary.tokens},
                           {"seconds", summary.seconds},
                           {"tokens_per_s", summary.seconds > 0 ? static_cast<double>(summary.tokens) / summary.seconds : 0.0},
                           {"parameters_total", count.total},
                           {"parameters_active", count.active},
                           {"peak_resident_bytes", PeakResidentBytes()},
                           {"needed_bytes", MemoryNeeded(info)},
                           {"dtype", std::string(Name(info.train.dtype))},
                           {"isa", run.kernels.name},
                           {"threads", run.pool.num_threads()}};
  if (summary.loss > 0) result["loss"] = summary.loss;
  if (summary.validation_loss > 0) {
    result["validation_loss"] = summary.validation_loss;
    result["bits_per_byte"] = summary.bits_per_byte;
  }
  if (summary.best_step > 0) {
    result["best"] = {
        {"step", summary.best_step}, {"validation_loss", summary.best_loss}, {"bits_per_byte", summary.best_bits_per_byte}};
  }
  return result;
}

// A flag that takes several values may have swallowed the recipe that follows it.
void TakeBackRecipe(std::vector<std::string>& values, std::string& recipe) {
  if (!recipe.empty() || values.size() < 2 || !values.back().ends_with(".toml")) return;
  recipe = values.back();
  values.pop_back();
}

Result<int> Train(TrainFlags& flags) {
  RunOptions& options = flags.run;
  TakeBackRecipe(options.overrides.sets, options.recipe);
  TakeBackRecipe(options.overrides.data, options.recipe);
  TakeBackRecipe(options.overrides.validation, options.recipe);
  if (options.recipe.empty() && !options.resume) {
    return UsageErr("RECIPE", "got nothing, expected a recipe (recipes/*.toml); see moe train --help");
  }
  if (options.folder.empty()) {
    if (options.recipe.empty()) return UsageErr("--out", "got nothing, expected the folder of the run to go on with");
    options.folder = (std::filesystem::path("runs") / std::filesystem::path(options.recipe).stem()).string();
  }
  MOE_TRY(CheckJsonTarget(flags.common));
  MOE_TRY(const auto run, MakeRunContext(flags.common));
  UseKeptMachine(flags.explain, run->exec);
  InstallInterruptHandler();

  Screen screen(flags, *run);
  RunInfo info;
  const RunObserver observer{
      .on_note = [&](const std::string& what) { screen.Note(what); },
      .on_start = [&](const RunInfo& begun) { screen.Start(info = begun); },
      .on_step = [&](const StepMetrics& metrics) { screen.Step(metrics); },
      .on_evaluating = [&](int64_t done, int64_t total) { screen.Evaluating(done, total); },
      .on_validation = [&](const StepMetrics& metrics,
                           const ValidationMetrics& validation) { screen.Validation(metrics, validation); },
      .stop_requested = InterruptRequested};
  const auto summary = RunTraining(options, observer, run->exec);
  screen.Finish();
  if (!summary) return tl::make_unexpected(summary.error());
  if (!flags.common.json_on_stdout()) MOE_TRY(WriteStdout(Summary(*summary, info)));
  MOE_TRY(WriteJsonResult(flags.common, ToJson(*summary, info, *run)));
  return summary->interrupted ? kExitInterrupted : 0;
}

}  // namespace

int RunTrain(int argc, char** argv) {
  TrainFlags flags;
  RunOptions& run = flags.run;
  RecipeOverrides& overrides = run.overrides;
  CLI::App app(
      "Trains a model as a recipe says. The folder gets the model (config.json, model.safetensors, tokenizer.json), the best "
      "one so far (best/), every key of the recipe (recipe.toml), one line per step (metrics.jsonl) and checkpoints "
      "(train_state).\nCtrl-C stops after the step and saves; --resume goes on as if nothing had happened, bit for bit. "
      "Exit code 130: stopped.",
      "moe train");
  app.add_option("RECIPE", run.recipe, "Recipe in TOML (recipes/README.md lists the keys); with --resume it may be left out")
      ->type_name("FILE");
  app.add_option(
         "--data", overrides.data,
         "UTF-8 text to train on, instead of the recipe's data.files; without --validation about 3 % of it is cut out and "
         "validated on, instead of the recipe's data.validation")
      ->type_name("FILE");
  app.add_option("--validation", overrides.validation, "Held-out text, instead of the recipe's data.validation")
      ->type_name("FILE");
  app.add_option("--out", run.folder, "Folder of the run (default: runs/<name of the recipe>)")->type_name("FOLDER");
  app.add_flag("--resume", run.resume, "Go on from the last checkpoint in the folder");
  app.add_option("--set", overrides.sets, "Change a key of the recipe, as in train.lr=1e-3; key= takes it away")
      ->type_name("KEY=VALUE");
  auto* minutes = app.add_option("--minutes", overrides.minutes, "Train for about this long; a few steps measure how many fit")
                      ->type_name("X");
  app.add_option("--dtype", overrides.dtype, "What products compute in: f32 or bf16, instead of the recipe's train.dtype")
      ->type_name("NAME");
  AddExplainFlag(app, flags.explain);
  AddCommonFlags(app, flags.common);
  SetExamples(app, {{"moe train recipes/demo.toml --out runs/demo", "a small MoE, in minutes"},
                    {"moe train recipes/demo.toml --data a.txt b.txt --set model.experts=16", "other text, twice the experts"},
                    {"moe train --resume --out runs/demo", "go on after Ctrl-C, a crash or a power cut"}});
  if (const auto exit_code = ParseFlags(app, argc, argv)) return *exit_code;
  if (minutes->count() > 0 && !(overrides.minutes > 0)) {
    return Fail({"--minutes", fmt::format("got {}, expected a number above 0", overrides.minutes), 2});
  }
  if (minutes->count() > 0 && run.resume) {
    return Fail(
        {"--minutes", "got it with --resume, expected one of the two: a run keeps the number of steps it was begun with", 2});
  }
  for (const std::string& set : overrides.sets) {
    if (minutes->count() == 0 || !set.starts_with("train.steps=") || set == "train.steps=") continue;
    return Fail({"--minutes", fmt::format("got it with --set {}, expected one of the two", set), 2});
  }
  const auto exit_code = Train(flags);
  return exit_code ? *exit_code : Fail(exit_code.error());
}

}  // namespace moe
