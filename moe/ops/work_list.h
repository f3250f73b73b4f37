#pragma once
// Products cut into work items. Where a cut lies has no influence on any sum.

#include <algorithm>

#include "moe/ops/chunks.h"
#include "moe/tensor/any_mat.h"
#include "moe/tensor/packed_weight.h"

namespace moe {

// What an item may have: tiles below each other, so that their rows stay in L2 across panels, and panels beside each other.
// `least` tiles in all are not split further. whole_rows: panels are split only of a single tile.
struct WorkLimits {
  int64_t tiles, panels, least = 1;
  bool whole_rows = false;
};

// Of one problem: tiles below each other, panels beside each other, steps of the contraction, what its items may have.
struct WorkShape {
  int64_t tiles, panels, steps;
  WorkLimits limits;
  int64_t work() const { return tiles * panels * (steps + 1); }  // a product of nothing still writes zeros
};

// Tiles [tile, tile+tiles) by panels [panel, panel+panels) of a problem.
struct WorkItem {
  int32_t problem, panel, panels, tile, tiles;
  int64_t work;
};

// Halves `item`, along its longer side or as `limits` say, until no part has more work than `largest()`, and hands the parts to
// `add` in order.
template <class Largest, class Add>
void SplitItem(const WorkItem& item, int64_t tile_rows, const WorkLimits& limits, Largest&& largest, Add&& add) {
  if (item.work <= largest() || int64_t{item.tiles} * item.panels <= limits.least) return add(item);
  WorkItem first = item, second = item;
  const bool tall = limits.whole_rows || item.tiles * tile_rows > item.panels * kPanel;
  if (item.panels == 1 || (item.tiles > 1 && tall)) {
    first.tiles = item.tiles / 2, second.tiles = item.tiles - first.tiles, second.tile += first.tiles;
  } else {
    first.panels = item.panels / 2, second.panels = item.panels - first.panels, second.panel += first.panels;
  }
  const int64_t unit = item.work / (int64_t{item.tiles} * item.panels);
  first.work = unit * first.tiles * first.panels, second.work = unit * second.tiles * second.panels;
  SplitItem(first, tile_rows, limits, largest, add);
  SplitItem(second, tile_rows, limits, largest, add);
}

// The work of all problems, largest items first. Items are as large as they can be, since operands are laid out anew for each,
// but each takes only a part of what is left: the last ones are small, so that no thread ends long after the others.
template <class Shape>
std::span<WorkItem> MakeWorkList(int64_t num_problems, Shape&& shape, ExecContext& ctx) {
  // No item has more than a thread's share of the work not yet in the list. Items of less than 1/kSmallest of a thread's share
  // of all the work are not split further.
  constexpr int64_t kSmallest = 64;
  int64_t all = 0;
  for (int64_t i = 0; i < num_problems; ++i) all += shape(i).work();
  const int64_t threads = ctx.pool.num_threads(), smallest = all / (kSmallest * threads);
  const auto for_each = [&](auto&& add) {
    int64_t rest = all;
    const auto largest = [&] { return std::max(smallest, rest / threads); };
    for (int64_t i = 0; i < num_problems; ++i) {
      const WorkShape s = shape(i);
      if (s.work() == 0) continue;
      const int64_t rows = CeilDiv(s.tiles, s.limits.tiles), columns = CeilDiv(s.panels, s.limits.panels);
      // Row by row of the same panels: they stay in the last-level cache, and rows pass by.
      for (int64_t c = 0; c < columns; ++c) {
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t tile = s.tiles * r / rows, tiles = s.tiles * (r + 1) / rows - tile;
          const int64_t panel = s.panels * c / columns, panels = s.panels * (c + 1) / columns - panel;
          const WorkItem whole{static_cast<int32_t>(i),    static_cast<int32_t>(panel), static_cast<int32_t>(panels),
                               static_cast<int32_t>(tile), static_cast<int32_t>(tiles), tiles * panels * (s.steps + 1)};
          SplitItem(whole, ctx.kernels.max_rows, s.limits, largest,
                    [&](const WorkItem& item) { rest -= item.work, add(item); });
        }
      }
    }
  };
  int64_t count = 0;
  for_each([&](const WorkItem&) { ++count; });
  const auto items = ctx.arena.Alloc<WorkItem>(count);
  count = 0;
  for_each([&](const WorkItem& item) { items[static_cast<size_t>(count++)] = item; });
  std::sort(items.begin(), items.end(), [](const WorkItem& a, const WorkItem& b) {
    if (a.work != b.work) return a.work > b.work;
    if (a.problem != b.problem) return a.problem < b.problem;
    return a.panel != b.panel ? a.panel < b.panel : a.tile < b.tile;
  });
  return items;
}

// Memory that will be read soon. Inlined, as everything made of it must be: g++ 12 takes a function that does nothing but ask
// for one without effects, and leaves calls of it out.
[[gnu::always_inline]] inline void AskFor(const void* from, int64_t bytes) {
  constexpr int64_t kLine = 64;
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(static_cast<const std::byte*>(from) + at, 0, 2);
}

// At the door of an op: views are made without a check in release builds. `name` is what the message calls the matrix.
inline void CheckExtents(const ConstAnyMat& m, const char* name) {
  MOE_CHECK(m.rows >= 0 && m.cols >= 0 && m.stride >= m.cols, "{} [{},{}] with rows {} apart", name, m.rows, m.cols, m.stride);
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
