#include "moe/cli/route_model.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "moe/base/clock.h"
#include "moe/base/interrupt.h"
#include "moe/base/printable.h"
#include "moe/base/progress.h"
#include "moe/cli/load_model.h"
#include "moe/cli/text_tokens.h"
#include "moe/files/atomic_file.h"
#include "moe/infer/generate.h"
#include "moe/planner/route_report.h"

namespace moe {
namespace {

constexpr int64_t kMaxBatch = 1 << 20;

Status CheckLayers(std::span<const int64_t> layers, const ModelConfig& config) {
  const int64_t L = std::ssize(config.layers);
  for (const int64_t layer : layers) {
    if (layer < 0 || layer >= L) return UsageErr("--layer", "got {}, expected 0..{}", layer, L - 1);
    if (config.layers[static_cast<size_t>(layer)].ffn != FfnKind::kMoe) {
      return UsageErr("--layer", "got {}, which has no experts, expected one that has", layer);
    }
  }
  return {};
}

Status CheckNumbers(const RouteModelFlags& flags) {
  const int64_t batch = flags.batch.value_or(1);
  if (batch < 1 || batch > kMaxBatch) return UsageErr("--batch", "got {}, expected 1..{}", batch, kMaxBatch);
  if (flags.tokens < 1 || flags.tokens > kMostTokens) {
    return UsageErr("--tokens", "got {}, expected 1..{}", flags.tokens, kMostTokens);
  }
  if (flags.likes < 0 || flags.likes > 1000) return UsageErr("--likes", "got {}, expected 0..1000", flags.likes);
  if (flags.least_count < 1) return UsageErr("--least-count", "got {}, expected at least 1", flags.least_count);
  if (!std::isfinite(flags.seconds) || flags.seconds < 0) {
    return UsageErr("--seconds", "got {}, expected a number that is not negative", flags.seconds);
  }
  return {};
}

}  // namespace

std::vector<const CLI::Option*> AddRouteModelFlags(CLI::App& app, RouteModelFlags& flags) {
  app.add_option("--model", flags.model, "Folder with config.json, model.safetensors, tokenizer.json")->type_name("FOLDER");
  return {app.add_option("--data", flags.data, "UTF-8 text for --model; may be given more than once; '-': stdin (default)")
              ->type_name("FILE"),
          app.add_option("--tokens", flags.tokens, "Of the text, at most")->type_name("N")->capture_default_str(),
          app.add_option("--layer", flags.layers, "Whose experts are listed (default: the one that tells most of its tokens)")
              ->type_name("N"),
          app.add_option("--likes", flags.likes, "Tokens that are listed of an expert, at most")
              ->type_name("N")
              ->capture_default_str(),
          app.add_option("--least-count", flags.least_count, "... which it took N times or more")
              ->type_name("N")
              ->capture_default_str(),
          app.add_option("--out", flags.out, "Write a page with heat map, experts and policies")->type_name("FILE.html"),
          app.add_option("--seconds", flags.seconds, "To spend on the times of a layer; 0: none")
              ->type_name("X")
              ->capture_default_str(),
          app.add_option("--batch", flags.batch, "Windows of a step, and of a policy's batch (default: about 4096 tokens)")
              ->type_name("N"),
          app.add_option("--context", flags.context, "Tokens of a window (default: the model's context)")->type_name("N"),
          app.add_option("--dtype", flags.dtype, "What products compute in: f32 or bf16 (default: the checkpoint's)")
              ->type_name("NAME")};
}

std::string PolicyPlace(const RoutePolicyFlags& flags, const std::string& policy) {
  return flags.policies.size() > 1 ? "--policy " + Printable(policy) : "--policy";
}

Result<int> RouteModel(const RouteModelFlags& flags, const RoutePolicyFlags& policy, const CommonFlags& common) {
  MOE_TRY(CheckNumbers(flags));
  MOE_TRY(CheckJsonTarget(common));
  MOE_TRY(CheckJsonTarget({.json = flags.out}));
  const auto whole = [](const std::string& path) { return std::filesystem::absolute(path).lexically_normal(); };
  if (!flags.out.empty() && !common.json.empty() && whole(flags.out) == whole(common.json)) {
    return UsageErr("--out", "got {} for --json too, expected two files", flags.out);
  }
  if (flags.data.empty() && ::isatty(STDIN_FILENO) == 1) {
    return UsageErr("--data", "got nothing, expected a file, or text on stdin");
  }
  MOE_TRY(const auto run, MakeRunContext(common));
  MOE_TRY(const ModelFolder folder, OpenModelFolder(flags.model, flags.dtype));
  if (!folder.config.has_experts()) return Err(flags.model, "has no experts, expected a model with some: moe eval measures it");
  MOE_TRY(CheckLayers(flags.layers, folder.config));
  const int64_t context = flags.context.value_or(folder.config.context);
  if (context < 1 || context > folder.config.context) {
    return UsageErr("--context", "got {}, expected 1..{}, the model's", context, folder.config.context);
  }
  for (const LayerSpec& layer : folder.config.layers) {  // before the weights are read
    for (const std::string& text : policy.policies) {
      if (layer.ffn == FfnKind::kMoe) MOE_TRY(PolicyOfLayer(text, layer.moe.router, PolicyPlace(policy, text)));
    }
  }
  const auto paths = flags.data.empty() ? std::vector<std::string>{"-"} : flags.data;
  MOE_TRY(const auto texts, ReadTexts(paths, folder.tokenizer, flags.tokens));
  const std::vector<Document> documents = DocumentsOf(folder.tokenizer, texts);
  const int64_t rows = std::min(flags.tokens, std::max(flags.batch.value_or(1) * context, kEvaluateRows));
  MOE_TRY(const auto model, LoadForInference(folder, {.rows = rows}, run->exec));

  InstallInterruptHandler();
  const double start = NowSeconds();
  ProgressLine progress;
  int64_t tokens_done = 0;
  bool stopped = false;
  RouteOptions options{.policies = policy.policies,
                       .training = !policy.evaluation,
                       .seed = static_cast<uint64_t>(policy.seed),
                       .least_count = flags.least_count,
                       .num_likes = flags.likes,
                       .timed_layer = flags.layers.empty() ? -1 : flags.layers.front(),
                       .seconds = flags.seconds,
                       .go_on = [] { return !InterruptRequested(); }};
  options.evaluation = {.context = context, .batch = flags.batch.value_or(0), .bos_id = BosId(folder.config, folder.tokenizer)};
  options.evaluation.on_step = [&](int64_t done, int64_t total, double) {
    const double seconds = NowSeconds() - start;
    if (seconds > 0.5 && progress.Due()) progress.Update(TokensProgress("route", done, total, seconds));
    tokens_done = done, stopped = done < total && InterruptRequested();
    return !stopped;
  };
  auto report = ReportRoutes(*model, documents, options, run->exec);
  progress.Finish();
  if (!report && stopped) {
    fmt::print(stderr, "stopped after {} tokens; there is no result\n", FormatCount(static_cast<double>(tokens_done)));
    return kExitInterrupted;
  }
  if (!report) return tl::make_unexpected(report.error());
  report->model = flags.model;
  for (const TokenizedText& text : texts) report->files.push_back(text.name);
  const RouteTextOptions shown{
      .columns = IsTerminal(stdout) ? TerminalWidth(stdout) : 100, .plain = !IsTerminal(stdout), .layers = flags.layers};
  if (!common.json_on_stdout()) MOE_TRY(WriteStdout(RouteText(*report, folder.tokenizer, shown)));
  if (!flags.out.empty()) MOE_TRY(WriteFileAtomically(flags.out, RouteHtml(*report, folder.tokenizer)));
  MOE_TRY(WriteJsonResult(common, RouteJson(*report, folder.tokenizer)));
  return InterruptRequested() ? kExitInterrupted : 0;
}

}  // namespace moe
