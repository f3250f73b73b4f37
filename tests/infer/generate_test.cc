#include "moe/infer/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "moe/files/utf8.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/test_context.h"
#include "testing/tiny_model.h"

namespace moe {
namespace {

using namespace moe::test;

constexpr int64_t kContext = 24;

// A model of bytes whose weights are wild enough to say something else after every prompt.
struct Tiny {
  TestContext t;
  Tokenizer tokenizer = Tokenizer::Bytes();
  Model model;
  explicit Tiny(int num_threads = 1, DType format = DType::kF32, int32_t eos_id = -1, int64_t vocab_size = 259)
      : Tiny(num_threads, format, Config(eos_id, vocab_size)) {}
  Tiny(int num_threads, DType format, const ModelConfig& config) : t(num_threads), model(config, format, false) {
    FillParameters(model, 5, t.ctx);
  }
  static ModelConfig Config(int32_t eos_id, int64_t vocab_size) {
    ModelConfig config = TinyMoe();
    config.vocab_size = vocab_size;
    config.context = kContext;
    config.bos_id = 256;
    config.eos_id = eos_id;
    return config;
  }

  std::vector<Generation> Run(std::span<const GenerateRequest> requests, GenerateOptions options = {}) {
    auto result = Generate(model, tokenizer, requests, options, nullptr, t.ctx);
    EXPECT_TRUE(result) << result.error().Message();
    return result ? std::move(*result) : std::vector<Generation>(requests.size());
  }
  Generation RunOne(const GenerateRequest& request, GenerateOptions options = {}) { return Run({&request, 1}, options)[0]; }
  std::string Message(const GenerateRequest& request) {
    const auto result = Generate(model, tokenizer, {&request, 1}, {}, nullptr, t.ctx);
    return result ? "done" : result.error().Message();
  }
};

SamplerConfig Greedy() {
  return {.temperature = 0};
}
// Draws from nearly everything.
SamplerConfig Wild(uint64_t seed) {
  return {.temperature = 1.5f, .top_k = 0, .top_p = 1, .min_p = 0, .seed = seed};
}

// What is not UTF-8 as U+FFFD.
std::string AsText(std::string_view bytes) {
  Utf8Stream stream;
  std::string text = stream.Push(bytes);
  return text += stream.Flush();
}

// Without a cache: the whole sequence again for every token.
std::vector<int32_t> NaiveTokens(Tiny& tiny, const GenerateRequest& request) {
  std::vector<int32_t> sequence = {256};
  sequence.insert(sequence.end(), request.prompt.begin(), request.prompt.end());
  std::vector<int32_t> generated;
  while (static_cast<int64_t>(generated.size()) < request.max_tokens &&
         (generated.empty() || generated.back() != tiny.tokenizer.eos_id())) {
    std::vector<RowInfo> rows;
    for (size_t i = 0; i < sequence.size(); ++i) {
      rows.push_back({.sequence = 0, .position = static_cast<int32_t>(i), .token_id = sequence[i]});
    }
    const std::vector<int32_t> last = {static_cast<int32_t>(rows.size()) - 1};
    tiny.t.arena.Reset();
    const auto logits = tiny.model.Forward({.rows = rows, .logit_rows = last}, nullptr, tiny.t.ctx).value();
    const auto token =
        SampleToken(request.sampler, logits.row_span(0), sequence, static_cast<int64_t>(generated.size())).value();
    sequence.push_back(token);
    generated.push_back(token);
  }
  return generated;
}

TEST(Generate, IsWhatRepeatedForwardPassesGive) {
  for (const DType format : {DType::kF32, DType::kBf16}) {
    Tiny tiny(1, format);
    Rng rng(1);
    for (const int64_t prompt : {0, 1, 5, 13}) {
      for (const SamplerConfig& sampler : {Greedy(), Wild(9), SamplerConfig{.repeat_penalty = 1.3f, .seed = 4}}) {
        const GenerateRequest request{.prompt = RandomInts(prompt, 256, rng), .max_tokens = 10, .sampler = sampler};
        const Generation got = tiny.RunOne(request);
        EXPECT_EQ(got.tokens, NaiveTokens(tiny, request)) << prompt;
      }
    }
  }
}

// Presets by their own numbers but for the capacity of evaluation, which would ask who else is there; and experts that differ,
// in a layer and from layer to layer.
std::vector<ModelConfig> ModelsOfManyKinds() {
  std::vector<ModelConfig> models;
  const auto another = [&]() -> std::vector<LayerSpec>& { return models.emplace_back(Tiny::Config(-1, 259)).layers; };
  for (const std::string_view name : PolicyNames()) {
    for (LayerSpec& layer : another()) {
      layer.moe.router = PolicyNamed(name).value();
      layer.moe.router.num_experts = 24;
      layer.moe.router.capacity.eval_factor = 0;
    }
  }
  const std::vector<std::vector<const char*>> kinds = {{"1 silu 16", "1 relu2 32 plain", "1 gelu 16 plain deep", "1 zero"},
                                                       {"1 gelu_tanh 32", "1 silu 16 deep", "1 copy", "1 constant"}};
  for (const auto& texts : kinds) {
    std::vector<ExpertGroup> groups;
    for (const char* text : texts) groups.push_back(ParseExpertGroup(text, "test").value());
    for (LayerSpec& layer : another()) SetExperts(groups, layer.moe);
    models.back().layers[0].moe.router.normalize_after_drop = true;
  }
  std::vector<LayerSpec>& layers = another();
  layers[0].moe.router.num_experts = 3;
  layers[1].moe.router.num_experts = 5;
  layers[1].moe.router.top_k = 3;
  for (LayerSpec& layer : layers) layer.moe.num_shared_experts = 1, layer.moe.shared_gate = true;
  return models;
}

TEST(Generate, IsWhatRepeatedForwardPassesGiveForEveryPresetAndKindOfExpert) {
  const std::vector<ModelConfig> models = ModelsOfManyKinds();
  Rng rng(3);
  for (size_t i = 0; i < models.size(); ++i) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      Tiny tiny(1, format, models[i]);
      const GenerateRequest request{.prompt = RandomInts(5, 256, rng), .max_tokens = 10, .sampler = Wild(i)};
      EXPECT_EQ(tiny.RunOne(request, {.prefill_rows = 3}).tokens, NaiveTokens(tiny, request)) << "model " << i;
    }
  }
}

// Prompts of all lengths side by side, cut into small steps, on two threads: nobody sees anybody.
TEST(Generate, CompanyDoesNotMatter) {
  Tiny one(1), two(2);
  Rng rng(2);
  std::vector<GenerateRequest> requests;
  for (uint64_t i = 0; i < 6; ++i) {
    requests.push_back({.prompt = RandomInts(rng.Below(16), 256, rng),
                        .max_tokens = 1 + rng.Below(12),
                        .sampler = i % 2 == 0 ? Wild(i) : Greedy()});
  }
  std::vector<Generation> alone;
  for (const GenerateRequest& request : requests) alone.push_back(one.RunOne(request));
  for (Tiny* tiny : {&one, &two}) {
    for (const int64_t prefill_rows : {1, 3, 512}) {
      const auto together = tiny->Run(requests, {.prefill_rows = prefill_rows});
      for (size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(together[i].tokens, alone[i].tokens) << i;
        EXPECT_EQ(together[i].text, alone[i].text);
        EXPECT_EQ(together[i].reason, alone[i].reason);
      }
    }
  }
}

TEST(Generate, TheSeedDecides) {
  Tiny tiny;
  GenerateRequest request{.prompt = {65, 66}, .max_tokens = 12, .sampler = Wild(1)};
  const auto first = tiny.RunOne(request).tokens;
  EXPECT_EQ(tiny.RunOne(request).tokens, first);
  request.sampler.seed = 2;
  EXPECT_NE(tiny.RunOne(request).tokens, first);
}

TEST(Generate, StopsAtTheNumberAskedFor) {
  Tiny tiny;
  for (const int64_t n : {0, 1, 7}) {
    const Generation got = tiny.RunOne({.prompt = {1, 2, 3}, .max_tokens = n, .sampler = Greedy()});
    EXPECT_EQ(static_cast<int64_t>(got.tokens.size()), n);
    EXPECT_EQ(got.reason, StopReason::kMaxTokens);
  }
}

// BOS and prompt take their places; the last token generated needs none.
TEST(Generate, StopsWhereTheContextIsFull) {
  Tiny tiny;
  for (const int64_t prompt : {0, 10, 22, 23}) {
    for (const int64_t n : {-1, 1000}) {
      const Generation got =
          tiny.RunOne({.prompt = std::vector<int32_t>(static_cast<size_t>(prompt), 7), .max_tokens = n, .sampler = Greedy()});
      EXPECT_EQ(static_cast<int64_t>(got.tokens.size()), kContext - prompt);
      EXPECT_EQ(got.reason, StopReason::kContext);
    }
  }
  EXPECT_EQ(tiny.RunOne({.prompt = std::vector<int32_t>(23, 7), .max_tokens = 1, .sampler = Greedy()}).reason,
            StopReason::kMaxTokens);
}

TEST(Generate, RefusesPromptsThatDoNotFit) {
  Tiny tiny;
  EXPECT_EQ(tiny.Message({.prompt = std::vector<int32_t>(24, 7)}), "[prompt] got 24 tokens, expected at most 23");
  EXPECT_EQ(tiny.Message({.prompt = {1, 259}}), "[prompt] got token 259, expected 0..258");
  EXPECT_EQ(tiny.Message({.prompt = {-1}}), "[prompt] got token -1, expected 0..258");
  EXPECT_EQ(tiny.Message({.prompt = {1}, .sampler = {.top_p = 2}}), "[--top-p] got 2, expected 0..1");
}

TEST(Generate, StopsAtEos) {
  const GenerateRequest request{.prompt = {10, 20}, .max_tokens = 15, .sampler = Wild(3)};
  const auto tokens = Tiny().RunOne(request).tokens;
  ASSERT_EQ(tokens.size(), 15u);
  const int32_t eos = tokens[6];
  const auto end = std::find(tokens.begin(), tokens.end(), eos) + 1;
  const Generation got = Tiny(1, DType::kF32, eos).RunOne(request);
  EXPECT_EQ(got.tokens, std::vector<int32_t>(tokens.begin(), end));
  EXPECT_EQ(got.reason, StopReason::kEos);
}

TEST(Generate, StopsAtAStopStringAndLeavesItOut) {
  Tiny tiny;
  GenerateRequest request{.prompt = {10, 20}, .max_tokens = 15, .sampler = Wild(3)};
  const auto tokens = tiny.RunOne(request).tokens;
  request.stop = {"never", tiny.tokenizer.Decode(std::span(tokens).subspan(4, 3))};
  const Generation got = tiny.RunOne(request);
  EXPECT_EQ(got.tokens, std::vector<int32_t>(tokens.begin(), tokens.begin() + 7));
  EXPECT_EQ(got.reason, StopReason::kStopString);
  EXPECT_EQ(got.text, AsText(tiny.tokenizer.Decode(std::span(tokens).first(4))));
}

TEST(Generate, StreamsWhatItReturns) {
  Tiny tiny;
  std::vector<GenerateRequest> requests;
  for (uint64_t i = 0; i < 3; ++i) requests.push_back({.prompt = {65}, .max_tokens = 15, .sampler = Wild(i)});
  std::vector<std::string> streamed(3);
  std::vector<int> calls(3);
  GenerateOptions options;
  options.on_text = [&](size_t s, std::string_view text) {
    EXPECT_EQ(ValidUtf8Prefix(text), text.size());
    streamed[s] += text;
    ++calls[s];
    return true;
  };
  const auto got = tiny.Run(requests, options);
  for (size_t s = 0; s < 3; ++s) {
    EXPECT_EQ(streamed[s], got[s].text);
    EXPECT_GE(calls[s], 15);
    EXPECT_EQ(got[s].text, AsText(tiny.tokenizer.Decode(got[s].tokens)));
  }
}

TEST(Generate, EndsWhenTheReaderLeaves) {
  Tiny tiny;
  int calls = 0;
  GenerateOptions options;
  options.on_text = [&](size_t, std::string_view) { return ++calls < 4; };
  const Generation got = tiny.RunOne({.prompt = {65}, .max_tokens = 15, .sampler = Greedy()}, options);
  EXPECT_EQ(got.tokens.size(), 4u);
  EXPECT_EQ(got.reason, StopReason::kCancelled);

  calls = 3;  // during the prompt
  options.prefill_rows = 2;
  EXPECT_EQ(tiny.RunOne({.prompt = std::vector<int32_t>(9, 1), .max_tokens = 15}, options).tokens.size(), 0u);
}

// A vocabulary padded to a round number: ids that the tokenizer does not know are never drawn.
TEST(Generate, DrawsOnlyTokensThatMeanSomething) {
  Tiny tiny(1, DType::kF32, -1, 4096);
  const Generation got = tiny.RunOne({.prompt = {65}, .sampler = Wild(1)});
  EXPECT_EQ(static_cast<int64_t>(got.tokens.size()), kContext - 1);
  EXPECT_LT(*std::max_element(got.tokens.begin(), got.tokens.end()), 259);
}

TEST(Generate, CountsTokensAndTime) {
  Tiny tiny;
  const std::vector<GenerateRequest> requests = {{.prompt = {1, 2, 3}, .max_tokens = 4}, {.prompt = {}, .max_tokens = 1}};
  GenerateTimes times;
  const auto got = Generate(tiny.model, tiny.tokenizer, requests, {}, &times, tiny.t.ctx);
  ASSERT_TRUE(got);
  EXPECT_EQ(times.prompt_tokens, 5);
  EXPECT_EQ(times.decode_tokens, 3);
  EXPECT_GT(times.prompt_s, 0);
  EXPECT_GT(times.decode_s, 0);
}

// Slots of the cache change hands: prompts of all lengths, texts that end early, one that is asked for nothing.
TEST(Generate, IsTheSameHoweverManyRunAtOnce) {
  Tiny tiny(2);
  Rng rng(8);
  std::vector<GenerateRequest> requests;
  for (uint64_t i = 0; i < 11; ++i) {
    requests.push_back({.prompt = RandomInts(static_cast<int64_t>(i * 5 % 14), 256, rng),
                        .max_tokens = static_cast<int64_t>(i * 7 % 10),
                        .sampler = Wild(i)});
  }
  std::vector<Generation> want;
  for (const GenerateRequest& request : requests) want.push_back(tiny.RunOne(request));
  for (const int64_t at_once : {1, 2, 3, 8, 0, 100}) {
    SCOPED_TRACE(at_once);
    std::vector<size_t> ended;
    int64_t under_way = 0;
    std::vector<bool> seen(requests.size());
    GenerateOptions options;
    options.at_once = at_once;
    options.on_text = [&](size_t s, std::string_view) {
      if (!seen[s]) seen[s] = true, ++under_way;
      EXPECT_LE(under_way, at_once == 0 ? 11 : at_once);
      return true;
    };
    options.on_end = [&](size_t s, const Generation& generation) {
      EXPECT_EQ(generation.tokens, want[s].tokens);
      if (seen[s]) --under_way;
      ended.push_back(s);
    };
    const auto got = tiny.Run(requests, options);
    for (size_t s = 0; s < requests.size(); ++s) {
      EXPECT_EQ(got[s].tokens, want[s].tokens) << s;
      EXPECT_EQ(got[s].text, want[s].text) << s;
      EXPECT_EQ(got[s].reason, want[s].reason) << s;
    }
    std::sort(ended.begin(), ended.end());
    ASSERT_EQ(ended.size(), requests.size());
    for (size_t s = 0; s < ended.size(); ++s) EXPECT_EQ(ended[s], s);
  }
}

TEST(Generate, NothingToDo) {
  Tiny tiny;
  EXPECT_TRUE(tiny.Run({}).empty());
}

TEST(Generate, DamagedWeightsAreAnError) {
  Tiny tiny;
  tiny.model.parameters().Find("final_norm")->value.data()[0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(tiny.Message({.prompt = {65}, .max_tokens = 3}),
            "[logits] got nan for token 0, expected a finite number; the model's weights may be damaged");
}

}  // namespace
}  // namespace moe
