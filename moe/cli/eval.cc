// moe eval: what a model's loss on a text is, and how its experts were used.

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <optional>

#include "moe/base/clock.h"
#include "moe/base/interrupt.h"
#include "moe/base/progress.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"
#include "moe/cli/explain.h"
#include "moe/cli/load_model.h"
#include "moe/files/text_file.h"
#include "moe/infer/generate.h"
#include "moe/model/evaluate.h"

namespace moe {
namespace {

constexpr int64_t kMaxBatch = 1 << 20;
constexpr double kQuietSeconds = 0.5;  // what is done by then needs no progress line

struct EvalFlags {
  CommonFlags common;
  ExplainFlag explain;
  std::string model, dtype;
  std::vector<std::string> data;
  std::optional<int64_t> batch, context;
};

// The texts, and their tokens.
struct EvalData {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<Document> documents;

  int64_t num_tokens() const {
    int64_t sum = 0;
    for (const auto& some : tokens) sum += static_cast<int64_t>(some.size());
    return sum;
  }
};

EvalData Tokenize(const Tokenizer& tokenizer, const std::vector<std::string>& texts) {
  EvalData data;
  for (const std::string& text : texts) data.tokens.push_back(tokenizer.Encode(text));
  for (size_t i = 0; i < texts.size(); ++i) {
    data.documents.push_back({.tokens = data.tokens[i], .num_bytes = static_cast<int64_t>(texts[i].size())});
  }
  return data;
}

std::string ProgressText(int64_t done, int64_t total, double loss_sum, double seconds) {
  const double share = static_cast<double>(done) / static_cast<double>(total);
  return fmt::format("eval {} {:3.0f} %  {}  loss {:.4f}  {} left", ProgressBar(share, 20), share * 100,
                     FormatRate(static_cast<double>(done) / seconds, " tokens"), loss_sum / static_cast<double>(done),
                     FormatSeconds(seconds / share - seconds));
}

nlohmann::json ToJson(const EvalFlags& flags, const Model& model, const EvalData& data, const Evaluation& result,
                      double seconds, const RunContext& run) {
  nlohmann::json layers = nlohmann::json::array(), files = nlohmann::json::array();
  for (const ExpertLoad& load : result.layers) layers.push_back(moe::ToJson(load));
  for (size_t i = 0; i < data.documents.size(); ++i) {
    const Document& document = data.documents[i];
    files.push_back({{"file", flags.data[i]},
                     {"loss", result.document_loss_sum[i] / static_cast<double>(document.tokens.size())},
                     {"bits_per_byte", BitsPerByte(result.document_loss_sum[i], document.num_bytes)},
                     {"bytes", document.num_bytes},
                     {"tokens", document.tokens.size()}});
  }
  return {{"loss", result.loss()},
          {"bits_per_byte", result.bits_per_byte()},
          {"perplexity", result.perplexity()},
          {"bytes", result.num_bytes},
          {"tokens", result.num_tokens},
          {"layers", layers},
          {"files", files},
          {"model", flags.model},
          {"context", flags.context.value_or(model.config().context)},
          {"dtype", std::string(Name(model.format()))},
          {"isa", run.kernels.name},
          {"threads", run.pool.num_threads()},
          {"seconds", seconds},
          {"tokens_per_s", static_cast<double>(result.num_tokens) / seconds}};
}

std::string Report(const EvalFlags& flags, const EvalData& data, const Evaluation& result, double seconds) {
  std::string text =
      fmt::format("{:<12} {}\n{:<12} {} in {} tokens, {:.2f} bytes each\n", "model", flags.model, "text",
                  FormatBytes(static_cast<double>(result.num_bytes)), FormatCount(static_cast<double>(result.num_tokens)),
                  static_cast<double>(result.num_bytes) / static_cast<double>(result.num_tokens));
  text += fmt::format("{:<12} {:.4f} nats/token\n{:<12} {:.4f} bits/byte\n{:<12} {:.2f}\n", "loss", result.loss(), "",
                      result.bits_per_byte(), "perplexity", result.perplexity());
  text += fmt::format("{:<12} {}, {}\n", "time", FormatSeconds(seconds),
                      FormatRate(static_cast<double>(result.num_tokens) / seconds, " tokens"));
  if (data.documents.size() > 1) {
    text += fmt::format("\n{:>10} {:>10}  file\n", "bits/byte", "bytes");
    for (size_t i = 0; i < data.documents.size(); ++i) {
      text += fmt::format("{:>10.4f} {:>10}  {}\n", BitsPerByte(result.document_loss_sum[i], data.documents[i].num_bytes),
                          data.documents[i].num_bytes, flags.data[i]);
    }
  }
  bool title = false;
  for (size_t l = 0; l < result.layers.size(); ++l) {
    const ExpertLoad& load = result.layers[l];
    if (load.tokens_per_expert.empty()) continue;
    if (!title) {
      text += fmt::format("\n{:>5} {:>9} {:>6} {:>7} {:>8} {:>5} {:>6} {:>8}  {}\n", "layer", "max/mean", "CV", "dropped",
                          "entropy", "dead", "gate", "|logit|", "expert load");
    }
    title = true;
    text += fmt::format("{:>5} {:>9.2f} {:>6.2f} {:>5.1f} % {:>8.3f} {:>5} {:>6.3f} {:>8.2f}  {}\n", l, 1 + load.max_violation,
                        load.coefficient_of_variation, 100 * load.drop_rate, load.entropy, load.dead_experts, load.gate_mean,
                        load.largest_logit, LoadBars(load.tokens_per_expert));
  }
  return text;
}

Result<int> Run(const EvalFlags& flags) {
  const int64_t batch = flags.batch.value_or(1);
  if (batch < 1 || batch > kMaxBatch) return UsageErr("--batch", "got {}, expected 1..{}", batch, kMaxBatch);
  MOE_TRY(CheckJsonTarget(flags.common));
  MOE_TRY(const auto run, MakeRunContext(flags.common));
  UseKeptMachine(flags.explain, run->exec);
  MOE_TRY(const auto texts, ReadTextFiles(flags.data));
  MOE_TRY(const ModelFolder folder, OpenModelFolder(flags.model, flags.dtype));
  const int64_t context = flags.context.value_or(folder.config.context);
  if (context < 1 || context > folder.config.context) {
    return UsageErr("--context", "got {}, expected 1..{}, the model's", context, folder.config.context);
  }
  const EvalData data = Tokenize(folder.tokenizer, texts);
  const int64_t rows = std::min(data.num_tokens(), std::max(batch * context, kEvaluateRows));
  MOE_TRY(const auto model, LoadForInference(folder, {.rows = rows}, run->exec));

  InstallInterruptHandler();
  const double start_s = NowSeconds();
  ProgressLine progress;
  EvaluateOptions options{
      .context = context, .batch = flags.batch.value_or(0), .bos_id = BosId(folder.config, folder.tokenizer)};
  int64_t tokens_done = 0;
  bool stopped = false;
  options.on_step = [&](int64_t done, int64_t total, double loss_sum) {
    const double seconds = NowSeconds() - start_s;
    if (seconds > kQuietSeconds && progress.Due()) progress.Update(ProgressText(done, total, loss_sum, seconds));
    tokens_done = done, stopped = done < total && InterruptRequested();
    return !stopped;
  };
  const auto result = Evaluate(*model, data.documents, options, run->exec);
  const double seconds = NowSeconds() - start_s;
  progress.Finish();
  if (!result && stopped) {
    fmt::print(stderr, "stopped after {} of {} tokens; there is no result\n", FormatCount(static_cast<double>(tokens_done)),
               FormatCount(static_cast<double>(data.num_tokens())));
    return kExitInterrupted;
  }
  if (!result) return tl::make_unexpected(result.error());
  if (!flags.common.json_on_stdout()) MOE_TRY(WriteStdout(Report(flags, data, *result, seconds)));
  MOE_TRY(WriteJsonResult(flags.common, ToJson(flags, *model, data, *result, seconds, *run)));
  return 0;
}

}  // namespace

int RunEval(int argc, char** argv) {
  EvalFlags flags;
  CLI::App app(
      "Measures a model on text: loss, bits per byte, perplexity, and how the experts of each layer are used.\n"
      "Texts are read in windows of the context length that begin with BOS and do not overlap; every byte counts.",
      "moe eval");
  app.add_option("--model", flags.model, "Folder with config.json, model.safetensors, tokenizer.json")
      ->type_name("FOLDER")
      ->required();
  app.add_option("--data", flags.data, "UTF-8 text; may be given more than once")->type_name("FILE")->required();
  app.add_option("--dtype", flags.dtype, "What products compute in: f32 or bf16 (default: the checkpoint's)")
      ->type_name("NAME");
  app.add_option("--batch", flags.batch, "Windows computed at a time (default: about 4096 tokens); never changes the result");
  app.add_option("--context", flags.context, "Window length in tokens (default: the model's context)");
  AddExplainFlag(app, flags.explain);
  AddCommonFlags(app, flags.common);
  SetExamples(app, {{"moe eval --model runs/demo --data data/held-out.txt", "loss on a text the model has not seen"},
                    {"moe eval --model runs/demo --data a.txt b.txt --json -", "the same as JSON, file by file and in all"},
                    {"moe eval --model runs/demo --data a.txt --dtype bf16", "what bf16 costs in bits per byte"}});
  if (const auto exit_code = ParseFlags(app, argc, argv)) return *exit_code;
  const auto exit_code = Run(flags);
  return exit_code ? *exit_code : Fail(exit_code.error());
}

}  // namespace moe
