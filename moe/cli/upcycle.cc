// moe upcycle: a dense model becomes a mixture of experts that says the same, and can then be trained on.

#include "moe/model/upcycle.h"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "moe/base/cpu_info.h"
#include "moe/base/interrupt.h"
#include "moe/base/progress.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"
#include "moe/model/load.h"

namespace moe {
namespace {

constexpr int64_t kTokens = 64;  // of the comparison

struct UpcycleFlags {
  CommonFlags common;
  std::string model, out;
  UpcycleOptions options;
  bool no_check = false;
};

// Both models say the same to random tokens, where there is memory to ask them.
Result<std::optional<LogitDifference>> Check(const UpcycleFlags& flags, const ModelConfig& config, ExecContext& ctx) {
  const MemoryNeed need = InferenceMemory(config, DType::kF32, kTokens, 1, kTokens);
  if (flags.no_check || need.total() > AvailableMemoryBytes()) return std::optional<LogitDifference>();
  MOE_TRY(const LogitDifference difference, CompareLogits(flags.model, flags.out, kTokens, ctx));
  return std::optional(difference);
}

std::string Text(const UpcycleFlags& flags, const ModelConfig& config, const ParameterCount& dense, const ParameterCount& count,
                 const std::optional<LogitDifference>& difference) {
  const auto number = [](int64_t n) { return FormatCount(static_cast<double>(n)); };
  const MoeConfig& moe = config.layers.front().moe;
  std::string text =
      fmt::format("{}: {} in each of {} layers, top-{}\n", flags.out, ExpertsText(moe), config.layers.size(), moe.router.top_k);
  text += fmt::format("  parameters  {} (dense: {}), {} of them per token\n", number(count.total), number(dense.total),
                      number(count.active));
  if (difference) {
    text += fmt::format("  logits      of {} random tokens differ by at most {:.2g}; the largest is {:.3g}\n",
                        std::min(kTokens, config.context), difference->largest, difference->largest_logit);
  } else if (!flags.no_check) {
    text += "  logits      not compared: both models do not fit into the free memory\n";
  }
  if (flags.options.noise > 0) text += "  noise       was asked for: the output is not the dense model's\n";
  if (flags.options.noise == 0 && moe.router.top_k == moe.router.num_experts) {
    text +=
        "  note        every copy gets every token, so training hardly parts them; --noise 0.01 does, or a smaller --top-k\n";
  }
  if (!std::filesystem::exists(std::filesystem::path(flags.out) / "tokenizer.json")) {
    return text + "  note        there was no tokenizer.json; put one beside config.json to train or run it\n";
  }
  return text + fmt::format("to train it on: moe train RECIPE.toml --set model.from={} --out FOLDER\n",
                            std::filesystem::absolute(flags.out).lexically_normal().string());
}

Status Run(UpcycleFlags& flags) {
  MOE_TRY(CheckJsonTarget(flags.common));
  MOE_TRY(const auto run, MakeRunContext(flags.common));
  MOE_TRY(const ModelConfig dense, LoadModelConfig(flags.model));
  MOE_TRY(const ModelConfig config, UpcycledConfig(dense, flags.options, flags.model));
  InstallInterruptHandler();
  {
    ProgressLine line;
    flags.options.on_progress = [&](int64_t done, int64_t total) {
      if (line.Due()) {
        const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 0;
        line.Update(fmt::format("writing {} {:3.0f} %  {} of {}", ProgressBar(share, 24), 100 * share,
                                FormatBytes(static_cast<double>(done)), FormatBytes(static_cast<double>(total))));
      }
      return !InterruptRequested();
    };
    MOE_TRY(Upcycle(flags.model, flags.out, flags.options));
  }
  MOE_TRY(const auto difference, Check(flags, config, run->exec));
  const ParameterCount before = CountParameters(dense), after = CountParameters(config);
  if (!flags.common.json_on_stdout()) MOE_TRY(WriteStdout(Text(flags, config, before, after, difference)));
  nlohmann::json json = {{"model", flags.model},
                         {"out", flags.out},
                         {"experts", flags.options.experts},
                         {"top_k", flags.options.top_k},
                         {"split", flags.options.split},
                         {"noise", flags.options.noise},
                         {"seed", flags.options.seed},
                         {"parameters_dense", before.total},
                         {"parameters_total", after.total},
                         {"parameters_active", after.active}};
  if (difference) json["largest_difference"] = difference->largest, json["largest_logit"] = difference->largest_logit;
  return WriteJsonResult(flags.common, json);
}

}  // namespace

int RunUpcycle(int argc, char** argv) {
  UpcycleFlags flags;
  UpcycleOptions& options = flags.options;
  CLI::App app(
      "Makes a mixture of experts of a dense model: each FFN becomes experts that are copies of it, or, with --split, slices "
      "of "
      "copies, behind a random router. Gates sum to 1 (times --split), so the new model says what the dense one says, but for "
      "rounding. Copies see other tokens and part as it is trained on: moe train with model.from.",
      "moe upcycle");
  app.add_option("--model", flags.model, "Folder of the dense model: config.json, model.safetensors, tokenizer.json")
      ->type_name("FOLDER")
      ->required();
  app.add_option("--out", flags.out, "Folder to make; it must not be there, or be empty")->type_name("FOLDER")->required();
  app.add_option("--experts", options.experts, "Experts of every layer, E")->capture_default_str();
  app.add_option(
         "--top-k", options.top_k,
         "Experts of a token, k: at least 2, as a lone gate is either always 1, which teaches the router nothing, or not "
         "the dense model's")
      ->capture_default_str();
  app.add_option("--split", options.split,
                 "Cut each FFN into N slices, experts of width F/N; a token reaches all slices of k/N copies, so E and k are "
                 "multiples of N")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--noise", options.noise,
                 "Normal noise on experts' weights, times their rms: parts copies that all see every token (k = E), but the "
                 "output is then no longer the same")
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of router and noise")->capture_default_str();
  app.add_flag("--no-check", flags.no_check, "Do not compare both models' logits afterwards");
  AddCommonFlags(app, flags.common);
  SetExamples(app, {{"moe upcycle --model runs/dense --out runs/moe --experts 8 --top-k 2", "8 copies, 2 of them for a token"},
                    {"moe upcycle --model runs/dense --out runs/fine --experts 32 --top-k 8 --split 4",
                     "8 copies of 4 slices: finer experts, as many values for a token as above"},
                    {"moe train recipes/demo.toml --set model.from=runs/moe --out runs/more", "trains it on"}});
  if (const auto exit_code = ParseFlags(app, argc, argv)) return *exit_code;
  const Status status = Run(flags);
  return status ? 0 : Fail(status.error());
}

}  // namespace moe
