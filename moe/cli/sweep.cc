// moe sweep: a model beside its dense twins, at every batch size.

#include "moe/planner/sweep.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/base/interrupt.h"
#include "moe/base/progress.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"
#include "moe/cli/explain.h"
#include "moe/cli/step_flags.h"
#include "moe/files/atomic_file.h"
#include "moe/model/load.h"
#include "moe/planner/machine_cache.h"
#include "moe/planner/report_html.h"
#include "moe/planner/sweep_report.h"
#include "moe/planner/verify.h"

namespace moe {
namespace {

struct SweepFlags {
  CommonFlags common;
  ExplainFlag explain;
  std::string model, config;
  std::string batches = "1,2,4,8,16,32,64,128,256";
  std::string against = "dense-active,dense-total";
  std::string phase = "decode", dtype = "bf16", memory, routing = "model", machine;
  bool verify = false;
  std::string out;
  std::optional<int64_t> context, layers;
  double seconds = 20;
  uint64_t seed = 1;
};

Result<std::vector<TwinKind>> ParseAgainst(const std::string& text) {
  std::vector<TwinKind> twins;
  if (text == "none") return twins;
  const auto parts = SplitList(text);
  for (const auto& [name, kind] :
       {std::pair{"dense-active", TwinKind::kEqualActive}, std::pair{"dense-total", TwinKind::kEqualTotal}}) {
    if (std::find(parts.begin(), parts.end(), name) != parts.end()) twins.push_back(kind);
  }
  for (const std::string& part : parts) {
    if (part != "dense-active" && part != "dense-total") {
      return UsageErr("--against", "got '{}', expected dense-active, dense-total, both with a comma between them, or none",
                      part);
    }
  }
  return twins;
}

Result<int64_t> ParseMemory(const std::string& text) {
  MOE_TRY(const double bytes, ParseScaled("--memory", text, kBytesUnit));
  if (bytes >= 1 && bytes < 9e18) return static_cast<int64_t>(bytes);
  return UsageErr("--memory", "got '{}', expected 1 byte or more and less than 9e18", text);
}

Result<SweepOptions> ParseOptions(const SweepFlags& flags) {
  SweepOptions options{.seconds = flags.seconds, .seed = flags.seed};
  if (flags.model.empty() == flags.config.empty()) {
    return UsageErr("--model", "got {} --config, expected one of the two",
                    flags.model.empty() ? "neither this nor" : "both this and");
  }
  MOE_TRY(options.phase, ParsePhase(flags.phase));
  MOE_TRY(options.routing, ParseRouting(flags.routing, /*model=*/true));
  if (!flags.machine.empty() && !flags.verify) {
    return UsageErr("--machine", "got it without --verify, which is what compares with a machine's profile");
  }
  if (flags.dtype != "f32" && flags.dtype != "bf16") return UsageErr("--dtype", "got '{}', expected f32 or bf16", flags.dtype);
  options.format = flags.dtype == "f32" ? DType::kF32 : DType::kBf16;
  if (!std::isfinite(flags.seconds) || flags.seconds < 0) {
    return UsageErr("--seconds", "got {}, expected a number that is not negative", flags.seconds);
  }
  MOE_TRY(options.batches, ParseBatches(flags.batches));
  MOE_TRY(options.against, ParseAgainst(flags.against));
  if (!flags.memory.empty()) {
    MOE_TRY(options.memory_bytes, ParseMemory(flags.memory));
  }
  return options;
}

Result<ModelConfig> ShortenedConfig(const SweepFlags& flags) {
  MOE_TRY(ModelConfig config, LoadModelConfig(flags.model.empty() ? flags.config : flags.model));
  if (!flags.layers) return config;
  const auto num_layers = static_cast<int64_t>(config.layers.size());
  if (!flags.model.empty()) {
    return UsageErr("--layers",
                    "got --model, whose weights go with all its {} layers; expected --config {}, which takes random ones",
                    num_layers, flags.model);
  }
  if (*flags.layers < 1 || *flags.layers > num_layers) {
    return UsageErr("--layers", "got {}, expected 1 to {}", *flags.layers, num_layers);
  }
  config.layers.resize(static_cast<size_t>(*flags.layers));
  return config;
}

Result<int> Sweep(const SweepFlags& flags) {
  MOE_TRY(SweepOptions options, ParseOptions(flags));
  MOE_TRY(CheckJsonTarget(flags.common));
  MOE_TRY(CheckPageTarget(flags.common, flags.out));
  MOE_TRY(const ModelConfig config, ShortenedConfig(flags));
  MOE_TRY(CheckRouting(config, options.routing));
  if (!config.has_experts()) options.routing = {};
  const int64_t usual = options.phase == Phase::kDecode    ? std::min(options.context, config.context - 1)
                        : options.phase == Phase::kPrefill ? std::min<int64_t>(512, config.context)
                                                           : std::min<int64_t>(256, config.context);
  options.context = flags.context.value_or(usual);
  MOE_TRY(const auto run, MakeRunContext(flags.common));
  UseKeptMachine(flags.explain, run->exec);
  MOE_TRY(CheckSweep(config, flags.model.empty() ? SweepWeights::kRandom : SweepWeights::kToLoad, options));
  MachineProfile machine;
  if (flags.verify) {
    if (!flags.machine.empty() && BuiltInMachine(flags.machine)) {
      return UsageErr("--machine", "got {}, expected the profile of this machine, on which steps are measured", flags.machine);
    }
    MOE_TRY(machine, LoadMachine(flags.machine, run->exec));
    if (machine.revision != 0) {  // else somebody wrote it
      const std::string other = Staleness(machine, run->exec);
      if (!other.empty()) return UsageErr("--machine", "got a profile {}, expected one of this machine as it is", other);
    }
    options.handover_s = machine.handover_s;
  }
  std::unique_ptr<Model> model;
  if (!flags.model.empty()) {
    MOE_TRY(model, LoadModel(flags.model, {.format = options.format}, run->exec));
  }

  InstallInterruptHandler();
  ProgressLine line;
  const double start = NowSeconds();
  const auto on_progress = [&](const SweepProgress& progress) {
    if (line.Due()) {
      line.Update(fmt::format("sweep  batch {:<5} {} {:3.0f} %  {}", progress.batch, ProgressBar(progress.fraction, 30),
                              100 * progress.fraction, FormatSeconds(NowSeconds() - start)));
    }
    return !InterruptRequested();
  };
  auto report = MeasureSweep(config, model.get(), options, on_progress, run->exec);
  line.Finish();
  if (!report) return tl::make_unexpected(report.error());

  const std::string name = flags.model.empty() ? flags.config : flags.model;
  std::string text = SweepText(*report, name);
  nlohmann::json json = SweepJson(*report, name);
  std::optional<Verification> verification;
  if (flags.verify) {
    verification = Verify(*report, machine);
    text += VerifyText(*report, *verification);
    AddVerification(*report, *verification, json);
  }
  const TerminalPlot valley = ValleyOf(*report, verification ? &*verification : nullptr);
  if (!valley.series.empty()) text += "\n" + Draw(valley, IsTerminal(stdout) ? TerminalWidth(stdout) : 80, Utf8Locale());
  if (!flags.common.json_on_stdout()) MOE_TRY(WriteStdout(text));
  MOE_TRY(WriteJsonResult(flags.common, json));
  if (!flags.out.empty()) {
    const EconomicsReport page =
        ReportOf(*report, name, verification ? &*verification : nullptr, verification ? &machine : nullptr);
    MOE_TRY(WriteFileAtomically(flags.out, ReportHtml(page)));
  }
  return report->interrupted ? kExitInterrupted : 0;
}

}  // namespace

int RunSweep(int argc, char** argv) {
  CLI::App app(
      "Measures one step of decode, prefill or training at every batch size: the model beside its dense twins, all taking "
      "turns.\n"
      "Ctrl-C stops and prints what was measured. Exit code 130: stopped.",
      "moe sweep");
  SweepFlags flags;
  app.add_option("--model", flags.model, "Trained model: its weights and its routing")->type_name("DIR");
  app.add_option("--config", flags.config, "Shape alone, with random weights: config.json, model folder or preset")
      ->type_name("C");
  app.add_option("--batches", flags.batches, "Sequences decoded together; tokens of a prefill or a training step")
      ->type_name("1,2,...")
      ->capture_default_str();
  app.add_option("--context", flags.context,
                 "Past positions of every sequence of a decode (default: 64); longest prompt (512), training sequence (256)")
      ->type_name("N");
  app.add_option("--against", flags.against, "Dense twins to measure beside it, or none")
      ->type_name("LIST")
      ->capture_default_str();
  app.add_option("--phase", flags.phase, "What a step is")->type_name("decode|prefill|train")->capture_default_str();
  app.add_option("--routing", flags.routing, "Who sends tokens to experts: the model, or chance, alike or skewed")
      ->type_name("model|uniform|zipf:S")
      ->capture_default_str();
  app.add_flag("--verify", flags.verify, "Predict every step too, and say how far off that is");
  app.add_option("--machine", flags.machine, "With --verify: profile to predict with (default: this machine's, see moe probe)")
      ->type_name("FILE");
  app.add_option("--out", flags.out, "Write a page with charts and all numbers")->type_name("FILE.html");
  app.add_option("--dtype", flags.dtype, "Weights: f32 or bf16")->type_name("TYPE")->capture_default_str();
  app.add_option("--layers", flags.layers, "Only the first N layers of --config (default: all)")->type_name("N");
  app.add_option("--seconds", flags.seconds, "Time to spend on measuring")->type_name("X")->capture_default_str();
  app.add_option("--memory", flags.memory, "What the sweep may take, as in 24GB (default: what is free)")->type_name("BYTES");
  app.add_option("--seed", flags.seed, "Of tokens and random weights")->type_name("N")->capture_default_str();
  AddExplainFlag(app, flags.explain);
  AddCommonFlags(app, flags.common);
  SetExamples(app, {{"moe sweep --model runs/demo", "a model you trained: from which batch on does it pay off here?"},
                    {"moe sweep --config olmoe-1b-7b --layers 4", "a public shape, shortened, with random weights"},
                    {"moe sweep --config wide-64x8 --dtype bf16 --json sweep.json", "figures for other programs"}});
  if (const auto parsed = ParseFlags(app, argc, argv)) return *parsed;
  if (const Status full = RefuseEmpty(app); !full) return Fail(full.error());
  const auto exit_code = Sweep(flags);
  return exit_code ? *exit_code : Fail(exit_code.error());
}

}  // namespace moe
