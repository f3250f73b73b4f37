// moe route: what routing policies make of given logits, or a model's routers of a text.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/base/printable.h"
#include "moe/base/progress.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"
#include "moe/cli/route_model.h"
#include "moe/files/safetensors.h"
#include "moe/mixture/moe_metrics.h"
#include "moe/mixture/replay.h"

namespace moe {
namespace {

constexpr size_t kBarWidth = 40, kMostBars = 64;

struct Flags : RoutePolicyFlags {
  CommonFlags common;
  std::string logits;
};

struct Logits {
  std::vector<float> values, bias;  // [T,E], [E] or empty
  int64_t T = 0, E = 0;
};

Result<std::vector<float>> FloatsOf(const StoredTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.size()));
  MOE_TRY(ReadFloats(tensor, tensor.shape, values));
  return values;
}

Result<Logits> ReadLogits(const std::string& path) {
  MOE_TRY(const Safetensors file, Safetensors::Open(path));
  const StoredTensor* logits = file.Find("logits");
  if (logits == nullptr) return Err(path, "got no tensor 'logits', expected one [tokens,experts] of f32");
  if (logits->shape.size() != 2 || logits->shape[1] < 1) {
    return Err(path, "tensor 'logits': got the shape [{}], expected [tokens,experts]", fmt::join(logits->shape, ","));
  }
  Logits out{.T = logits->shape[0], .E = logits->shape[1]};
  if (out.T > INT32_MAX / std::max<int64_t>(out.E, 1)) {
    return Err(path, "tensor 'logits': got {} tokens of {} experts, expected fewer than 2^31 values", out.T, out.E);
  }
  MOE_TRY(out.values, FloatsOf(*logits));
  if (const StoredTensor* bias = file.Find("bias"); bias != nullptr) {
    if (bias->shape != std::vector<int64_t>{out.E}) {
      return Err(path, "tensor 'bias': got the shape [{}], expected [{}], one value an expert", fmt::join(bias->shape, ","),
                 out.E);
    }
    MOE_TRY(out.bias, FloatsOf(*bias));
    const auto bad = std::ranges::find_if_not(out.bias, [](float x) { return std::isfinite(x); });
    if (bad != out.bias.end()) return Err(path, "tensor 'bias': got {}, expected finite numbers", *bad);
  }
  return out;
}

std::string Bars(std::span<const int64_t> counts) {
  const int64_t most = std::max<int64_t>(1, *std::ranges::max_element(counts));
  std::string out;
  for (size_t e = 0; e < std::min(counts.size(), kMostBars); ++e) {
    const auto length =
        static_cast<size_t>(std::lround(static_cast<double>(counts[e]) * kBarWidth / static_cast<double>(most)));
    std::string bar;
    for (size_t i = 0; i < length; ++i) bar += "█";
    out += fmt::format("  expert {:>4}  {:>8}  {}\n", e, counts[e], bar);
  }
  if (counts.size() > kMostBars) out += fmt::format("  and {} more\n", counts.size() - kMostBars);
  return out;
}

nlohmann::json JsonOf(const std::string& policy, const Replay& replay) {
  return {{"policy", policy},
          {"slot_begin", replay.slot_begin},
          {"expert", replay.expert},
          {"gate", replay.gate},
          {"tokens_per_expert", replay.tokens_per_expert},
          {"kept", replay.kept},
          {"dropped", replay.num_dropped},
          {"bucket_rows", replay.bucket_rows},
          {"padded_rows", replay.padded_rows},
          {"max_violation", MaxViolation(replay.tokens_per_expert)},
          {"balance_loss", replay.balance_loss},
          {"z_loss", replay.z_loss},
          {"entropy", replay.entropy}};
}

Result<int> Route(Flags flags) {
  MOE_TRY(CheckJsonTarget(flags.common));
  MOE_TRY(const Logits logits, ReadLogits(flags.logits));
  if (flags.policies.empty()) flags.policies = {fmt::format("top_k={}", std::min<int64_t>(2, logits.E))};
  std::vector<RouterConfig> configs;
  for (const std::string& policy : flags.policies) {
    MOE_TRY(configs.emplace_back(), ParsePolicy(policy, logits.E, PolicyPlace(flags, policy)));
  }
  MOE_TRY(const auto run, MakeRunContext(flags.common));
  const ReplayOptions options{.training = !flags.evaluation, .seed = static_cast<uint64_t>(flags.seed)};
  std::string text = fmt::format("{} tokens, {} experts, as {}\n\n", logits.T, logits.E,
                                 flags.evaluation ? "evaluation and inference route" : "training routes");
  if (!logits.bias.empty()) text += "with the file's bias: of selection only, or of the logits where a policy learns one\n\n";
  size_t width = 6;
  for (const std::string& policy : flags.policies) width = std::max(width, policy.size());
  text += fmt::format("{:<{}}     slots   dropped   padding  max violation  entropy\n", "policy", width);
  nlohmann::json results = nlohmann::json::array();
  std::string bars;
  for (size_t i = 0; i < configs.size(); ++i) {
    MOE_TRY(const Replay replay,
            ReplayPolicy(configs[i], {logits.values.data(), logits.T, logits.E}, logits.bias, options, run->exec));
    const auto slots = static_cast<double>(std::max<size_t>(replay.expert.size(), 1));
    const auto rows = static_cast<double>(std::max<int64_t>(logits.E * replay.bucket_rows, 1));
    text += fmt::format("{:<{}}  {:>8}  {:>6.2f} %  {:>6.2f} %  {:>13.3f}  {:>7.3f}\n", flags.policies[i], width,
                        replay.expert.size(), 100 * static_cast<double>(replay.num_dropped) / slots,
                        100 * static_cast<double>(replay.padded_rows) / rows, MaxViolation(replay.tokens_per_expert),
                        replay.entropy);
    bars += fmt::format("\n{}: tokens per expert, before dropping\n{}", flags.policies[i], Bars(replay.tokens_per_expert));
    results.push_back(JsonOf(flags.policies[i], replay));
  }
  if (!flags.common.json_on_stdout()) MOE_TRY(WriteStdout(text + bars));
  MOE_TRY(WriteJsonResult(flags.common, results.size() == 1 ? results[0] : nlohmann::json{{"policies", results}}));
  return 0;
}

Result<int> Dispatch(Flags& flags, const RouteModelFlags& of_model, const std::vector<const CLI::Option*>& only_model) {
  if (flags.logits.empty() && of_model.model.empty()) {
    return UsageErr("--logits", "got nothing, expected it or --model; see moe route --help");
  }
  if (!flags.logits.empty() && !of_model.model.empty()) {
    return UsageErr("--model", "got it with --logits, expected one of the two");
  }
  if (flags.logits.empty()) return RouteModel(of_model, flags, flags.common);
  for (const CLI::Option* option : only_model) {
    if (option->count() > 0) return UsageErr(option->get_name(), "got it with --logits, expected --model");
  }
  for (const std::string& policy : flags.policies) {
    if (policy != "model" && !policy.starts_with("model,")) continue;
    return UsageErr("--policy", "got {}, expected another with --logits: only --model has a policy of its own",
                    Printable(policy));
  }
  return Route(flags);
}

}  // namespace

int RunRoute(int argc, char** argv) {
  Flags flags;
  RouteModelFlags of_model;
  CLI::App app(
      "With --model: what its routers do with a text, which tokens each expert likes, and what other policies would have done "
      "with "
      "the same logits.\nWith --logits: replays policies on given logits: who goes where, with which weight, and who is "
      "dropped.",
      "moe route");
  const auto only_model = AddRouteModelFlags(app, of_model);
  app.add_option("--logits", flags.logits, "safetensors file with 'logits' [tokens,experts] and, if any, 'bias' [experts], f32")
      ->type_name("FILE");
  app.add_option(
         "--policy", flags.policies,
         fmt::format(
             "Names and KEY=VALUE, separated by commas; several are compared (default: top_k=2 of --logits; of --model its own "
             "policy and common others; keys alone change that). Names: model (its own), {}. Keys: "
             "those of [router] in recipes/README.md, and top_k",
             fmt::join(PolicyNames(), ", ")))
      ->type_name("NAME,KEY=VALUE...");
  app.add_flag("--eval", flags.evaluation, "As evaluation and inference route: without noise, with their capacity");
  app.add_option("--seed", flags.seed, "Of noise and drops by chance (default 1)")->type_name("N");
  AddCommonFlags(app, flags.common);
  SetExamples(
      app, {{"moe route --model runs/demo --data data/test.txt --out routes.html", "what its experts do, as a page"},
            {"moe route --model runs/demo --data a.txt --layer 3 --policy model as-switch", "layer 3, and one other policy"},
            {"moe route --logits l.safetensors --policy deepseek-v3 --json -", "every slot, to check against another program"},
            {"moe route --logits l.safetensors --policy mixtral mixtral,capacity_factor=1 as-switch",
             "what three policies would have dropped"}});
  if (const auto code = ParseFlags(app, argc, argv)) return *code;
  const auto code = Dispatch(flags, of_model, only_model);
  return code ? *code : Fail(code.error());
}

}  // namespace moe
