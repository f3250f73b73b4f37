#include "moe/mixture/capacity.h"

#include <algorithm>
#include <cmath>

#include "moe/base/rng.h"

namespace moe {
namespace {

double Round(double x, Rounding rounding) {
  // 1.1 * 10 is a little more than 11: what is whole but for rounding is whole.
  const double nearest = std::round(x);
  if (std::abs(x - nearest) <= 1e-12 * std::abs(x)) return nearest;
  switch (rounding) {
    case Rounding::kCeil:
      return std::ceil(x);
    case Rounding::kFloor:
      return std::floor(x);
    case Rounding::kNearest:
      return nearest;
  }
  return nearest;
}

// Rows [begin, end) of tokens, which share their experts' places.
struct Tokens {
  const Routing& routing;
  int64_t begin, end;

  int64_t first_slot() const { return routing.slot_begin[static_cast<size_t>(begin)]; }
  int64_t last_slot() const { return routing.slot_begin[static_cast<size_t>(end)]; }
  // fn(slot) by token, then choice.
  template <class F>
  void ByPosition(F&& fn) const {
    for (int64_t s = first_slot(); s < last_slot(); ++s) fn(static_cast<size_t>(s));
  }
  // fn(slot): first choices of all tokens, then second ones, ...
  template <class F>
  void ByChoice(F&& fn) const {
    for (int64_t choice = 0, left = last_slot() - first_slot(); left > 0; ++choice) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t s = routing.slot_begin[static_cast<size_t>(t)] + choice;
        if (s < routing.slot_begin[static_cast<size_t>(t) + 1]) fn(static_cast<size_t>(s)), --left;
      }
    }
  }
};

struct Dropper {
  const RouterConfig& config;
  const Routing& routing;
  uint64_t key;
  std::span<uint8_t> kept;       // [S]
  std::span<int64_t> count;      // [E]
  std::span<int32_t> by_expert;  // [S]

  // The first `capacity` slots of each expert stay.
  void InOrder(const Tokens& tokens, int64_t capacity) const {
    std::ranges::fill(count, 0);
    const auto place = [&](size_t s) { kept[s] = count[static_cast<size_t>(routing.expert[s])]++ < capacity ? 1 : 0; };
    if (config.capacity.drop == DropOrder::kFirstChoices) return tokens.ByChoice(place);
    tokens.ByPosition(place);
  }

  // The first `capacity` slots of each expert in the order of `before` stay.
  template <class Before>
  void Best(const Tokens& tokens, int64_t capacity, Before&& before) const {
    std::ranges::fill(count, 0);
    tokens.ByPosition([&](size_t s) { ++count[static_cast<size_t>(routing.expert[s])]; });
    int64_t begin = 0;
    for (int64_t& c : count) begin += std::exchange(c, begin);  // now where an expert's slots begin, then where they end
    tokens.ByPosition([&](size_t s) {
      by_expert[static_cast<size_t>(count[static_cast<size_t>(routing.expert[s])]++)] = static_cast<int32_t>(s);
    });
    begin = 0;
    for (const int64_t end : count) {
      const auto slots = by_expert.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
      begin = end;
      const auto stay = std::min(static_cast<size_t>(capacity), slots.size());
      if (stay < slots.size()) std::nth_element(slots.begin(), slots.begin() + static_cast<int64_t>(stay), slots.end(), before);
      for (size_t i = 0; i < slots.size(); ++i) kept[static_cast<size_t>(slots[i])] = i < stay ? 1 : 0;
    }
  }

  void Run(const Tokens& tokens, int64_t capacity) const {
    const auto chance = [&](int32_t slot) { return MixBits(key ^ MixBits(static_cast<uint64_t>(slot) + 1)); };
    switch (config.capacity.drop) {
      case DropOrder::kPosition:
      case DropOrder::kFirstChoices:
        return InOrder(tokens, capacity);
      case DropOrder::kScore:
        return Best(tokens, capacity, [&](int32_t a, int32_t b) {
          const float x = routing.gate[static_cast<size_t>(a)], y = routing.gate[static_cast<size_t>(b)];
          return x != y ? x > y : a < b;
        });
      case DropOrder::kRandom:
        return Best(tokens, capacity, [&](int32_t a, int32_t b) {
          const uint64_t x = chance(a), y = chance(b);
          return x != y ? x < y : a < b;
        });
    }
  }
};

}  // namespace

int64_t ExpertCapacity(const RouterConfig& config, double factor, int64_t tokens) {
  if (factor <= 0) return kNoCapacity;
  const CapacityConfig& c = config.capacity;
  const double choices = c.times_top_k ? static_cast<double>(config.top_k) : 1;
  const double rows =
      Round(factor * static_cast<double>(tokens) * choices / static_cast<double>(config.num_experts), c.rounding);
  const int64_t whole = std::max(c.least, rows < 9e18 ? static_cast<int64_t>(rows) : INT64_MAX);
  return whole == 0 && c.zero_is_dropless ? kNoCapacity : whole;
}

std::span<const uint8_t> KeepWithinCapacity(const RouterConfig& config, double factor, const Routing& routing,
                                            std::span<const int32_t> sequence_begin, uint64_t key, ExecContext& ctx) {
  if (factor <= 0) return {};
  const auto S = static_cast<int64_t>(routing.expert.size()), T = static_cast<int64_t>(routing.slot_begin.size()) - 1;
  const auto kept = ctx.arena.Alloc<uint8_t>(S);
  Arena::Scope scope(ctx.arena);
  const Dropper dropper{.config = config,
                        .routing = routing,
                        .key = key,
                        .kept = kept,
                        .count = ctx.arena.Alloc<int64_t>(config.num_experts),
                        .by_expert = ctx.arena.Alloc<int32_t>(S)};
  const auto drop = [&](const Tokens& tokens, int64_t num_tokens) {
    const int64_t capacity = ExpertCapacity(config, factor, num_tokens);
    dropper.Run(tokens, capacity == kNoCapacity ? S : capacity);
  };
  if (config.capacity.scope == CapacityScope::kBatch || sequence_begin.empty()) {
    drop({routing, 0, T}, routing.aux.num_tokens);
    return kept;
  }
  MOE_CHECK(sequence_begin.front() == 0 && sequence_begin.back() == T, "sequences of {} to {} of {} rows",
            sequence_begin.front(), sequence_begin.back(), T);
  for (size_t i = 0; i + 1 < sequence_begin.size(); ++i) {
    const Tokens tokens{routing, sequence_begin[i], sequence_begin[i + 1]};
    int64_t num_tokens = 0;
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
      num_tokens += routing.valid.empty() || routing.valid[static_cast<size_t>(t)] != 0 ? 1 : 0;
    }
    drop(tokens, num_tokens);
  }
  return kept;
}

}  // namespace moe
