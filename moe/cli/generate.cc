// moe generate: streams text that continues a prompt, or continues many.

#include "moe/infer/generate.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "moe/base/cpu_info.h"
#include "moe/base/interrupt.h"
#include "moe/base/progress.h"
#include "moe/cli/commands.h"
#include "moe/cli/common.h"
#include "moe/cli/explain.h"
#include "moe/cli/load_model.h"
#include "moe/cli/prompts.h"
#include "moe/files/atomic_file.h"
#include "moe/planner/prompts_at_once.h"

namespace moe {
namespace {

constexpr int64_t kMaxParallel = 65536;
const int64_t kPrefillRows = GenerateOptions{}.prefill_rows;

struct GenerateFlags {
  CommonFlags common;
  ExplainFlag explain;
  std::string model, dtype, prompt, file, prompts;
  std::optional<int64_t> parallel;
  bool has_prompt = false, no_echo = false;
  int64_t max_tokens = 256;
  SamplerConfig sampler;
  std::vector<std::string> stop;
};

Result<std::string> ReadPrompt(const GenerateFlags& flags) {
  if (flags.has_prompt && !flags.file.empty()) {
    return UsageErr("--prompt", "got --file too, expected one of them");
  }
  if (flags.has_prompt) {
    MOE_TRY(CheckPromptText(flags.prompt, "--prompt"));
    return flags.prompt;
  }
  if (flags.file.empty() && ::isatty(STDIN_FILENO) == 1) {
    return UsageErr("--prompt", "got nothing, expected --prompt TEXT, --file FILE, --prompts FILE or text on stdin");
  }
  const std::string where = flags.file.empty() ? "stdin" : flags.file;
  auto text = ReadFile(flags.file.empty() ? "/dev/stdin" : flags.file);
  if (!text) return Err(where, "{}", text.error().what);
  MOE_TRY(CheckPromptText(*text, where));
  if (text->ends_with('\n')) text->pop_back();  // what an editor or echo adds
  if (text->empty()) return Err(where, "got no text, expected a prompt; --prompt '' starts from nothing");
  return std::move(*text);
}

std::string Ending(const Generation& generation, const GenerateFlags& flags, const ModelConfig& config) {
  switch (generation.reason) {
    case StopReason::kMaxTokens:
      return fmt::format("stopped after {} tokens, as asked", flags.max_tokens);
    case StopReason::kEos:
      return "the model ended the text";
    case StopReason::kStopString:
      return "stopped at a stop string";
    case StopReason::kContext:
      return fmt::format("stopped: the context of {} tokens is full", config.context);
    case StopReason::kCancelled:
      break;
  }
  return "stopped early";
}

std::string Summary(const GenerateTimes& times) {
  const auto part = [](const char* name, int64_t tokens, double seconds) {
    const double rate = seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
    return fmt::format("{} {} tokens in {}, {}", name, tokens, FormatSeconds(seconds), FormatRate(rate, " tokens"));
  };
  return part("prompt", times.prompt_tokens, times.prompt_s) + "; " + part("decode", times.decode_tokens, times.decode_s);
}

nlohmann::json ToJson(const std::string& prompt, const Generation& generation) {
  return {{"prompt", prompt},
          {"text", generation.text},
          {"tokens", generation.tokens},
          {"stop_reason", std::string(Name(generation.reason))}};
}

nlohmann::json ToJson(const GenerateFlags& flags, const GenerateTimes& times, const Model& model, const RunContext& run) {
  const auto rate = [](int64_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0; };
  return {{"seed", flags.sampler.seed},
          {"prompt_tokens", times.prompt_tokens},
          {"prompt_s", times.prompt_s},
          {"prompt_tokens_per_s", rate(times.prompt_tokens, times.prompt_s)},
          {"decode_tokens", times.decode_tokens},
          {"decode_s", times.decode_s},
          {"decode_tokens_per_s", rate(times.decode_tokens, times.decode_s)},
          {"model", flags.model},
          {"dtype", std::string(Name(model.format()))},
          {"isa", run.kernels.name},
          {"threads", run.pool.num_threads()}};
}

Status CheckFlags(const GenerateFlags& flags) {
  MOE_TRY(Validate(flags.sampler));
  if (flags.max_tokens < -1) {
    return UsageErr("--max-tokens", "got {}, expected 0 or more, or -1: to the end of the context", flags.max_tokens);
  }
  for (const std::string& stop : flags.stop) {
    if (stop.empty()) return UsageErr("--stop", "got '', expected text");
  }
  if (!flags.prompts.empty() && (flags.has_prompt || !flags.file.empty())) {
    return UsageErr("--prompts", "got {} too, expected one of them", flags.has_prompt ? "--prompt" : "--file");
  }
  if (flags.parallel && (*flags.parallel < 1 || *flags.parallel > kMaxParallel)) {
    return UsageErr("--parallel", "got {}, expected 1 to {}", *flags.parallel, kMaxParallel);
  }
  return CheckJsonTarget(flags.common);
}

// Prompts and their texts on stdout, in the order of the prompts: each as soon as it and all before it are whole.
class InOrder {
 public:
  InOrder(const std::vector<std::string>& prompts, const GenerateFlags& flags)
      : prompts_(prompts), texts_(prompts.size()), echo_(!flags.no_echo), show_(!flags.common.json_on_stdout()) {}

  void Add(size_t i, const std::string& text) {
    texts_[i] = text;
    for (; next_ < texts_.size() && texts_[next_]; ++next_) {
      const std::string whole = (echo_ ? prompts_[next_] : "") + *texts_[next_];
      Write(fmt::format("{}=== {}/{}\n{}{}", next_ > 0 ? "\n" : "", next_ + 1, texts_.size(), whole,
                        whole.ends_with('\n') ? "" : "\n"));
    }
  }
  bool read() const { return read_; }  // does anybody?
  Status status() && { return std::move(status_); }

 private:
  void Write(const std::string& text) {
    if (!show_ || !read_) return;
    const auto reader = WriteStdout(text);
    if (!reader) status_ = tl::make_unexpected(reader.error());
    read_ = reader && *reader;
  }

  const std::vector<std::string>& prompts_;
  std::vector<std::optional<std::string>> texts_;
  size_t next_ = 0;  // to write
  bool echo_, show_, read_ = true;
  Status status_;
};

// What the prompts ask of the cache, and of a decode step on its way.
PromptsToRun Needs(const std::vector<GenerateRequest>& requests, const ModelConfig& config) {
  PromptsToRun needs{.count = static_cast<int64_t>(requests.size()), .available_bytes = AvailableMemoryBytes()};
  for (const GenerateRequest& request : requests) {
    const int64_t positions = CachePositions(request, config);
    needs.positions = std::max(needs.positions, positions);
    needs.context += (static_cast<int64_t>(request.prompt.size()) + positions) / 2;
  }
  needs.context /= needs.count;
  return needs;
}

int64_t PromptsAtOnceFor(const GenerateFlags& flags, const std::vector<GenerateRequest>& requests, const ModelFolder& folder,
                         const std::optional<MachineProfile>& machine) {
  const PromptsToRun needs = Needs(requests, folder.config);
  PromptsAtOnce choice = ChoosePromptsAtOnce(folder.config, folder.format, needs, machine ? &*machine : nullptr);
  if (flags.parallel) {
    choice.count = std::min(*flags.parallel, needs.count);
    choice.why = fmt::format("{} at once: --parallel {} of {} prompts", choice.count, *flags.parallel, needs.count);
  }
  Explain(flags.explain, choice.why);
  return choice.count;
}

Status RunMany(const GenerateFlags& flags, RunContext& run) {
  MOE_TRY(const std::vector<std::string> prompts, ReadPrompts(flags.prompts));
  MOE_TRY(const ModelFolder folder, OpenModelFolder(flags.model, flags.dtype));
  std::vector<GenerateRequest> requests;
  for (const std::string& prompt : prompts) {
    requests.push_back({.prompt = folder.tokenizer.Encode(prompt),
                        .max_tokens = flags.max_tokens,
                        .sampler = flags.sampler,
                        .stop = flags.stop});
    if (const Status fits = CheckPrompt(requests.back().prompt, folder.config); !fits) {
      return Err(fmt::format("prompt {}", requests.size()), "{}", fits.error().what);
    }
  }
  const auto machine = UseKeptMachine(flags.explain, run.exec);
  const int64_t at_once = PromptsAtOnceFor(flags, requests, folder, machine);
  MOE_TRY(const auto model, LoadForInference(folder,
                                             {.rows = std::max(kPrefillRows, at_once),
                                              .sequences = at_once,
                                              .positions = Needs(requests, folder.config).positions},
                                             run.exec));

  InstallInterruptHandler();
  InOrder out(prompts, flags);
  GenerateOptions options;
  options.at_once = at_once;
  options.on_text = [&](size_t, std::string_view) { return out.read() && !InterruptRequested(); };
  options.on_end = [&](size_t i, const Generation& generation) { out.Add(i, generation.text); };
  GenerateTimes times;
  MOE_TRY(const auto generations, Generate(*model, folder.tokenizer, requests, options, &times, run.exec));
  nlohmann::json json = ToJson(flags, times, *model, run);
  json["parallel"] = at_once, json["prompts"] = nlohmann::json::array();
  bool early = false;
  for (size_t i = 0; i < generations.size(); ++i) {
    const bool whole = generations[i].reason != StopReason::kCancelled;
    if (!whole) early = true, out.Add(i, generations[i].text);
    json["prompts"].push_back(ToJson(prompts[i], generations[i]));
  }
  MOE_TRY(std::move(out).status());
  fmt::print(stderr, "{}; {} prompts, {} at once{}\n", Summary(times), prompts.size(), at_once, early ? "; stopped early" : "");
  return WriteJsonResult(flags.common, json);
}

Status Run(const GenerateFlags& flags) {
  MOE_TRY(CheckFlags(flags));
  MOE_TRY(const auto run, MakeRunContext(flags.common));
  if (!flags.prompts.empty()) return RunMany(flags, *run);
  MOE_TRY(const std::string prompt, ReadPrompt(flags));
  MOE_TRY(const ModelFolder folder, OpenModelFolder(flags.model, flags.dtype));
  const ModelConfig& config = folder.config;
  const GenerateRequest request{
      .prompt = folder.tokenizer.Encode(prompt), .max_tokens = flags.max_tokens, .sampler = flags.sampler, .stop = flags.stop};
  MOE_TRY(CheckPrompt(request.prompt, config));
  const int64_t positions = CachePositions(request, config);
  UseKeptMachine(flags.explain, run->exec);
  MOE_TRY(const auto model, LoadForInference(folder, {.sequences = 1, .positions = positions}, run->exec));

  InstallInterruptHandler();
  const bool show = !flags.common.json_on_stdout();
  bool echo = show && !flags.no_echo;  // until the first token is there: errors leave stdout empty
  Status written;
  std::string last = "\n";
  const auto write = [&](std::string_view text) {
    if (text.empty()) return true;
    last = text.back();
    const auto reader = WriteStdout(text);
    if (!reader) written = tl::make_unexpected(reader.error());
    return reader && *reader;
  };
  GenerateOptions options;
  options.on_text = [&](size_t, std::string_view text) {
    bool go_on = !InterruptRequested();
    if (echo) go_on &= write(prompt);
    echo = false;
    if (show) go_on &= write(text);
    return go_on;
  };
  GenerateTimes times;
  const auto generations = Generate(*model, folder.tokenizer, {&request, 1}, options, &times, run->exec);
  if (show && last != "\n") write("\n");
  if (!generations) return tl::make_unexpected(generations.error());
  MOE_TRY(std::move(written));
  const Generation& generation = generations->front();
  fmt::print(stderr, "{}; {}\n", Summary(times), Ending(generation, flags, config));
  nlohmann::json json = ToJson(flags, times, *model, *run);
  json.update(ToJson(prompt, generation));
  return WriteJsonResult(flags.common, json);
}

}  // namespace

int RunGenerate(int argc, char** argv) {
  GenerateFlags flags;
  SamplerConfig& sampler = flags.sampler;
  CLI::App app("Continues a prompt, streaming the text. The same seed gives the same text, with any number of threads.",
               "moe generate");
  app.add_option("--model", flags.model, "Folder with config.json, model.safetensors, tokenizer.json")
      ->type_name("FOLDER")
      ->required();
  const CLI::Option* prompt = app.add_option("-p,--prompt", flags.prompt, "Text to continue (default: stdin)");
  app.add_option("-f,--file", flags.file, "File with the text to continue; one newline at its end is left out")
      ->type_name("FILE");
  app.add_option("--prompts", flags.prompts, "File with many prompts, one per line; .jsonl: {\"prompt\": TEXT} per line")
      ->type_name("FILE");
  app.add_option("--parallel", flags.parallel, "Prompts of --prompts under way at once (default: what suits this machine)")
      ->type_name("N");
  app.add_option("-n,--max-tokens", flags.max_tokens, "Tokens to generate, at most; -1: until the context is full")
      ->capture_default_str();
  app.add_option("--temperature,--temp", sampler.temperature, "0: always the most likely token; above 1: wilder")
      ->capture_default_str();
  app.add_option("--top-k", sampler.top_k, "Draw from the K most likely tokens; 0: all")->capture_default_str();
  app.add_option("--top-p", sampler.top_p, "... of those from the fewest whose probabilities sum to P; 1: all")
      ->capture_default_str();
  app.add_option("--min-p", sampler.min_p, "... of those from the ones at least P times as likely as the best; 0: all")
      ->capture_default_str();
  app.add_option("--repeat-penalty", sampler.repeat_penalty, "Above 1: makes recent tokens less likely; 1: off")
      ->capture_default_str();
  app.add_option("--repeat-last-n", sampler.repeat_last_n, "How many tokens are recent; -1: all")->capture_default_str();
  app.add_option("--stop", flags.stop, "Ends the text, and is left out of it; may be given more than once")
      ->allow_extra_args(false);
  app.add_option("--seed", sampler.seed, "Of the draws")->capture_default_str();
  app.add_option("--dtype", flags.dtype, "What products compute in: f32 or bf16 (default: the checkpoint's)")
      ->type_name("NAME");
  app.add_flag("--no-echo", flags.no_echo, "Leave the prompt out of the output");
  AddExplainFlag(app, flags.explain);
  AddCommonFlags(app, flags.common);
  SetExamples(app, {{"moe generate --model runs/demo --prompt 'It was a dark'", "at most 256 tokens that continue it"},
                    {"moe generate --model runs/demo -p 'Chapter 1' -n 40 --temp 0", "the most likely continuation"},
                    {"moe generate --model runs/demo -f letter.txt --seed 7 --stop 'THE END'", "another draw, ended by a text"},
                    {"moe generate --model runs/demo --prompts lines.txt --explain", "every line of a file, several at once"},
                    {"echo 'Call me' | moe generate --model runs/demo --json -", "prompt from stdin, result as JSON"}});
  if (const auto exit_code = ParseFlags(app, argc, argv)) return *exit_code;
  flags.has_prompt = prompt->count() > 0;
  const Status status = Run(flags);
  return status ? 0 : Fail(status.error());
}

}  // namespace moe
