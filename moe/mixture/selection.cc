#include "moe/mixture/selection.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "moe/base/rng.h"
#include "moe/ops/chunks.h"

namespace moe {
namespace {

constexpr int64_t kBlock = 8;
constexpr int64_t kSinkhornChunk = 64;  // tokens

int64_t NumBlocks(int64_t E) {
  return (E + kBlock - 1) / kBlock;
}

// A value and its expert as one integer that orders as wanted: by value, equal ones (0 and -0 too) by lower expert.
int64_t KeyOf(float v, int64_t expert) {
  const auto bits = std::bit_cast<int32_t>(v + 0.0f);  // -0 + 0 is 0
  const int32_t ordered = bits ^ ((bits >> 31) & INT32_MAX);
  return (int64_t{ordered} << 32) | (INT32_MAX - expert);
}

}  // namespace

SelectionScratch SelectionScratch::Alloc(const RouterConfig& config, ExecContext& ctx) {
  const int64_t most = std::max(config.num_experts, config.groups);
  return {.keys = ctx.arena.Alloc<int64_t>(NumBlocks(most) * (kBlock + 1)),
          .group_score = ctx.arena.Alloc<float>(config.groups),
          .group = ctx.arena.Alloc<int32_t>(config.groups)};
}

// Largest of blocks' largest, k times: no branch depends on the data, which is why it beats inserting into a sorted list by
// far.
void SelectTopK(const float* v, int64_t E, int64_t k, std::span<int64_t> keys, int32_t* chosen) {
  const int64_t num_blocks = NumBlocks(E);
  int64_t* key = keys.data();
  int64_t* largest = key + num_blocks * kBlock;  // [blocks]
  for (int64_t e = 0; e < E; ++e) key[e] = KeyOf(v[e], e);
  for (int64_t e = E; e < num_blocks * kBlock; ++e) key[e] = INT64_MIN;
  const auto largest_of = [](const int64_t* from, int64_t n) {
    int64_t most = from[0];
    for (int64_t i = 1; i < n; ++i) most = std::max(most, from[i]);
    return most;
  };
  for (int64_t b = 0; b < num_blocks; ++b) largest[b] = largest_of(key + b * kBlock, kBlock);
  for (int64_t j = 0; j < k; ++j) {
    const int64_t expert = INT32_MAX - (largest_of(largest, num_blocks) & INT32_MAX), block = expert / kBlock;
    chosen[j] = static_cast<int32_t>(expert);
    key[expert] = INT64_MIN;
    largest[block] = largest_of(key + block * kBlock, kBlock);
  }
}

void MaskGroups(const RouterConfig& config, float* v, const SelectionScratch& scratch) {
  const int64_t n = config.groups, size = config.num_experts / n;
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  for (int64_t g = 0; g < n; ++g) {
    float best = kNone, next = kNone;
    for (int64_t i = g * size; i < (g + 1) * size; ++i) {
      next = std::max(next, std::min(best, v[i]));
      best = std::max(best, v[i]);
    }
    scratch.group_score[static_cast<size_t>(g)] = config.group_score == GroupScore::kSumOfTwo ? best + next : best;
  }
  const auto kept = scratch.group.first(static_cast<size_t>(config.top_groups));
  SelectTopK(scratch.group_score.data(), n, config.top_groups, scratch.keys, kept.data());
  std::ranges::sort(kept);
  int64_t from = 0;  // the first expert that may have to be masked
  const auto mask_until = [&](int64_t expert) {
    if (from < expert) std::fill(v + from, v + expert, config.zero_other_groups ? 0.0f : kNone);
  };
  for (const int32_t g : kept) {
    mask_until(g * size);
    from = (g + 1) * size;
  }
  mask_until(config.num_experts);
}

void HashValues(int32_t id, int64_t E, float* values) {
  Rng rng(static_cast<uint64_t>(id), /*stream=*/0x6861736865640000u);
  for (int64_t e = 0; e < E; ++e) values[e] = static_cast<float>(rng.Uniform());
}

int64_t Sinkhorn(const RouterConfig& config, MatView<const float> logits, std::span<const uint8_t> valid,
                 std::span<float> log_column, ExecContext& ctx) {
  const int64_t T = logits.rows, E = logits.cols, num_chunks = CeilDiv(T, kSinkhornChunk);
  std::ranges::fill(log_column, 0.0f);
  const int64_t tokens = valid.empty() ? T : T - std::count(valid.begin(), valid.end(), uint8_t{0});
  if (tokens == 0) return 0;
  Arena::Scope scope(ctx.arena);
  const auto weights = ctx.arena.Alloc<float>(T * E);  // exp(z - the row's largest)
  const auto column = ctx.arena.Alloc<float>(E);
  const auto sums = ctx.arena.Alloc<double>(num_chunks * E);
  const auto is_token = [&](int64_t t) { return valid.empty() || valid[static_cast<size_t>(t)] != 0; };
  std::ranges::fill(column, 1.0f);
  ctx.pool.ParallelFor(num_chunks, [&](int64_t chunk, int) {
    for (int64_t t = chunk * kSinkhornChunk; t < std::min(T, (chunk + 1) * kSinkhornChunk); ++t) {
      float* w = weights.data() + t * E;
      if (is_token(t)) ctx.kernels.exp_sum(logits.row(t), ctx.kernels.max(logits.row(t), E), E, w);
    }
  });
  const auto wanted_row = 1 / static_cast<double>(tokens), wanted_column = 1 / static_cast<double>(E);
  constexpr double kLargest = 1e30;  // of a factor, and its inverse: logits may lie that far apart
  int64_t round = 0;
  for (double change = INFINITY; round < config.sinkhorn_rounds && change > config.sinkhorn_tolerance; ++round) {
    ctx.pool.ParallelFor(num_chunks, [&](int64_t chunk, int) {
      double* sum = sums.data() + chunk * E;
      std::fill_n(sum, E, 0.0);
      for (int64_t t = chunk * kSinkhornChunk; t < std::min(T, (chunk + 1) * kSinkhornChunk); ++t) {
        if (!is_token(t)) continue;
        const float* w = weights.data() + t * E;
        const auto row = static_cast<float>(wanted_row / static_cast<double>(ctx.kernels.dot(w, column.data(), E)));
        for (int64_t e = 0; e < E; ++e) sum[e] += static_cast<double>(row * w[e]);
      }
    });
    change = 0;
    for (int64_t e = 0; e < E; ++e) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < num_chunks; ++chunk) sum += sums[static_cast<size_t>(chunk * E + e)];
      const auto next = static_cast<float>(sum > 0 ? std::clamp(wanted_column / sum, 1 / kLargest, kLargest) : kLargest);
      change += std::fabs(1 - static_cast<double>(column[static_cast<size_t>(e)]) / static_cast<double>(next));
      column[static_cast<size_t>(e)] = next;
    }
    change /= static_cast<double>(E);
  }
  for (int64_t e = 0; e < E; ++e) log_column[static_cast<size_t>(e)] = std::log(column[static_cast<size_t>(e)]);
  return round;
}

void ChooseTokens(const RouterConfig& config, MatView<const float> p, std::span<const float> score_sum,
                  std::span<const uint8_t> valid, MatView<uint8_t> taken, ExecContext& ctx) {
  const int64_t T = p.rows, E = p.cols;
  for (int64_t t = 0; t < T; ++t) std::fill_n(taken.row(t), E, uint8_t{0});
  Arena::Scope scope(ctx.arena);
  const auto tokens = ctx.arena.Alloc<int32_t>(T);
  int64_t n = 0;
  for (int64_t t = 0; t < T; ++t) {
    if (valid.empty() || valid[static_cast<size_t>(t)] != 0) tokens[static_cast<size_t>(n++)] = static_cast<int32_t>(t);
  }
  const int64_t each = std::min(n, CeilDiv(n * config.top_k, E));
  const auto order = ctx.arena.Alloc<int32_t>(n * ctx.pool.num_threads());
  ctx.pool.ParallelFor(E, [&](int64_t e, int thread) {
    const auto own = order.subspan(static_cast<size_t>(n * thread), static_cast<size_t>(n));
    std::copy_n(tokens.begin(), n, own.begin());
    const auto score = [&](int32_t t) { return p(t, e) * score_sum[static_cast<size_t>(t)]; };
    std::nth_element(own.begin(), own.begin() + each, own.end(), [&](int32_t a, int32_t b) {
      const float x = score(a), y = score(b);
      return x != y ? x > y : a < b;
    });
    for (int64_t i = 0; i < each; ++i) taken.row(own[static_cast<size_t>(i)])[e] = 1;
  });
}

}  // namespace moe
