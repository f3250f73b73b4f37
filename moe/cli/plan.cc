// moe plan: what a shape will do on a machine, before anything runs.

#include "moe/planner/plan.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/base/clock.h"
#include "moe/base/progress.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"
#include "moe/cli/plan_routing.h"
#include "moe/cli/step_flags.h"
#include "moe/cli/text_tokens.h"
#include "moe/files/atomic_file.h"
#include "moe/model/load.h"
#include "moe/planner/plan_report.h"
#include "moe/planner/plan_textbook.h"
#include "moe/planner/report_html.h"

namespace moe {
namespace {

constexpr int64_t kMaxRanks = 1 << 20;

struct PlanFlags {
  CommonFlags common;
  std::string model, config, machine, out;
  std::string batches = "1,2,4,8,16,32,64,128,256,512,1024,2048,4096";
  std::string phase = "decode", dtype = "bf16", kv_dtype = "f32", memory;
  std::optional<std::string> routing;
  std::vector<std::string> data;
  std::optional<int64_t> tokens;
  std::optional<int64_t> context;
  std::optional<double> max_ms;
  int64_t ranks = 1;
  std::string link_bandwidth, link_latency;
  std::string flops, bandwidth, flops_per_token, parameters, active;

  bool textbook() const {
    return !flops.empty() || !bandwidth.empty() || !flops_per_token.empty() || !parameters.empty() || !active.empty();
  }
};

Result<std::vector<double>> ParseList(const char* flag, const std::string& text) {
  std::vector<double> values;
  if (text.empty()) return values;
  for (const std::string& part : SplitList(text)) {
    MOE_TRY(const double value, ParseScaled(flag, part, kCountUnit));
    values.push_back(value);
  }
  return values;
}

// "5e-6", "5us"
Result<double> ParseSeconds(const char* flag, const std::string& text) {
  double value = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view unit(rest, static_cast<size_t>(text.data() + text.size() - rest));
  bool known = false;
  for (const auto& [name, factor] :
       {std::pair<std::string_view, double>{"", 1}, {"s", 1}, {"ms", 1e-3}, {"us", 1e-6}, {"ns", 1e-9}}) {
    if (unit == name) value *= factor, known = true;
  }
  if (error != std::errc() || !known || !(value >= 0 && value < 1e6)) {
    return UsageErr(flag, "got '{}', expected seconds, as in 5e-6 or 5us", text);
  }
  return value;
}

Result<WeightType> ParseType(const std::string& text) {
  std::vector<std::string> names;
  for (const WeightType& type : WeightTypes()) {
    if (type.name == text) return type;
    names.emplace_back(type.name);
  }
  return UsageErr("--dtype", "got '{}', expected one of {}", text, JoinNames(names));
}

Status ParseKvType(const PlanFlags& flags, PlanOptions& options) {
  for (const auto& [name, bytes] : {std::pair<std::string_view, double>{"f32", 4}, {"f16", 2}, {"bf16", 2}}) {
    if (flags.kv_dtype == name) options.kv_type = name, options.kv_value_bytes = bytes;
  }
  if (options.kv_type != flags.kv_dtype) return UsageErr("--kv-dtype", "got '{}', expected f32, f16 or bf16", flags.kv_dtype);
  if (options.phase != Phase::kTrain || options.kv_type == "f32") return {};
  return UsageErr("--kv-dtype", "got {} to train with, expected f32: nothing is cached", flags.kv_dtype);
}

Result<ExpertParallel> ParseParallel(const PlanFlags& flags) {
  ExpertParallel parallel{.ranks = flags.ranks};
  if (flags.ranks < 1 || flags.ranks > kMaxRanks) {
    return UsageErr("--ranks", "got {}, expected 1 to {}", flags.ranks, kMaxRanks);
  }
  const std::string& bandwidth = flags.link_bandwidth;
  if (flags.ranks == 1) {
    if (bandwidth.empty() && flags.link_latency.empty()) return parallel;
    return UsageErr("--ranks", "got 1 and figures of a link, expected 2 or more");
  }
  if (bandwidth.empty()) return UsageErr("--link-bandwidth", "got none, expected bytes per second for {} ranks", flags.ranks);
  MOE_TRY(parallel.bytes_per_s, ParseScaled("--link-bandwidth", bandwidth, kRateUnit));
  if (!flags.link_latency.empty()) {
    MOE_TRY(parallel.latency_s, ParseSeconds("--link-latency", flags.link_latency));
  }
  return parallel;
}

// Empty: nothing is to be measured.
Result<PlanRoutingFlags> ParseData(const PlanFlags& flags) {
  PlanRoutingFlags out{.data = flags.data};
  if (flags.tokens && flags.data.empty())
    return UsageErr("--tokens", "got it without --data, expected a text to take them from");
  if (flags.data.empty()) return out;
  if (flags.model.empty()) {
    return UsageErr("--data", "got it with --config, expected --model: a shape alone has no routers to measure");
  }
  if (flags.routing) return UsageErr("--routing", "got it with --data, expected one of the two");
  out.tokens = flags.tokens.value_or(out.tokens);
  if (out.tokens < 1 || out.tokens > kMostTokens)
    return UsageErr("--tokens", "got {}, expected 1..{}", out.tokens, kMostTokens);
  return out;
}

Result<PlanOptions> ParseOptions(const PlanFlags& flags) {
  PlanOptions options;
  if (flags.model.empty() == flags.config.empty()) {
    return UsageErr("--model", "got {} --config, expected one of the two",
                    flags.model.empty() ? "neither this nor" : "both this and");
  }
  MOE_TRY(options.phase, ParsePhase(flags.phase));
  MOE_TRY(options.batches, ParseBatches(flags.batches));
  MOE_TRY(options.dtype, ParseType(flags.dtype));
  MOE_TRY(ParseKvType(flags, options));
  MOE_TRY(options.routing, ParseRouting(flags.routing.value_or("uniform"), /*model=*/false));
  MOE_TRY(options.parallel, ParseParallel(flags));
  if (options.phase == Phase::kTrain && !options.dtype.ours) {
    return UsageErr("--dtype", "got {} to train with, expected f32 or bf16", flags.dtype);
  }
  if (flags.max_ms) {
    if (!(*flags.max_ms > 0 && std::isfinite(*flags.max_ms))) {
      return UsageErr("--max-ms", "got {}, expected a number above 0", *flags.max_ms);
    }
    options.max_s = *flags.max_ms / 1e3;
  }
  if (!flags.memory.empty()) {
    MOE_TRY(const double bytes, ParseScaled("--memory", flags.memory, kBytesUnit));
    options.memory_bytes = bytes;
  }
  return options;
}

TextStyle Style() {
  return {.width = IsTerminal(stdout) ? TerminalWidth(stdout) : 80, .unicode = Utf8Locale()};
}

// The exit code.
Result<int> PlanModel(const PlanFlags& flags) {
  const double start = NowSeconds();
  MOE_TRY(PlanOptions options, ParseOptions(flags));
  MOE_TRY(const PlanRoutingFlags text, ParseData(flags));
  MOE_TRY(CheckJsonTarget(flags.common));
  MOE_TRY(CheckPageTarget(flags.common, flags.out));
  const std::string& name = flags.model.empty() ? flags.config : flags.model;
  MOE_TRY(const ModelConfig config, LoadModelConfig(name));
  MOE_TRY(CheckRouting(config, options.routing));
  options.context = flags.context.value_or(std::min(options.context, std::max<int64_t>(config.context - 1, 1)));
  MOE_TRY(CheckPlan(config, options));
  MOE_TRY(const auto run, MakeRunContext(flags.common));
  MOE_TRY(const MachineProfile machine, LoadMachine(flags.machine, run->exec));
  if (!text.data.empty()) {
    MOE_TRY(options.measured, MeasureRoutingOf(name, text, options.context, run->exec));
    if (options.measured == nullptr) return kExitInterrupted;
  }
  MOE_TRY(const Plan plan, MakePlan(name, config, machine, options));
  if (!flags.common.json_on_stdout()) MOE_TRY(WriteStdout(PlanText(plan, Style())));
  if (!flags.out.empty()) MOE_TRY(WriteFileAtomically(flags.out, ReportHtml(ReportOf(plan))));
  nlohmann::json json = PlanJson(plan);
  json["seconds"] = NowSeconds() - start;
  MOE_TRY(WriteJsonResult(flags.common, std::move(json)));
  return 0;
}

Result<int> PlanTextbook(const PlanFlags& flags, const CLI::App& app) {
  for (const char* flag : {"--model", "--config", "--machine", "--phase", "--context", "--routing", "--data", "--tokens",
                           "--kv-dtype", "--max-ms", "--memory", "--ranks", "--link-bandwidth", "--link-latency", "--out"}) {
    if (app.count(flag) > 0) return UsageErr(flag, "got this and flags of the textbook form (--flops ...), expected one form");
  }
  TextbookOptions options;
  if (flags.flops.empty()) return UsageErr("--flops", "got none, expected FLOP/s of the machine");
  MOE_TRY(options.machine.flop_per_s, ParseScaled("--flops", flags.flops, kFlopUnit));
  if (!flags.bandwidth.empty()) {
    MOE_TRY(options.machine.bytes_per_s, ParseScaled("--bandwidth", flags.bandwidth, kRateUnit));
  }
  MOE_TRY(options.flop_per_token, ParseList("--flops-per-token", flags.flops_per_token));
  MOE_TRY(options.parameters, ParseList("--parameters", flags.parameters));
  MOE_TRY(options.active, ParseList("--active", flags.active));
  MOE_TRY(options.batches, ParseBatches(flags.batches));
  MOE_TRY(const WeightType type, ParseType(flags.dtype));
  options.dtype = type.name, options.weight_bytes = type.bytes;
  MOE_TRY(CheckJsonTarget(flags.common));
  MOE_TRY(const Textbook textbook, MakeTextbook(options));
  if (!flags.common.json_on_stdout()) MOE_TRY(WriteStdout(TextbookText(textbook, Style())));
  MOE_TRY(WriteJsonResult(flags.common, TextbookJson(textbook)));
  return 0;
}

void AddModelFlags(CLI::App& app, PlanFlags& flags) {
  app.add_option("--model", flags.model, "Model folder: its shape; weights are read for --data only")->type_name("DIR");
  app.add_option("--config", flags.config, "Shape: config.json, model folder or preset")->type_name("C");
  app.add_option("--machine", flags.machine,
                 fmt::format("Profile of a machine, from moe probe, or one of {} (default: this machine, measured once)",
                             fmt::join(MachineNames(), ", ")))
      ->type_name("FILE|NAME");
  app.add_option("--batches", flags.batches, "Sequences in decode, tokens in prefill and train")
      ->type_name("1,2,...")
      ->capture_default_str();
  app.add_option("--phase", flags.phase, "What a step is: decode, prefill or train")->type_name("PHASE")->capture_default_str();
  app.add_option("--context", flags.context, "Past positions of a sequence, or tokens of a prompt (default: 64)")
      ->type_name("N");
  app.add_option("--dtype", flags.dtype, "Weights: f32, bf16, or to plan for q8_0, q4_0, mxfp4")
      ->type_name("TYPE")
      ->capture_default_str();
  app.add_option("--kv-dtype", flags.kv_dtype, "Keys and values that are kept: f32, as ours are, f16 or bf16")
      ->type_name("TYPE")
      ->capture_default_str();
  app.add_option("--out", flags.out, "Write a page with charts and all numbers")->type_name("FILE.html");
  app.add_option("--routing", flags.routing, "How tokens choose experts: uniform (default) or zipf:S")->type_name("R");
  app.add_option("--data", flags.data,
                 "UTF-8 text, more than one, or '-' for stdin: tokens choose as the routers of --model do with it")
      ->type_name("FILE");
  app.add_option("--tokens", flags.tokens, fmt::format("Of the text, at most (default: {})", PlanRoutingFlags{}.tokens))
      ->type_name("N");
  app.add_option("--max-ms", flags.max_ms, "The best batch takes at most so long per step")->type_name("X");
  app.add_option("--memory", flags.memory, "The best batch takes at most so much, as in 24GB (default: the machine's)")
      ->type_name("BYTES");
  app.add_option("--ranks", flags.ranks, "Machines that share the experts of every layer")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--link-bandwidth", flags.link_bandwidth, "Of a rank's link, as in 50GB/s")->type_name("BYTES/S");
  app.add_option("--link-latency", flags.link_latency, "Of one exchange, as in 5us (default: 0)")->type_name("S");
}

void AddTextbookFlags(CLI::App& app, PlanFlags& flags) {
  app.add_option("--flops", flags.flops, "Textbook form: FLOP/s of a machine, as in 100e12")->type_name("X");
  app.add_option("--bandwidth", flags.bandwidth, "... and its memory's bytes per second, as in 2e12")->type_name("X");
  app.add_option("--flops-per-token", flags.flops_per_token, "... of models to compare (default: 2 per active parameter)")
      ->type_name("X,...");
  app.add_option("--parameters", flags.parameters, "... parameters of each, as in 70B,235B")->type_name("X,...");
  app.add_option("--active", flags.active, "... and those a token uses (default: all)")->type_name("X,...");
}

}  // namespace

int RunPlan(int argc, char** argv) {
  CLI::App app(
      "Says what a model will do on a machine before anything runs: memory, time and tokens per second at every batch beside\n"
      "its dense twins, what binds, where an MoE pays off, and which batch to take.",
      "moe plan");
  PlanFlags flags;
  AddModelFlags(app, flags);
  AddTextbookFlags(app, flags);
  AddCommonFlags(app, flags.common);
  SetExamples(
      app,
      {{"moe plan --config olmoe-1b-7b", "a public shape on this machine"},
       {"moe plan --config qwen3-30b-a3b --machine a100-80g --max-ms 20", "a machine one does not have"},
       {"moe plan --model runs/demo --data data/test.txt --phase prefill", "tokens choose experts as the model does there"},
       {"moe plan --config mixtral-8x7b --machine h100-sxm --ranks 8 --link-bandwidth 450GB/s --link-latency 10us",
        "experts spread over eight of them"},
       {"moe plan --flops 100e12 --flops-per-token 10e9,4e9", "the textbook's sum"},
       {"moe plan --flops 100e12 --bandwidth 2e12 --parameters 70B,235B --active 70B,22B", "and its three regimes"}});
  if (const auto parsed = ParseFlags(app, argc, argv)) return *parsed;
  if (const Status filled = RefuseEmpty(app); !filled) return Fail(filled.error());
  const Result<int> code = flags.textbook() ? PlanTextbook(flags, app) : PlanModel(flags);
  return code ? *code : Fail(code.error());
}

}  // namespace moe
