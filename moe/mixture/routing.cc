#include "moe/mixture/routing.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace moe {
namespace {

// Tokens are worked on, and sums over tokens taken, in chunks of this size: never a share of a thread.
constexpr int64_t kChunk = 64;
constexpr int64_t kNoToken = -1;

int64_t NumChunks(int64_t T) {
  return (T + kChunk - 1) / kChunk;
}

bool GatesSumToOne(const RouterConfig& config) {
  return config.score == RouterScore::kTopKSoftmax || config.normalize;
}

// A logit and its expert as one integer that orders as wanted: by logit, equal ones (0 and -0 too) by lower expert.
int64_t KeyOf(float z, int64_t expert) {
  const auto bits = std::bit_cast<int32_t>(z + 0.0f);  // -0 + 0 is 0
  const int32_t ordered = bits ^ ((bits >> 31) & INT32_MAX);
  return (int64_t{ordered} << 32) | (INT32_MAX - expert);
}

// The k largest of z [E], best first, ties to the lowest index. keys: scratch [KeysSize(E)]. Largest of blocks' largest, k
// times: no branch depends on the data, which is why it beats inserting into a sorted list by far.
constexpr int64_t kBlock = 8;
int64_t KeysSize(int64_t E) {
  return (E + kBlock - 1) / kBlock * (kBlock + 1);
}
void SelectTopK(const float* z, int64_t E, int64_t k, int64_t* keys, int32_t* out) {
  const int64_t num_blocks = (E + kBlock - 1) / kBlock;
  int64_t* largest = keys + num_blocks * kBlock;  // [blocks]
  for (int64_t e = 0; e < E; ++e) keys[e] = KeyOf(z[e], e);
  for (int64_t e = E; e < num_blocks * kBlock; ++e) keys[e] = INT64_MIN;
  const auto largest_of = [](const int64_t* from, int64_t n) {
    int64_t most = from[0];
    for (int64_t i = 1; i < n; ++i) most = std::max(most, from[i]);
    return most;
  };
  for (int64_t b = 0; b < num_blocks; ++b) largest[b] = largest_of(keys + b * kBlock, kBlock);
  for (int64_t j = 0; j < k; ++j) {
    const int64_t expert = INT32_MAX - (largest_of(largest, num_blocks) & INT32_MAX), block = expert / kBlock;
    out[j] = static_cast<int32_t>(expert);
    keys[expert] = INT64_MIN;
    largest[block] = largest_of(keys + block * kBlock, kBlock);
  }
}

// Entropies of tokens are rounded to whole units of kEntropyUnit: then their sum is exact, and the same however tokens are
// grouped into steps (an evaluation must not depend on its batch).
double WholeUnits(double entropy) {
  return std::round(entropy / kEntropyUnit) * kEntropyUnit;
}

// What a chunk of tokens adds to the sums.
struct Partial {
  std::span<double> prob_sum;  // [E]
  std::span<int64_t> count;    // [E]
  double entropy = 0, z_loss = 0;
  int64_t bad_token = kNoToken;
};

}  // namespace

std::string_view Name(RouterScore score) {
  return std::ranges::find(kRouterScores, score, [](const auto& named) { return named.second; })->first;
}

Status Validate(const RouterConfig& config, const std::string& where) {
  if (config.num_experts < 1 || config.num_experts > INT32_MAX) {
    return Err(where + ": experts", "got {}, expected at least 1", config.num_experts);
  }
  if (config.top_k < 1 || config.top_k > config.num_experts) {
    return Err(where + ": top_k", "got {}, expected 1..{}, the number of experts", config.top_k, config.num_experts);
  }
  if (!std::isfinite(config.capacity_factor) || config.capacity_factor < 0) {
    return Err(where + ": capacity_factor", "got {}, expected a positive number, or 0 for dropless", config.capacity_factor);
  }
  if (!std::isfinite(config.balance_loss) || config.balance_loss < 0) {
    return Err(where + ": balance_loss", "got {}, expected 0 or a positive number", config.balance_loss);
  }
  if (!std::isfinite(config.z_loss) || config.z_loss < 0) {
    return Err(where + ": z_loss", "got {}, expected 0 or a positive number", config.z_loss);
  }
  if (config.top_k == 1 && config.num_experts > 1 && GatesSumToOne(config)) {
    return Err(where + ": top_k",
               "got 1 with gates that sum to 1 over the chosen, so that the router would get no gradient, expected the plain "
               "softmax score without normalize, or top_k >= 2");
  }
  return {};
}

Result<Routing> Route(const RouterConfig& config, MatView<const float> logits, std::span<const uint8_t> valid,
                      RouterSaved* saved, ExecContext& ctx) {
  const int64_t T = logits.rows, E = config.num_experts, k = config.top_k;
  MOE_CHECK(logits.cols == E, "{} logits per token for {} experts", logits.cols, E);
  MOE_CHECK(valid.empty() || static_cast<int64_t>(valid.size()) == T, "valid for {} of {} tokens", valid.size(), T);
  MOE_CHECK(T <= INT32_MAX / std::max<int64_t>(k, 1), "{} tokens, top-{}", T, k);

  const auto slot_begin = ctx.arena.Alloc<int32_t>(T + 1);
  slot_begin[0] = 0;
  for (int64_t t = 0; t < T; ++t) {
    const bool is_token = valid.empty() || valid[static_cast<size_t>(t)] != 0;
    slot_begin[static_cast<size_t>(t) + 1] = slot_begin[static_cast<size_t>(t)] + (is_token ? static_cast<int32_t>(k) : 0);
  }
  const int64_t S = slot_begin[static_cast<size_t>(T)];
  const auto expert = ctx.arena.Alloc<int32_t>(S);
  const auto gate = ctx.arena.Alloc<float>(S);
  RouterAux aux{.num_tokens = S / k, .tokens_per_expert = ctx.arena.AllocZero<int64_t>(E)};
  if (saved != nullptr) {
    if (saved->probs.empty()) saved->probs = {ctx.arena.Alloc<float>(T * E).data(), T, E};
    MOE_CHECK(saved->probs.rows == T && saved->probs.cols == E, "probs [{},{}]", saved->probs.rows, saved->probs.cols);
    saved->log_sum_exp = ctx.arena.Alloc<float>(T);
  }

  Arena::Scope scope(ctx.arena);
  const int64_t num_chunks = NumChunks(T);
  const auto partials = ctx.arena.Alloc<Partial>(num_chunks);
  const auto prob_sums = ctx.arena.AllocZero<double>(num_chunks * E);
  const auto counts = ctx.arena.AllocZero<int64_t>(num_chunks * E);
  const auto zeros = ctx.arena.AllocZero<float>(E);
  const auto scratch = ctx.arena.Alloc<float>(2 * E * ctx.pool.num_threads());
  const auto keys = ctx.arena.Alloc<int64_t>(KeysSize(E) * ctx.pool.num_threads());
  ctx.pool.ParallelFor(num_chunks, [&](int64_t chunk, int thread) {
    Partial partial{.prob_sum = prob_sums.subspan(static_cast<size_t>(chunk * E), static_cast<size_t>(E)),
                    .count = counts.subspan(static_cast<size_t>(chunk * E), static_cast<size_t>(E))};
    float* shifted = scratch.data() + 2 * E * thread;
    for (int64_t t = chunk * kChunk; t < std::min(T, (chunk + 1) * kChunk); ++t) {
      const int64_t s0 = slot_begin[static_cast<size_t>(t)];
      float* p = saved != nullptr ? saved->probs.row(t) : shifted + E;
      if (slot_begin[static_cast<size_t>(t) + 1] == s0) {  // padding
        if (saved != nullptr) {
          std::memset(p, 0, static_cast<size_t>(E) * sizeof(float));
          saved->log_sum_exp[static_cast<size_t>(t)] = 0;
        }
        continue;
      }
      const float* z = logits.row(t);
      if (ctx.kernels.dot(z, zeros.data(), E) != 0) {  // 0 * inf and 0 * NaN are NaN
        if (partial.bad_token == kNoToken) partial.bad_token = t;
        continue;
      }
      int32_t* chosen = expert.data() + s0;
      SelectTopK(z, E, k, keys.data() + KeysSize(E) * thread,
                 chosen);  // by logits: they tie less often than rounded probabilities, and order alike
      const float max = z[chosen[0]];
      for (int64_t e = 0; e < E; ++e) shifted[e] = z[e] - max;
      const float sum = ctx.kernels.exp_sum(shifted, 0, E, p);  // from here z may be gone: probs may lie over the logits
      float chosen_sum = 0;
      for (int64_t j = 0; j < k; ++j) chosen_sum += p[chosen[j]];
      const float denominator = GatesSumToOne(config) ? chosen_sum : sum;  // >= 1: the largest contributes exp(0)
      for (int64_t j = 0; j < k; ++j) {
        gate[static_cast<size_t>(s0 + j)] = p[chosen[j]] / denominator;
        ++partial.count[static_cast<size_t>(chosen[j])];
      }
      ctx.kernels.scale(1 / sum, E, p);
      for (int64_t e = 0; e < E; ++e) partial.prob_sum[static_cast<size_t>(e)] += p[e];
      const double log_sum = std::log(static_cast<double>(sum)), log_sum_exp = static_cast<double>(max) + log_sum;
      partial.entropy += WholeUnits(log_sum - static_cast<double>(ctx.kernels.dot(p, shifted, E)));
      partial.z_loss += log_sum_exp * log_sum_exp;
      if (saved != nullptr) saved->log_sum_exp[static_cast<size_t>(t)] = static_cast<float>(log_sum_exp);
    }
    partials[static_cast<size_t>(chunk)] = partial;
  });

  const auto prob_sum = ctx.arena.AllocZero<double>(E);
  for (const Partial& partial : partials) {  // in index order
    if (partial.bad_token != kNoToken) {
      const float* z = logits.row(partial.bad_token);
      const auto is_finite = [](float x) { return std::isfinite(x); };
      const float* bad = std::find_if_not(z, z + E, is_finite);
      return Err("router", "token {}: got logit {} for expert {}, expected finite numbers", partial.bad_token, *bad, bad - z);
    }
    aux.entropy += partial.entropy;
    aux.z_loss += partial.z_loss;
    for (size_t e = 0; e < static_cast<size_t>(E); ++e) {
      prob_sum[e] += partial.prob_sum[e];
      aux.tokens_per_expert[e] += partial.count[e];
    }
  }
  if (aux.num_tokens > 0) {
    const auto n = static_cast<double>(aux.num_tokens);
    for (size_t e = 0; e < static_cast<size_t>(E); ++e) {
      aux.balance_loss += static_cast<double>(aux.tokens_per_expert[e]) / (n * static_cast<double>(k)) * (prob_sum[e] / n);
    }
    aux.balance_loss *= static_cast<double>(E);
    aux.entropy /= n;
    aux.z_loss /= n;
  }
  return Routing{.slot_begin = slot_begin, .expert = expert, .gate = gate, .aux = aux};
}

void RouteBackward(const RouterConfig& config, const Routing& routing, const RouterSaved& saved, std::span<const float> d_gate,
                   float loss_scale, MatView<float> d_logits, ExecContext& ctx) {
  const int64_t T = saved.probs.rows, E = config.num_experts;
  MOE_CHECK(d_logits.rows == T && d_logits.cols == E, "d_logits [{},{}], expected [{},{}]", d_logits.rows, d_logits.cols, T, E);
  MOE_CHECK(d_gate.size() == routing.gate.size(), "{} gate gradients for {} slots", d_gate.size(), routing.gate.size());
  Arena::Scope scope(ctx.arena);
  // Switch loss by p[t][e]: coefficient * E * f_e / tokens, the same for every token. f_e is a constant.
  const auto d_prob = ctx.arena.Alloc<float>(E);
  const auto n = static_cast<double>(std::max<int64_t>(routing.aux.num_tokens, 1));
  const double balance =
      loss_scale * config.balance_loss * static_cast<double>(E) / (n * n * static_cast<double>(config.top_k));
  for (size_t e = 0; e < static_cast<size_t>(E); ++e) {
    d_prob[e] = static_cast<float>(balance * static_cast<double>(routing.aux.tokens_per_expert[e]));
  }
  const double z_factor = loss_scale * config.z_loss * 2 / n;  // d lse^2 / d z = 2 lse p
  const bool sum_to_one = GatesSumToOne(config);
  ctx.pool.ParallelFor(NumChunks(T), [&](int64_t chunk, int) {
    for (int64_t t = chunk * kChunk; t < std::min(T, (chunk + 1) * kChunk); ++t) {
      float* d_z = d_logits.row(t);
      const int64_t s0 = routing.slot_begin[static_cast<size_t>(t)], s1 = routing.slot_begin[static_cast<size_t>(t) + 1];
      if (s0 == s1) {  // padding
        std::memset(d_z, 0, static_cast<size_t>(E) * sizeof(float));
        continue;
      }
      const float* p = saved.probs.row(t);
      std::memcpy(d_z, d_prob.data(), static_cast<size_t>(E) * sizeof(float));
      const int32_t* chosen = routing.expert.data();
      if (!sum_to_one) {
        for (int64_t s = s0; s < s1; ++s) d_z[chosen[s]] += d_gate[static_cast<size_t>(s)];
      }
      // Through the softmax: p_e (d_e - <p, d>).
      const float mean = ctx.kernels.dot(p, d_z, E);
      const float shift = static_cast<float>(z_factor * saved.log_sum_exp[static_cast<size_t>(t)]) - mean;
      for (int64_t e = 0; e < E; ++e) d_z[e] = p[e] * (d_z[e] + shift);
      if (sum_to_one) {  // g = softmax over the chosen: g_j (d_j - <g, d>), all chosen in the sum, dropped ones with d = 0
        float chosen_mean = 0;
        for (int64_t s = s0; s < s1; ++s) chosen_mean += routing.gate[static_cast<size_t>(s)] * d_gate[static_cast<size_t>(s)];
        for (int64_t s = s0; s < s1; ++s) {
          d_z[chosen[s]] += routing.gate[static_cast<size_t>(s)] * (d_gate[static_cast<size_t>(s)] - chosen_mean);
        }
      }
    }
  });
}

}  // namespace moe
