#pragma once
// Products cut into work items. Where a cut lies has no influence on any sum.

#include <algorithm>

#include "moe/ops/chunks.h"
#include "moe/tensor/any_mat.h"
#include "moe/tensor/packed_weight.h"

namespace moe {

// What an item may have: tiles below each other, so that their rows stay in L2 across panels, and panels beside each other.
struct WorkLimits {
  int64_t tiles, panels;
};

// Of one problem: tiles below each other, panels beside each other, steps of the contraction.
struct WorkShape {
  int64_t tiles, panels, steps;
  int64_t work() const { return tiles * panels * (steps + 1); }  // a product of nothing still writes zeros
};

// Tiles [tile, tile+tiles) by panels [panel, panel+panels) of a problem.
struct WorkItem {
  int32_t problem, panel, panels, tile, tiles;
  int64_t work;
};

// The work of all problems, largest items first. Items are as large as they can be, since rows are laid out anew for each, but
// each takes only a part of what is left: the last ones are small, so that no thread ends long after the others.
template <class Shape>
std::span<WorkItem> MakeWorkList(int64_t num_problems, Shape&& shape, const WorkLimits& limits, ExecContext& ctx) {
  constexpr int64_t kPartOfRest = 2, kSmallest = 32;  // items of each thread, if all were like this one
  int64_t all = 0;
  for (int64_t i = 0; i < num_problems; ++i) all += shape(i).work();
  const int64_t threads = ctx.pool.num_threads(), smallest = all / (kSmallest * threads);
  const auto for_each = [&](auto&& add) {
    int64_t rest = all;
    for (int64_t i = 0; i < num_problems; ++i) {
      const WorkShape s = shape(i);
      if (s.work() == 0) continue;
      const int64_t blocks = CeilDiv(s.tiles, limits.tiles), panel_work = CeilDiv(s.tiles, blocks) * (s.steps + 1);
      for (int64_t panel = 0, panels; panel < s.panels; panel += panels) {
        const int64_t wanted = std::max(smallest, rest / (kPartOfRest * threads)) / panel_work;
        panels = std::min(std::clamp<int64_t>(wanted, 1, limits.panels), s.panels - panel);
        rest -= s.tiles * panels * (s.steps + 1);
        for (int64_t b = 0; b < blocks; ++b) {
          const int64_t begin = s.tiles * b / blocks, tiles = s.tiles * (b + 1) / blocks - begin;
          add(WorkItem{static_cast<int32_t>(i), static_cast<int32_t>(panel), static_cast<int32_t>(panels),
                       static_cast<int32_t>(begin), static_cast<int32_t>(tiles), tiles * panels * (s.steps + 1)});
        }
      }
    }
  };
  int64_t count = 0;
  for_each([&](const WorkItem&) { ++count; });
  const auto items = ctx.arena.Alloc<WorkItem>(count);
  count = 0;
  for_each([&](const WorkItem& item) { items[static_cast<size_t>(count++)] = item; });
  // Items of the same panels follow each other: the panels stay in the last-level cache, and rows pass by.
  std::sort(items.begin(), items.end(), [](const WorkItem& a, const WorkItem& b) {
    if (a.work != b.work) return a.work > b.work;
    if (a.problem != b.problem) return a.problem < b.problem;
    return a.panel != b.panel ? a.panel < b.panel : a.tile < b.tile;
  });
  return items;
}

// Memory that will be read soon.
inline void AskFor(const void* from, int64_t bytes) {
  constexpr int64_t kLine = 64;
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(static_cast<const std::byte*>(from) + at, 0, 2);
}

// M rows of `source`: all of them in order, or chosen ones. When M is 0, nothing is looked at: an expert without tokens has an
// empty choice.
inline void CheckRows(const ConstAnyMat& source, std::span<const int32_t> chosen, int64_t M) {
  if (M == 0) return;
  MOE_CHECK(chosen.empty() ? source.rows == M : static_cast<int64_t>(chosen.size()) == M, "{} rows ({} chosen), expected {}",
            source.rows, chosen.size(), M);
  for (const int32_t row : chosen) MOE_CHECK(row >= 0 && row < source.rows, "row {} of {}", row, source.rows);
}

}  // namespace moe
