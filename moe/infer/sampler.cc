#include "moe/infer/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/base/check.h"
#include "moe/base/rng.h"

namespace moe {
namespace {

Status CheckLogits(std::span<const float> logits) {
  float largest = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
      return Err("logits", "got {} for token {}, expected a finite number; the model's weights may be damaged", logits[i], i);
    }
    largest = std::max(largest, logits[i]);
  }
  if (!std::isfinite(largest)) return Err("logits", "got no finite value among {}, expected at least one", logits.size());
  return {};
}

bool MoreLikely(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token_id < b.token_id);
}

void Penalize(const SamplerConfig& config, std::span<const int32_t> history, std::span<Candidate> by_token) {
  if (config.repeat_penalty == 1 || config.repeat_last_n == 0) return;
  const auto window = config.repeat_last_n < 0 ? history.size() : static_cast<size_t>(config.repeat_last_n);
  auto recent = std::vector<int32_t>(history.end() - static_cast<int64_t>(std::min(window, history.size())), history.end());
  std::sort(recent.begin(), recent.end());
  recent.erase(std::unique(recent.begin(), recent.end()), recent.end());  // however often it occurred, once
  for (const int32_t token : recent) {
    MOE_CHECK(token >= 0 && static_cast<size_t>(token) < by_token.size(), "token {} of {}", token, by_token.size());
    double& logit = by_token[static_cast<size_t>(token)].logit;
    logit = logit > 0 ? logit / config.repeat_penalty : logit * config.repeat_penalty;
  }
}

// Sets probabilities softmax(logit / temperature) of sorted candidates; returns their sum before dividing by it.
void Softmax(double temperature, std::span<Candidate> sorted) {
  double sum = 0;
  for (Candidate& c : sorted) sum += c.probability = std::exp((c.logit - sorted[0].logit) / temperature);
  for (Candidate& c : sorted) c.probability /= sum;
}

}  // namespace

Status Validate(const SamplerConfig& config) {
  if (!(config.temperature >= 0) || std::isinf(config.temperature)) {
    return UsageErr("--temperature", "got {}, expected 0 or a positive number", config.temperature);
  }
  if (config.top_k < 0) return UsageErr("--top-k", "got {}, expected 0 (all) or more", config.top_k);
  if (!(config.top_p >= 0 && config.top_p <= 1)) return UsageErr("--top-p", "got {}, expected 0..1", config.top_p);
  if (!(config.min_p >= 0 && config.min_p <= 1)) return UsageErr("--min-p", "got {}, expected 0..1", config.min_p);
  if (!(config.repeat_penalty > 0) || std::isinf(config.repeat_penalty)) {
    return UsageErr("--repeat-penalty", "got {}, expected a positive number", config.repeat_penalty);
  }
  if (config.repeat_last_n < -1) {
    return UsageErr("--repeat-last-n", "got {}, expected 0 (none), -1 (all) or more", config.repeat_last_n);
  }
  return {};
}

Result<std::vector<Candidate>> Candidates(const SamplerConfig& config, std::span<const float> logits,
                                          std::span<const int32_t> history) {
  MOE_TRY(CheckLogits(logits));
  std::vector<Candidate> candidates(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) candidates[i] = {static_cast<int32_t>(i), logits[i], 0};
  Penalize(config, history, candidates);
  std::erase_if(candidates, [](const Candidate& c) { return c.logit == -std::numeric_limits<double>::infinity(); });

  const size_t k = config.temperature == 0 ? 1 : static_cast<size_t>(config.top_k);
  if (k > 0 && k < candidates.size()) {
    std::partial_sort(candidates.begin(), candidates.begin() + static_cast<int64_t>(k), candidates.end(), MoreLikely);
    candidates.resize(k);
  } else {
    std::sort(candidates.begin(), candidates.end(), MoreLikely);
  }
  if (config.temperature == 0) {
    candidates[0].probability = 1;
    return candidates;
  }
  if (config.top_p < 1) {
    Softmax(1, candidates);
    double sum = 0;
    size_t kept = 0;
    while (kept < candidates.size() && (kept == 0 || sum < config.top_p)) sum += candidates[kept++].probability;
    candidates.resize(kept);
  }
  if (config.min_p > 0) {
    const double least = candidates[0].logit + std::log(static_cast<double>(config.min_p));
    const auto end =
        std::find_if(candidates.begin() + 1, candidates.end(), [&](const Candidate& c) { return c.logit < least; });
    candidates.erase(end, candidates.end());
  }
  Softmax(config.temperature, candidates);
  return candidates;
}

Result<int32_t> SampleToken(const SamplerConfig& config, std::span<const float> logits, std::span<const int32_t> history,
                            int64_t token_index) {
  MOE_TRY(const auto candidates, Candidates(config, logits, history));
  double left = Rng(config.seed, static_cast<uint64_t>(token_index)).Uniform();
  for (const Candidate& c : candidates) {
    if (left < c.probability) return c.token_id;
    left -= c.probability;
  }
  return candidates.back().token_id;  // the sum may fall short of 1 by rounding
}

}  // namespace moe
