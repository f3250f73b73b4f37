#include "moe/infer/generate.h"

#include <algorithm>

#include "moe/base/clock.h"
#include "moe/infer/text_stream.h"

namespace moe {
namespace {

// Generated tokens, at most. The last is never read, so that BOS, prompt and they may be one more than the context.
int64_t MaxTokens(const GenerateRequest& request, const ModelConfig& config) {
  const int64_t room = config.context - static_cast<int64_t>(request.prompt.size());
  return request.max_tokens < 0 ? room : std::min(room, request.max_tokens);
}

// One request on its way.
struct Sequence {
  const GenerateRequest* request;
  std::vector<int32_t> tokens;  // BOS, prompt, generated
  int64_t prompt_size;          // of tokens, BOS included
  int64_t max_tokens;           // generated ones, bounded by the context
  TextStream stream;
  int32_t slot = -1;  // of the cache, while it is under way
  bool done = false;

  int64_t num_generated() const { return static_cast<int64_t>(tokens.size()) - prompt_size; }
};

class GenerateRun {
 public:
  GenerateRun(const Model& model, const Tokenizer& tokenizer, const GenerateOptions& options, ExecContext& ctx)
      : model_(model), tokenizer_(tokenizer), options_(options), ctx_(ctx) {}

  Status Start(std::span<const GenerateRequest> requests);
  // Begins sequences while there are slots for them.
  Status Prefill();
  Status DecodeStep();
  bool finished() const {
    return cancelled_ || (next_ == sequences_.size() && static_cast<int64_t>(free_slots_.size()) == cache_.num_slots);
  }
  std::vector<Generation> Finish();
  int64_t num_prompt_tokens() const;
  int64_t num_generated() const;

 private:
  Status Prefill(size_t s);
  Status Accept(size_t s, std::span<const float> logits);
  void Show(size_t s, const std::string& text);
  void End(size_t s, StopReason reason);

  const Model& model_;
  const Tokenizer& tokenizer_;
  const GenerateOptions& options_;
  ExecContext& ctx_;
  KvCache cache_;
  std::vector<Sequence> sequences_;
  std::vector<Generation> results_;
  std::vector<RowInfo> rows_;
  std::vector<int32_t> logit_rows_;
  std::vector<size_t> decoding_;  // sequence of each row of a decode step
  std::vector<int32_t> free_slots_;
  size_t next_ = 0;  // sequence to begin
  bool cancelled_ = false;
};

Status GenerateRun::Start(std::span<const GenerateRequest> requests) {
  const ModelConfig& config = model_.config();
  const int32_t bos_id = BosId(config, tokenizer_);
  if (bos_id < 0 || bos_id >= config.vocab_size) {
    return Err("model", "got BOS token {}, expected 0..{}", bos_id, config.vocab_size - 1);
  }
  int64_t positions = 0;
  for (const GenerateRequest& request : requests) {
    MOE_TRY(CheckPrompt(request.prompt, config));
    MOE_TRY(Validate(request.sampler));
    const auto prompt_size = static_cast<int64_t>(request.prompt.size());
    const int64_t max_tokens = MaxTokens(request, config);
    positions = std::max(positions, CachePositions(request, config));
    Sequence sequence{&request, {bos_id}, prompt_size + 1, max_tokens, TextStream(request.stop)};
    sequence.tokens.insert(sequence.tokens.end(), request.prompt.begin(), request.prompt.end());
    sequences_.push_back(std::move(sequence));
  }
  results_.resize(requests.size());
  const auto all = static_cast<int64_t>(requests.size());
  cache_ = KvCache::Make(config, options_.at_once > 0 ? std::min(options_.at_once, all) : all, positions);
  for (auto slot = static_cast<int32_t>(cache_.num_slots); slot > 0; --slot) free_slots_.push_back(slot - 1);
  return {};
}

Status GenerateRun::Prefill() {
  while (!cancelled_ && next_ < sequences_.size() && !free_slots_.empty()) {
    Sequence& sequence = sequences_[next_];
    sequence.slot = free_slots_.back(), free_slots_.pop_back();
    // What the slot's last sequence left is overwritten before it is read: positions are read in order.
    MOE_TRY(Prefill(next_++));
  }
  return {};
}

Status GenerateRun::Prefill(size_t s) {
  const Sequence& sequence = sequences_[s];
  if (sequence.max_tokens == 0) return End(s, StopReason::kMaxTokens), Status{};
  for (int64_t begin = 0; begin < sequence.prompt_size && !sequence.done && !cancelled_; begin += options_.prefill_rows) {
    const int64_t end = std::min(sequence.prompt_size, begin + options_.prefill_rows);
    rows_.clear(), logit_rows_.clear();
    for (int64_t i = begin; i < end; ++i) {
      rows_.push_back({sequence.slot, static_cast<int32_t>(i), sequence.tokens[static_cast<size_t>(i)]});
    }
    if (end == sequence.prompt_size) logit_rows_.push_back(static_cast<int32_t>(end - begin - 1));
    ctx_.arena.Reset();
    MOE_TRY(const auto logits, model_.Forward({rows_, logit_rows_, &cache_}, nullptr, ctx_));
    if (!logit_rows_.empty()) {
      MOE_TRY(Accept(s, logits.row_span(0)));
    } else if (options_.on_text && !options_.on_text(s, "")) {
      cancelled_ = true;
    }
  }
  return {};
}

Status GenerateRun::DecodeStep() {
  rows_.clear(), logit_rows_.clear(), decoding_.clear();
  for (size_t s = 0; s < sequences_.size(); ++s) {
    const Sequence& sequence = sequences_[s];
    if (sequence.slot < 0) continue;
    logit_rows_.push_back(static_cast<int32_t>(rows_.size()));
    rows_.push_back({sequence.slot, static_cast<int32_t>(sequence.tokens.size()) - 1, sequence.tokens.back()});
    decoding_.push_back(s);
  }
  ctx_.arena.Reset();
  MOE_TRY(const auto logits, model_.Forward({rows_, logit_rows_, &cache_}, nullptr, ctx_));
  for (size_t row = 0; row < decoding_.size(); ++row)
    MOE_TRY(Accept(decoding_[row], logits.row_span(static_cast<int64_t>(row))));
  return {};
}

Status GenerateRun::Accept(size_t s, std::span<const float> logits) {
  Sequence& sequence = sequences_[s];
  // A vocabulary may be padded beyond the tokenizer's: those tokens mean nothing.
  const auto meant = logits.first(std::min(logits.size(), static_cast<size_t>(tokenizer_.vocab_size())));
  MOE_TRY(const int32_t token, SampleToken(sequence.request->sampler, meant, sequence.tokens, sequence.num_generated()));
  sequence.tokens.push_back(token);
  results_[s].tokens.push_back(token);
  Show(s, sequence.stream.Push(tokenizer_.TokenBytes(token)));
  if (sequence.stream.stopped()) {
    End(s, StopReason::kStopString);
  } else if (token == model_.config().eos_id || token == tokenizer_.eos_id()) {
    End(s, StopReason::kEos);
  } else if (sequence.num_generated() == sequence.max_tokens) {
    End(s, sequence.max_tokens == sequence.request->max_tokens ? StopReason::kMaxTokens : StopReason::kContext);
  }
  return {};
}

void GenerateRun::Show(size_t s, const std::string& text) {
  results_[s].text += text;
  if (options_.on_text && !options_.on_text(s, text)) cancelled_ = true;
}

void GenerateRun::End(size_t s, StopReason reason) {
  Sequence& sequence = sequences_[s];
  sequence.done = true;
  if (sequence.slot >= 0) free_slots_.push_back(sequence.slot), sequence.slot = -1;
  results_[s].reason = reason;
  const std::string rest = sequence.stream.Flush();
  if (!rest.empty()) Show(s, rest);
  if (reason != StopReason::kCancelled && options_.on_end) options_.on_end(s, results_[s]);
}

std::vector<Generation> GenerateRun::Finish() {
  for (size_t s = 0; s < sequences_.size(); ++s) {
    if (!sequences_[s].done) End(s, StopReason::kCancelled);
  }
  return std::move(results_);
}

int64_t GenerateRun::num_prompt_tokens() const {
  int64_t sum = 0;
  for (const Sequence& s : sequences_) sum += s.prompt_size;
  return sum;
}

int64_t GenerateRun::num_generated() const {
  int64_t sum = 0;
  for (const Sequence& s : sequences_) sum += s.num_generated();
  return sum;
}

}  // namespace

std::string_view Name(StopReason reason) {
  switch (reason) {
    case StopReason::kMaxTokens:
      return "max_tokens";
    case StopReason::kEos:
      return "eos";
    case StopReason::kStopString:
      return "stop";
    case StopReason::kContext:
      return "context";
    case StopReason::kCancelled:
      return "cancelled";
  }
  return "?";
}

Status CheckPrompt(std::span<const int32_t> prompt, const ModelConfig& config) {
  const auto size = static_cast<int64_t>(prompt.size());
  if (size > config.context - 1) return Err("prompt", "got {} tokens, expected at most {}", size, config.context - 1);
  for (const int32_t token : prompt) {
    if (token < 0 || token >= config.vocab_size) {
      return Err("prompt", "got token {}, expected 0..{}", token, config.vocab_size - 1);
    }
  }
  return {};
}

int64_t CachePositions(const GenerateRequest& request, const ModelConfig& config) {
  return static_cast<int64_t>(request.prompt.size()) + std::max<int64_t>(MaxTokens(request, config), 1);
}

int32_t BosId(const ModelConfig& config, const Tokenizer& tokenizer) {
  return config.bos_id >= 0 ? config.bos_id : tokenizer.bos_id();
}

Result<std::vector<Generation>> Generate(const Model& model, const Tokenizer& tokenizer,
                                         std::span<const GenerateRequest> requests, const GenerateOptions& options,
                                         GenerateTimes* times, ExecContext& ctx) {
  MOE_CHECK(options.prefill_rows > 0, "{} rows", options.prefill_rows);
  GenerateRun run(model, tokenizer, options, ctx);
  MOE_TRY(run.Start(requests));
  GenerateTimes spent;
  while (!run.finished()) {
    const double start_s = NowSeconds();
    MOE_TRY(run.Prefill());
    const double prefilled_s = NowSeconds();
    const int64_t generated = run.num_generated();
    if (!run.finished()) MOE_TRY(run.DecodeStep());
    spent.prompt_s += prefilled_s - start_s, spent.decode_s += NowSeconds() - prefilled_s;
    spent.decode_tokens += run.num_generated() - generated;
  }
  spent.prompt_tokens = run.num_prompt_tokens();
  if (times != nullptr) *times = spent;
  return run.Finish();
}

}  // namespace moe
