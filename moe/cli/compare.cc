// moe compare: variants of a recipe trained beside one another, one table and one page out.

#include <errno.h>  // program_invocation_name

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "moe/base/clock.h"
#include "moe/base/interrupt.h"
#include "moe/base/progress.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"
#include "moe/files/atomic_file.h"
#include "moe/planner/compare_report.h"
#include "moe/train/run_folder.h"

namespace moe {
namespace {

struct CompareFlags {
  CommonFlags common;
  CompareOptions compare;
  std::vector<std::string> variants;
  std::string markdown;
  bool show = false;
};

// Says what is done, on stdout; on stderr when the JSON result goes to stdout.
class Screen {
 public:
  Screen(const CompareFlags& flags, const ComparePlan& plan)
      : plan_(plan), line_({.stream = flags.common.json_on_stdout() ? stderr : stdout}) {}

  void Begin(const CompareRun& run) {
    run_start_s_ = NowSeconds();
    if (start_s_ == 0) start_s_ = run_start_s_;
    if (run.resumed) line_.Print(fmt::format("{} goes on", Label(run)));
  }
  void Start(const CompareRun& run, const RunInfo& info) {
    if (!said_) {
      line_.Print(fmt::format("{} runs of {} steps of {} tokens; validation {} tokens; folder {}", run.count, info.train.steps,
                              info.train.batch_tokens, info.validation_tokens, plan_.options.folder));
    }
    said_ = true;
  }
  void Step(const CompareRun& run, const StepMetrics& metrics) {
    ++steps_here_;
    if (!line_.Due()) return;
    const double share = static_cast<double>(metrics.step) / static_cast<double>(metrics.steps);
    const int64_t left = (run.count - run.index) * metrics.steps - metrics.step;
    const double left_s = (NowSeconds() - start_s_) / static_cast<double>(steps_here_) * static_cast<double>(left);
    const double all = (static_cast<double>(run.index) + share) / static_cast<double>(run.count);
    line_.Update(fmt::format("{} {} step {}/{}  loss {:.3f}   all {} {:.0f} %, {} left", Label(run), ProgressBar(share, 8),
                             metrics.step, metrics.steps, metrics.loss, ProgressBar(all, 8), all * 100, FormatSeconds(left_s)));
  }
  void Note(const CompareRun& run, const std::string& what) {
    if (!said_ || run.resumed) return line_.Print(fmt::format("{} {}", Label(run), what));
    if (line_.Due()) line_.Update(fmt::format("{} {}", Label(run), what));
  }
  void End(const CompareRun& run, double bits_per_byte, const std::string& failed) {
    line_.Print(fmt::format("{} {}, {}", Label(run),
                            failed.empty() ? fmt::format("{:.4f} bits/byte", bits_per_byte) : "failed at " + failed,
                            FormatSeconds(NowSeconds() - run_start_s_)));
  }
  void Finish() { line_.Finish(); }

 private:
  std::string Label(const CompareRun& run) const {
    const CompareVariant& variant = plan_.variants[run.variant];
    const std::string axis = variant.axis.empty() ? "" : variant.axis + ": ";
    return fmt::format("[{}/{}] {}{}, seed {}:", run.index + 1, run.count, axis, variant.name, run.seed);
  }

  const ComparePlan& plan_;
  ProgressLine line_;
  double start_s_ = 0, run_start_s_ = 0;
  int64_t steps_here_ = 0;
  bool said_ = false;
};

// A flag that takes several values may have swallowed recipes that follow it.
void TakeBackRecipes(std::vector<std::string>& values, std::vector<std::string>& recipes) {
  size_t keep = values.size();
  while (keep > 1 && values[keep - 1].ends_with(".toml") && values[keep - 1].find('=') == std::string::npos) --keep;
  recipes.insert(recipes.end(), values.begin() + static_cast<std::ptrdiff_t>(keep), values.end());
  values.resize(keep);
}

Result<int> Compare(CompareFlags& flags) {
  CompareOptions& options = flags.compare;
  RecipeOverrides& overrides = options.overrides;
  for (auto* values : {&overrides.sets, &overrides.data, &overrides.validation}) TakeBackRecipes(*values, options.recipes);
  if (options.recipes.empty())
    return UsageErr("RECIPE", "got nothing, expected a recipe (recipes/*.toml); see moe compare --help");
  for (const std::string& text : flags.variants) {
    MOE_TRY(options.variants.emplace_back(), ParseVariant(text, "--variant"));
  }
  if (options.folder.empty()) {
    options.folder =
        (std::filesystem::path("runs") / ("compare-" + std::filesystem::path(options.recipes.front()).stem().string()))
            .string();
  }
  MOE_TRY(CheckJsonTarget(flags.common));
  MOE_TRY(CheckJsonTarget({.json = flags.markdown}));
  MOE_TRY(ComparePlan plan, MakeComparePlan(options));
  MOE_TRY(CheckWritable(options.folder));
  MOE_TRY(const auto run, MakeRunContext(flags.common));
  InstallInterruptHandler();

  bool done = true;
  if (!flags.show) {
    Screen screen(flags, plan);
    const CompareObserver observer{
        .on_begin = [&](const CompareRun& at) { screen.Begin(at); },
        .on_start = [&](const CompareRun& at, const RunInfo& info) { screen.Start(at, info); },
        .on_step = [&](const CompareRun& at, const StepMetrics& metrics) { screen.Step(at, metrics); },
        .on_note = [&](const CompareRun& at, const std::string& what) { screen.Note(at, what); },
        .on_end = [&](const CompareRun& at, double bits, const std::string& failed) { screen.End(at, bits, failed); },
        .stop_requested = InterruptRequested};
    const auto result = RunComparison(plan, observer, run->exec);
    screen.Finish();
    if (!result) return tl::make_unexpected(result.error());
    done = *result;
  }
  MOE_TRY(const CompareReport report, CollectComparison(plan));
  MOE_TRY(MakeFolder(options.folder));
  const std::string page = PathIn(options.folder, "report.html");
  MOE_TRY(WriteFileAtomically(page, CompareHtml(report)));
  if (!flags.markdown.empty()) MOE_TRY(WriteFileAtomically(flags.markdown, CompareMarkdown(report)));
  if (!flags.common.json_on_stdout()) {
    std::string text = CompareText(report) + fmt::format("\npage  {}\n", page);
    if (!done) text += "stopped; nothing is lost, the same command goes on\n";
    MOE_TRY(WriteStdout(text));
  }
  MOE_TRY(WriteJsonResult(flags.common, CompareJson(report)));
  return done ? 0 : kExitInterrupted;
}

}  // namespace

int RunCompare(int argc, char** argv) {
  CompareFlags flags;
  CompareOptions& compare = flags.compare;
  RecipeOverrides& overrides = compare.overrides;
  CLI::App app(
      "Trains variants of a recipe on the same text, in the same order, for as many steps, with several seeds. Variants are "
      "the "
      "recipe's own ([[variant]] tables), those of --variant, and further recipes. Prints one table; the folder gets one page "
      "(report.html) and the runs, which keep their metrics.\nCtrl-C stops and loses nothing: the same command goes on. It can "
      "also add variants and seeds to what is there. Exit code 130: stopped.",
      "moe compare");
  app.add_option("RECIPE", compare.recipes, "Recipes in TOML (recipes/README.md lists the keys); the first is the base")
      ->type_name("FILE");
  app.add_option("--variant", flags.variants, "One more variant of the first recipe: a name, and what it changes")
      ->type_name("'NAME: KEY=VALUE...'")
      ->allow_extra_args(false);
  app.add_option("--seeds", compare.seeds, "How many: train.seed of the recipe and those after it (default 2)")->type_name("N");
  app.add_option("--against", compare.against, "The variant that differences are taken from (default: the base)")
      ->type_name("NAME");
  app.add_option("--out", compare.folder, "Folder of the comparison (default: runs/compare-<name of the recipe>)")
      ->type_name("FOLDER");
  app.add_option("--data", overrides.data, "UTF-8 text to train on, as of moe train")->type_name("FILE");
  app.add_option("--validation", overrides.validation, "Held-out text, as of moe train")->type_name("FILE");
  app.add_option("--set", overrides.sets, "Change a key of all recipes, as in train.steps=500; key= takes it away")
      ->type_name("KEY=VALUE");
  auto* minutes =
      app.add_option("--minutes", overrides.minutes, "Of the base's first run; all others take as many steps")->type_name("X");
  app.add_option("--dtype", overrides.dtype, "What products compute in: f32 or bf16")->type_name("NAME");
  app.add_flag("--keep-models", compare.keep_models, "Keep the models and checkpoints of finished runs");
  app.add_flag("--show", flags.show, "Train nothing: the table and the page of the runs that are done");
  app.add_option("--markdown", flags.markdown, "Write the tables as Markdown to FILE")->type_name("FILE");
  AddCommonFlags(app, flags.common);
  SetExamples(app, {{"moe compare recipes/bakeoff.toml --seeds 3", "the shipped bake-off of routing policies"},
                    {"moe compare recipes/demo.toml --variant 'wide: model.experts=16' --set train.minutes= train.steps=1000",
                     "one change to a recipe"},
                    {"moe compare a.toml b.toml --show", "what is done so far"}});
  if (const auto exit_code = ParseFlags(app, argc, argv)) return *exit_code;
  if (minutes->count() > 0 && !(overrides.minutes > 0)) {
    return Fail({"--minutes", fmt::format("got {}, expected a number above 0", overrides.minutes), 2});
  }
  const auto exit_code = Compare(flags);
  return exit_code ? *exit_code : Fail(exit_code.error());
}

}  // namespace moe
