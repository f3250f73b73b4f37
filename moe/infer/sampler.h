#pragma once
// Logits -> next token. Steps and their order are llama.cpp's default chain: repeat penalty, top-k, top-p, min-p, temperature,
// draw.

#include <cstdint>
#include <span>
#include <vector>

#include "moe/base/result.h"

namespace moe {

struct SamplerConfig {
  float temperature = 0.8f;     // 0: the most likely token that is left, always
  int32_t top_k = 40;           // keeps the k most likely tokens; 0: all
  float top_p = 0.95f;          // of those, the fewest whose probabilities sum to top_p or more (Holtzman et al. 2020); 1: all
  float min_p = 0.05f;          // of those, the ones at least min_p times as likely as the best (Nguyen et al. 2024); 0: all
  float repeat_penalty = 1.0f;  // divides positive, multiplies negative logits of recent tokens (Keskar et al. 2019); 1: off
  int32_t repeat_last_n = 64;   // how many recent tokens that looks at, the prompt among them; 0: none, -1: all
  uint64_t seed = 0;
};
// Wrong usage in one line that names the flag: "[--top-p] got 2, expected 0..1".
Status Validate(const SamplerConfig& config);

struct Candidate {
  int32_t token_id;
  double logit;        // after the penalty
  double probability;  // of being drawn; all candidates' sum to 1 but for rounding
};

// The tokens that may be drawn, most likely first (equal logits: lower id first). history: the sequence so far, in order.
// Errors: a NaN or +infinite logit; none finite. -infinity is allowed: that token is never drawn.
Result<std::vector<Candidate>> Candidates(const SamplerConfig& config, std::span<const float> logits,
                                          std::span<const int32_t> history);

// A pure function: the draw comes from (config.seed, token_index), so that neither threads nor other sequences have a say.
// token_index counts the tokens generated for this sequence.
Result<int32_t> SampleToken(const SamplerConfig& config, std::span<const float> logits, std::span<const int32_t> history,
                            int64_t token_index);

}  // namespace moe
