#include "moe/mixture/dispatch_plan.h"

#include <algorithm>

namespace moe {
namespace {

constexpr int64_t kChunk = 512;  // tokens counted and placed together

}  // namespace

DispatchPlan BuildDispatchPlan(const Routing& routing, int64_t num_experts, std::span<const uint8_t> kept, ExecContext& ctx) {
  const int64_t T = static_cast<int64_t>(routing.slot_begin.size()) - 1, S = static_cast<int64_t>(routing.expert.size());
  const int64_t E = num_experts, num_chunks = (T + kChunk - 1) / kChunk;
  MOE_CHECK(kept.empty() || static_cast<int64_t>(kept.size()) == S, "kept for {} of {} slots", kept.size(), S);
  const auto is_kept = [&](int32_t s) { return kept.empty() || kept[static_cast<size_t>(s)] != 0; };
  const auto expert_begin = ctx.arena.Alloc<int32_t>(E + 1);
  const auto row_slot = ctx.arena.Alloc<int32_t>(S);
  const auto row_token = ctx.arena.Alloc<int32_t>(S);
  const auto slot_row = ctx.arena.Alloc<int32_t>(S);

  Arena::Scope scope(ctx.arena);
  const auto next = ctx.arena.AllocZero<int32_t>(num_chunks * E);  // [chunks,E] first a count, then the chunk's next position
  const auto slots_of = [&](int64_t chunk) {
    return std::pair{routing.slot_begin[static_cast<size_t>(chunk * kChunk)],
                     routing.slot_begin[static_cast<size_t>(std::min(T, (chunk + 1) * kChunk))]};
  };
  ctx.pool.ParallelFor(num_chunks, [&](int64_t chunk, int) {
    int32_t* count = next.data() + chunk * E;
    const auto [begin, end] = slots_of(chunk);
    for (int32_t s = begin; s < end; ++s) count[routing.expert[static_cast<size_t>(s)]] += is_kept(s) ? 1 : 0;
  });
  expert_begin[0] = 0;
  for (int64_t e = 0; e < E; ++e) {
    int32_t position = 0;
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      int32_t& entry = next[static_cast<size_t>(chunk * E + e)];
      const int32_t count = entry;
      entry = position;
      position += count;
    }
    expert_begin[static_cast<size_t>(e) + 1] = expert_begin[static_cast<size_t>(e)] + position;
  }
  ctx.pool.ParallelFor(num_chunks, [&](int64_t chunk, int) {
    int32_t* position = next.data() + chunk * E;
    for (int64_t t = chunk * kChunk; t < std::min(T, (chunk + 1) * kChunk); ++t) {
      for (int32_t s = routing.slot_begin[static_cast<size_t>(t)]; s < routing.slot_begin[static_cast<size_t>(t) + 1]; ++s) {
        if (!is_kept(s)) {
          slot_row[static_cast<size_t>(s)] = -1;
          continue;
        }
        const int32_t e = routing.expert[static_cast<size_t>(s)];
        const int32_t row = expert_begin[static_cast<size_t>(e)] + position[e]++;
        slot_row[static_cast<size_t>(s)] = row;
        row_slot[static_cast<size_t>(row)] = s;
        row_token[static_cast<size_t>(row)] = static_cast<int32_t>(t);
      }
    }
  });
  const auto R = static_cast<size_t>(expert_begin[static_cast<size_t>(E)]);
  return {.expert_begin = expert_begin,
          .row_slot = row_slot.first(R),
          .row_token = row_token.first(R),
          .slot_row = slot_row,
          .num_dropped = S - static_cast<int64_t>(R)};
}

}  // namespace moe
