#pragma once
// Prompts -> text: prefill, then one token of every sequence per step.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/files/tokenizer.h"
#include "moe/infer/sampler.h"
#include "moe/model/model.h"

namespace moe {

struct GenerateRequest {
  std::vector<int32_t> prompt;    // without BOS; may be empty
  int64_t max_tokens = -1;        // -1: until EOS or the context is full
  SamplerConfig sampler;          // its seed is this request's alone
  std::vector<std::string> stop;  // texts that end it, and are left out; none empty (checked)
};

enum class StopReason : uint8_t {
  kMaxTokens,
  kEos,
  kStopString,
  kContext,  // BOS, prompt and generated tokens fill the model's context
  kCancelled,
};
std::string_view Name(StopReason reason);  // "max_tokens", "eos", "stop", "context", "cancelled"

struct Generation {
  std::vector<int32_t> tokens;  // generated, EOS included
  std::string text;             // what was streamed; bytes that are not UTF-8 as U+FFFD
  StopReason reason = StopReason::kCancelled;
};

struct GenerateTimes {
  int64_t prompt_tokens = 0, decode_tokens = 0;  // prompts with their BOS; decode: all but each sequence's first
  double prompt_s = 0, decode_s = 0;             // the first tokens fall into prompt_s
};

struct GenerateOptions {
  // Called after every token of every sequence, with the text that became certain (often none). False ends everything.
  std::function<bool(size_t sequence, std::string_view text)> on_text;
  // Called when a sequence has ended, in the order of their ends; not when all were cancelled. May be empty.
  std::function<void(size_t sequence, const Generation& generation)> on_end;
  int64_t prefill_rows = 512;  // rows of one step of a prompt, at most
  int64_t at_once = 0;         // sequences under way, at most: the next begins when one ends; 0: all
};

// One Generation per request. A request's tokens depend on nothing but the model, the request and the kernel table: not on
// threads, nor on the other requests, nor on how many run at once. Errors: a prompt longer than the context, a model without
// BOS, logits that are not finite. Resets ctx.arena.
Result<std::vector<Generation>> Generate(const Model& model, const Tokenizer& tokenizer,
                                         std::span<const GenerateRequest> requests, const GenerateOptions& options,
                                         GenerateTimes* times, ExecContext& ctx);

// What Generate asks of a prompt: at most C-1 tokens, all of them in the vocabulary.
Status CheckPrompt(std::span<const int32_t> prompt, const ModelConfig& config);
// Positions of the cache that a request may fill.
int64_t CachePositions(const GenerateRequest& request, const ModelConfig& config);

// The token that every sequence begins with: the model's, else the tokenizer's; -1: neither has one.
int32_t BosId(const ModelConfig& config, const Tokenizer& tokenizer);

}  // namespace moe
