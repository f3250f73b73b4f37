#include "moe/mixture/routing.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "moe/mixture/route_row.h"
#include "moe/mixture/router_losses.h"

namespace moe {
namespace {

// Tokens are worked on, and sums over tokens taken, in chunks of this size: never a share of a thread.
constexpr int64_t kChunk = 64;
constexpr int64_t kNoToken = -1;

int64_t NumChunks(int64_t T) {
  return (T + kChunk - 1) / kChunk;
}

// What a chunk of tokens adds to the sums.
struct Partial {
  std::span<double> prob_sum;  // [E]
  std::span<int64_t> count;    // [E]
  std::span<double> load;      // [E] of the load loss, else empty
  double entropy = 0, z_loss = 0, gate_sum = 0;
  float largest_logit = 0;
  int64_t bad_token = kNoToken;
};

// The largest |z|; NaN or infinity where one of them is. As whole numbers: floats without their sign are in the same order, NaN
// above all, and compilers take eight at a time.
float LargestAbs(const float* z, int64_t n) {
  constexpr int64_t kLanes = 8;
  const auto bits = [&](int64_t i) { return std::bit_cast<int32_t>(z[i]) & 0x7fffffff; };
  std::array<int32_t, kLanes> most = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) most[static_cast<size_t>(j)] = std::max(most[static_cast<size_t>(j)], bits(i + j));
  }
  for (; i < n; ++i) most[0] = std::max(most[0], bits(i));
  return std::bit_cast<float>(*std::ranges::max_element(most));
}

// Slots of each token: k, or those of the experts above 0; none of a padding row, nor before experts have chosen.
std::span<int32_t> CountSlots(const RouterConfig& config, const RouteInput& input, ExecContext& ctx) {
  const int64_t T = input.logits.rows, E = config.num_experts;
  const auto slot_begin = ctx.arena.Alloc<int32_t>(T + 1);
  slot_begin[0] = 0;
  const bool varies = config.score == RouterScore::kRelu, by_experts = config.selection == RouterSelection::kExpertChoice;
  if (varies) {
    ctx.pool.ParallelFor(NumChunks(T), [&](int64_t chunk, int) {
      for (int64_t t = chunk * kChunk; t < std::min(T, (chunk + 1) * kChunk); ++t) {
        const float* z = input.logits.row(t);
        slot_begin[static_cast<size_t>(t) + 1] = static_cast<int32_t>(std::count_if(z, z + E, [](float v) { return v > 0; }));
      }
    });
  }
  for (int64_t t = 0; t < T; ++t) {
    const bool is_token = input.valid.empty() || input.valid[static_cast<size_t>(t)] != 0;
    int32_t& end = slot_begin[static_cast<size_t>(t) + 1];
    end = slot_begin[static_cast<size_t>(t)] + (!is_token || by_experts ? 0
                                                : varies                ? end
                                                                        : static_cast<int32_t>(config.top_k));
  }
  return slot_begin;
}

// The slots that experts chose: for each token its experts, best first.
void SlotsOfExperts(const RowRouter& policy, const RouterSaved& saved, Routing& routing, ExecContext& ctx) {
  const RouterConfig& config = policy.config;
  const int64_t T = saved.probs.rows, E = config.num_experts;
  const MatView<uint8_t> taken{ctx.arena.Alloc<uint8_t>(T * E).data(), T, E};
  ChooseTokens(config, saved.probs, saved.score_sum, policy.input.valid, taken, ctx);
  const auto slot_begin = ctx.arena.Alloc<int32_t>(T + 1);
  slot_begin[0] = 0;
  for (int64_t t = 0; t < T; ++t) {
    const auto count = std::count(taken.row(t), taken.row(t) + E, uint8_t{1});
    slot_begin[static_cast<size_t>(t) + 1] = slot_begin[static_cast<size_t>(t)] + static_cast<int32_t>(count);
  }
  const int64_t S = slot_begin[static_cast<size_t>(T)];
  const auto expert = ctx.arena.Alloc<int32_t>(S);
  routing.gate = ctx.arena.Alloc<float>(S);
  for (int64_t t = 0; t < T; ++t) {
    const auto begin = static_cast<size_t>(slot_begin[static_cast<size_t>(t)]);
    const auto own = expert.subspan(begin, static_cast<size_t>(slot_begin[static_cast<size_t>(t) + 1]) - begin);
    size_t next = 0;
    for (int64_t e = 0; e < E; ++e) {
      if (taken(t, e) != 0) own[next++] = static_cast<int32_t>(e), ++routing.aux.tokens_per_expert[static_cast<size_t>(e)];
    }
    const float* p = saved.probs.row(t);
    std::ranges::stable_sort(own, [&](int32_t a, int32_t b) { return p[a] > p[b]; });
    RouteRow row{.gate = routing.gate.data() + begin, .count = static_cast<int64_t>(own.size())};
    for (size_t j = 0; j < own.size(); ++j) row.gate[j] = p[own[j]] * saved.score_sum[static_cast<size_t>(t)];
    policy.FinishGates(row);
    routing.aux.gate_sum += WholeUnits(std::accumulate(row.gate, row.gate + row.count, 0.0));
  }
  routing.slot_begin = slot_begin, routing.expert = expert;
}

void CheckInput(const RouterConfig& config, const RouteInput& input) {
  const int64_t T = input.logits.rows, E = config.num_experts;
  const auto rows_of = [](const auto& span) { return static_cast<int64_t>(span.size()); };
  MOE_CHECK(input.logits.cols == E, "{} logits per token for {} experts", input.logits.cols, E);
  MOE_CHECK(input.valid.empty() || rows_of(input.valid) == T, "valid for {} of {} tokens", input.valid.size(), T);
  MOE_CHECK(input.selection_bias.empty() || rows_of(input.selection_bias) == E, "a bias of {} for {}",
            input.selection_bias.size(), E);
  MOE_CHECK(input.tokens_before.empty() || rows_of(input.tokens_before) == E, "counts of {} for {}", input.tokens_before.size(),
            E);
  MOE_CHECK(config.selection != RouterSelection::kHash || rows_of(input.ids) == T, "ids of {} of {} tokens", input.ids.size(),
            T);
  MOE_CHECK(input.sequence_begin.empty() || (input.sequence_begin.front() == 0 && input.sequence_begin.back() == T),
            "sequences of other rows than {}", T);
  const int64_t most = config.has_varying_k() ? E : config.top_k;  // slots of a token
  MOE_CHECK(T <= INT32_MAX / std::max<int64_t>(most, 1), "{} tokens, top-{}", T, most);
}

tl::unexpected<Error> NotFinite(MatView<const float> logits, int64_t t) {
  const float* z = logits.row(t);
  const float* bad = std::find_if_not(z, z + logits.cols, [](float x) { return std::isfinite(x); });
  return Err("router", "token {}: got logit {} for expert {}, expected finite numbers", t, *bad, bad - z);
}

// From sums to means, and what the losses need of the choices. saved may be null.
void FinishAux(const RouterConfig& config, std::span<const double> prob_sum, RouterSaved* saved, Routing& routing,
               ExecContext& ctx) {
  RouterAux& aux = routing.aux;
  if (aux.num_tokens == 0) return;
  const auto n = static_cast<double>(aux.num_tokens), slots = static_cast<double>(std::max<size_t>(routing.gate.size(), 1));
  for (size_t e = 0; e < prob_sum.size(); ++e) {
    aux.balance_loss += static_cast<double>(aux.tokens_per_expert[e]) / slots * (prob_sum[e] / n);
  }
  aux.balance_loss *= static_cast<double>(config.num_experts);
  aux.entropy /= n;
  aux.z_loss /= n;
  if (saved == nullptr) return;
  for (size_t t = 0; config.gshard_loss > 0 && t + 1 < routing.slot_begin.size(); ++t) {
    const int32_t first = routing.slot_begin[t];
    if (first < routing.slot_begin[t + 1]) {
      ++saved->first_choices[static_cast<size_t>(routing.expert[static_cast<size_t>(first)])];
    }
  }
  MeasureLosses(config, *saved, routing, ctx);
}

}  // namespace

Result<Routing> Route(const RouterConfig& config, const RouteInput& input, RouterSaved* saved, ExecContext& ctx) {
  CheckInput(config, input);
  const MatView<const float> logits = input.logits;
  const std::span<const uint8_t> valid = input.valid;
  const int64_t T = logits.rows, E = config.num_experts;
  const bool sparsemixer = config.score == RouterScore::kSparsemixer;
  const bool by_experts = config.selection == RouterSelection::kExpertChoice;
  RouterSaved own;
  if (saved == nullptr && by_experts) saved = &own;  // experts see all tokens before they choose

  const auto slot_begin = CountSlots(config, input, ctx);
  const int64_t S = slot_begin[static_cast<size_t>(T)];
  const auto expert = ctx.arena.Alloc<int32_t>(S);
  Routing routing{.slot_begin = slot_begin,
                  .expert = expert,
                  .gate = ctx.arena.Alloc<float>(S),
                  .valid = valid,
                  .aux = {.tokens_per_expert = ctx.arena.AllocZero<int64_t>(E)}};
  RouterAux& aux = routing.aux;
  if (saved != nullptr) {
    if (saved->probs.empty()) saved->probs = {ctx.arena.Alloc<float>(T * E).data(), T, E};
    MOE_CHECK(saved->probs.rows == T && saved->probs.cols == E, "probs [{},{}]", saved->probs.rows, saved->probs.cols);
    saved->log_sum_exp = ctx.arena.Alloc<float>(T);
    saved->score_sum = ctx.arena.Alloc<float>(T);
    saved->prob_sum = ctx.arena.AllocZero<double>(E);
    saved->first_choices = ctx.arena.AllocZero<int64_t>(E);
    saved->sequence_begin = input.sequence_begin, saved->tokens_before = input.tokens_before;
    saved->softmax = saved->near = saved->load_slope = {};
    if (IsElementwise(config.score) && config.z_loss > 0) saved->softmax = {ctx.arena.Alloc<float>(T * E).data(), T, E};
    if (sparsemixer) saved->near = {ctx.arena.Alloc<float>(S * E).data(), S, E};
    if (config.load_loss > 0 && input.training) {
      saved->load_slope = {ctx.arena.Alloc<float>(T * E).data(), T, E};
      saved->next_best = ctx.arena.Alloc<int32_t>(T);
      saved->load = ctx.arena.AllocZero<double>(E);
    }
  }
  const bool has_load = saved != nullptr && !saved->load_slope.empty();
  const bool balances = input.training && config.selection == RouterSelection::kSinkhorn;
  const auto log_column = ctx.arena.Alloc<float>(balances ? E : 0);

  const auto prob_sum = saved != nullptr ? saved->prob_sum : ctx.arena.AllocZero<double>(E);
  const int64_t num_chunks = NumChunks(T);
  {
    Arena::Scope scope(ctx.arena);
    const auto partials = ctx.arena.Alloc<Partial>(num_chunks);
    const auto prob_sums = ctx.arena.AllocZero<double>(num_chunks * E);
    const auto counts = ctx.arena.AllocZero<int64_t>(num_chunks * E);
    const auto loads = ctx.arena.AllocZero<double>(has_load ? num_chunks * E : 0);
    const auto scratch = ctx.arena.Alloc<RowScratch>(ctx.pool.num_threads());
    const auto own_p = ctx.arena.Alloc<float>(E * ctx.pool.num_threads());
    const auto own_near = ctx.arena.Alloc<float>(sparsemixer ? config.top_k * E * ctx.pool.num_threads() : 0);
    for (RowScratch& s : scratch) {
      s = {.shifted = ctx.arena.Alloc<float>(E).data(),
           .values = ctx.arena.Alloc<float>(E).data(),
           .exps = ctx.arena.Alloc<float>(E).data(),
           .noisy = ctx.arena.Alloc<float>(E).data(),
           .best = ctx.arena.Alloc<int32_t>(has_load ? config.top_k + 1 : 0).data(),
           .selection = SelectionScratch::Alloc(config, ctx)};
    }
    const auto is_token = [&](int64_t t) { return valid.empty() || valid[static_cast<size_t>(t)] != 0; };
    for (int64_t t = 0; t < (balances ? T : 0); ++t) {
      if (is_token(t) && !std::isfinite(LargestAbs(logits.row(t), E))) return NotFinite(logits, t);
    }
    if (balances) Sinkhorn(config, logits, valid, log_column, ctx);
    const RowRouter policy{config, input, log_column, ctx};
    ctx.pool.ParallelFor(num_chunks, [&](int64_t chunk, int thread) {
      Partial partial{.prob_sum = prob_sums.subspan(static_cast<size_t>(chunk * E), static_cast<size_t>(E)),
                      .count = counts.subspan(static_cast<size_t>(chunk * E), static_cast<size_t>(E))};
      if (has_load) partial.load = loads.subspan(static_cast<size_t>(chunk * E), static_cast<size_t>(E));
      for (int64_t t = chunk * kChunk; t < std::min(T, (chunk + 1) * kChunk); ++t) {
        const int64_t s0 = slot_begin[static_cast<size_t>(t)];
        float* p = saved != nullptr ? saved->probs.row(t) : own_p.data() + E * thread;
        if (!is_token(t)) {
          if (saved == nullptr) continue;
          std::memset(p, 0, static_cast<size_t>(E) * sizeof(float));
          saved->log_sum_exp[static_cast<size_t>(t)] = saved->score_sum[static_cast<size_t>(t)] = 0;
          if (!saved->softmax.empty()) std::memset(saved->softmax.row(t), 0, static_cast<size_t>(E) * sizeof(float));
          continue;
        }
        const float* z = logits.row(t);
        const float largest = LargestAbs(z, E);
        if (!std::isfinite(largest)) {
          if (partial.bad_token == kNoToken) partial.bad_token = t;
          continue;
        }
        RouteRow row{
            .t = t,
            .z = z,
            .p = p,
            .chosen = expert.data() + s0,
            .gate = routing.gate.data() + s0,
            .count = slot_begin[static_cast<size_t>(t) + 1] - s0,
            .near = saved != nullptr && sparsemixer ? saved->near.row(s0) : own_near.data() + config.top_k * E * thread,
            .softmax = saved != nullptr && !saved->softmax.empty() ? saved->softmax.row(t) : nullptr};
        if (has_load) {
          row.load_slope = saved->load_slope.row(t), row.load = partial.load.data();
          row.next_best = &saved->next_best[static_cast<size_t>(t)];
        }
        policy.Run(row, scratch[static_cast<size_t>(thread)]);
        double gate_sum = 0;
        for (int64_t j = 0; j < row.count; ++j) {
          ++partial.count[static_cast<size_t>(row.chosen[j])];
          gate_sum += row.gate[j];
        }
        partial.gate_sum += WholeUnits(gate_sum);
        partial.largest_logit = std::max(partial.largest_logit, largest);
        for (int64_t e = 0; e < E; ++e) partial.prob_sum[static_cast<size_t>(e)] += p[e];
        partial.entropy += row.entropy;
        partial.z_loss += row.log_sum_exp * row.log_sum_exp;
        if (saved != nullptr) {
          saved->log_sum_exp[static_cast<size_t>(t)] = static_cast<float>(row.log_sum_exp);
          saved->score_sum[static_cast<size_t>(t)] = row.score_sum;
        }
      }
      partials[static_cast<size_t>(chunk)] = partial;
    });

    for (const Partial& partial : partials) {  // in index order
      if (partial.bad_token != kNoToken) return NotFinite(logits, partial.bad_token);
      aux.entropy += partial.entropy;
      aux.z_loss += partial.z_loss;
      aux.gate_sum += partial.gate_sum;
      aux.largest_logit = std::max(aux.largest_logit, static_cast<double>(partial.largest_logit));
      for (size_t e = 0; e < static_cast<size_t>(E); ++e) {
        prob_sum[e] += partial.prob_sum[e];
        aux.tokens_per_expert[e] += partial.count[e];
        if (has_load) saved->load[e] += partial.load[e];
      }
    }
    aux.num_tokens = valid.empty() ? T : T - std::count(valid.begin(), valid.end(), uint8_t{0});
  }
  if (by_experts) SlotsOfExperts({config, input, {}, ctx}, *saved, routing, ctx);
  FinishAux(config, prob_sum, saved, routing, ctx);
  return routing;
}

void NormalizeKept(const RouterConfig& config, std::span<const int32_t> slot_row, Routing& routing, ExecContext& ctx) {
  if (!config.normalize_after_drop) return;
  const int64_t T = static_cast<int64_t>(routing.slot_begin.size()) - 1;
  const auto scale = static_cast<float>(config.scale), epsilon = static_cast<float>(config.normalize_epsilon);
  ctx.pool.ParallelFor(NumChunks(T), [&](int64_t chunk, int) {
    for (int64_t t = chunk * kChunk; t < std::min(T, (chunk + 1) * kChunk); ++t) {
      const auto begin = static_cast<size_t>(routing.slot_begin[static_cast<size_t>(t)]);
      const auto end = static_cast<size_t>(routing.slot_begin[static_cast<size_t>(t) + 1]);
      float sum = 0;
      for (size_t s = begin; s < end; ++s) sum += slot_row[s] >= 0 ? routing.gate[s] / scale : 0;
      for (size_t s = begin; s < end; ++s)
        routing.gate[s] = slot_row[s] >= 0 && sum > 0 ? routing.gate[s] / (sum + epsilon) : 0;
    }
  });
}

}  // namespace moe
