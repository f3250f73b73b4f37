#include "moe/ops/work_list.h"

#include <gtest/gtest.h>

#include <vector>

#include "testing/test_context.h"

namespace moe::test {
namespace {

int64_t Size(const WorkItem& item) {
  return int64_t{item.tiles} * item.panels;
}

std::vector<WorkItem> Split(WorkItem item, int64_t tile_rows, int64_t least, int64_t largest, bool whole_rows = false) {
  std::vector<WorkItem> parts;
  SplitItem(
      item, tile_rows, {.least = least, .whole_rows = whole_rows}, [&] { return largest; },
      [&](const WorkItem& part) { parts.push_back(part); });
  return parts;
}

// How often the items name each tile of each panel of problem i: [tiles, panels].
std::vector<int> Covered(std::span<const WorkItem> items, int32_t i, int64_t tiles, int64_t panels) {
  std::vector<int> times(static_cast<size_t>(tiles * panels));
  for (const WorkItem& item : items) {
    if (item.problem != i) continue;
    EXPECT_TRUE(item.tile >= 0 && item.tiles > 0 && item.tile + item.tiles <= tiles) << item.tile << "+" << item.tiles;
    EXPECT_TRUE(item.panel >= 0 && item.panels > 0 && item.panel + item.panels <= panels) << item.panel << "+" << item.panels;
    for (int64_t tile = item.tile; tile < item.tile + item.tiles; ++tile)
      for (int64_t panel = item.panel; panel < item.panel + item.panels; ++panel)
        ++times[static_cast<size_t>(tile * panels + panel)];
  }
  return times;
}

TEST(SplitItem, HalvesTheLongerSideAndKeepsTheOrder) {
  // 2 tiles of 12 rows by 2 panels of 32 columns: wider than high.
  const auto parts = Split({.problem = 3, .panel = 4, .panels = 2, .tile = 6, .tiles = 2, .work = 40}, 12, 1, 10);
  ASSERT_EQ(parts.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(parts[i].problem, 3);
    EXPECT_EQ(parts[i].panel, i < 2 ? 4 : 5);
    EXPECT_EQ(parts[i].tile, i % 2 == 0 ? 6 : 7);
    EXPECT_EQ(Size(parts[i]), 1);
    EXPECT_EQ(parts[i].work, 10);
  }
  // 8 tiles of 12 rows by 2 panels: higher than wide.
  const auto halves = Split({.panels = 2, .tiles = 8, .work = 16}, 12, 1, 8);
  ASSERT_EQ(halves.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(halves[i].tile, i == 0 ? 0 : 4);
    EXPECT_EQ(halves[i].tiles, 4);
    EXPECT_EQ(halves[i].panels, 2);
  }
}

TEST(SplitItem, WholeRowsStayWholeUntilOneTileIsLeft) {
  const auto rows = Split({.panels = 64, .tiles = 4, .work = 256}, 12, 1, 64, true);
  ASSERT_EQ(rows.size(), 4u);
  for (int32_t i = 0; i < 4; ++i) EXPECT_EQ(rows[static_cast<size_t>(i)].tile, i);
  for (const WorkItem& part : rows) EXPECT_EQ(part.panels, 64);
  const auto parts = Split({.panels = 64, .tiles = 2, .work = 128}, 12, 1, 32, true);
  ASSERT_EQ(parts.size(), 4u);
  for (const WorkItem& part : parts) EXPECT_EQ(part.tiles * 100 + part.panels, 132);
}

TEST(SplitItem, EndsAtTheLargestWorkOrTheLeastTiles) {
  for (const int32_t tiles : {1, 2, 3, 7, 16}) {
    for (const int32_t panels : {1, 2, 5, 64}) {
      for (const int64_t least : {1, 2, 5, 48, 2000}) {
        for (const int64_t largest : {0, 30, 100, 1000, 100000}) {
          SCOPED_TRACE(fmt::format("{} tiles {} panels least {} largest {}", tiles, panels, least, largest));
          constexpr int64_t kUnit = 10;
          const WorkItem whole{.panels = panels, .tiles = tiles, .work = kUnit * tiles * panels};
          const auto parts = Split(whole, 12, least, largest);
          for (const int times : Covered(parts, 0, tiles, panels)) EXPECT_EQ(times, 1);
          for (const WorkItem& part : parts) {
            EXPECT_EQ(part.work, kUnit * Size(part));
            EXPECT_TRUE(part.work <= largest || Size(part) <= least) << Size(part);
            // What was split had more than both allow, and the smaller half of it has a third at least.
            if (parts.size() > 1) {
              EXPECT_TRUE(3 * part.work > largest && 3 * Size(part) > least) << Size(part);
            }
          }
        }
      }
    }
  }
}

std::vector<WorkItem> MakeList(const std::vector<WorkShape>& shapes, ExecContext& ctx) {
  const auto items = MakeWorkList(
      static_cast<int64_t>(shapes.size()), [&](int64_t i) { return shapes[static_cast<size_t>(i)]; }, ctx);
  return {items.begin(), items.end()};
}

const WorkLimits kNarrow = {.tiles = 16, .panels = 64}, kCoarse = {.tiles = 128, .panels = 16, .least = 48};

TEST(MakeWorkList, HasEveryTileOfEveryPanelOnceLargestFirstWithinLimits) {
  const std::vector<std::vector<WorkShape>> lists = {
      {{1, 1, 1, kNarrow}},
      {{1, 200, 64, kNarrow}},
      {{200, 1, 64, kNarrow}},
      {{33, 130, 512, kNarrow}},
      {{33, 130, 512, kCoarse}},
      {{300, 40, 16, kCoarse}},
      {{3, 5, 0, kNarrow}},  // a contraction over nothing writes zeros
      {{0, 5, 7, kNarrow}, {4, 6, 8, kNarrow}, {0, 0, 0, kNarrow}, {2, 0, 3, kNarrow}, {1, 1, 1, kCoarse}, {0, 9, 9, kCoarse}},
      {{1, 24, 100, kNarrow}, {40, 24, 100, kNarrow}, {1, 24, 100, kNarrow}, {7, 65, 3, kCoarse}, {130, 17, 300, kCoarse}},
  };
  for (const auto& shapes : lists) {
    for (const int threads : {1, 2, 3, 4}) {
      SCOPED_TRACE(
          fmt::format("{} problems, first {}x{}, threads {}", shapes.size(), shapes[0].tiles, shapes[0].panels, threads));
      TestContext t(threads);
      const auto items = MakeList(shapes, t.ctx);
      int64_t all = 0, sum = 0;
      for (size_t i = 0; i < shapes.size(); ++i) {
        all += shapes[i].work();
        for (const int times : Covered(items, static_cast<int32_t>(i), shapes[i].tiles, shapes[i].panels)) EXPECT_EQ(times, 1);
      }
      for (size_t i = 0; i < items.size(); ++i) {
        const WorkItem& item = items[i];
        const WorkShape& s = shapes[static_cast<size_t>(item.problem)];
        sum += item.work;
        EXPECT_EQ(item.work, Size(item) * (s.steps + 1));
        EXPECT_TRUE(item.tiles <= s.limits.tiles && item.panels <= s.limits.panels) << item.tiles << " by " << item.panels;
        if (i > 0) {
          EXPECT_GE(items[i - 1].work, item.work);
        }
        // No more than a thread's part, where the limits allow to split.
        EXPECT_TRUE(item.work <= all / threads || Size(item) <= s.limits.least) << item.work << " of " << all;
      }
      EXPECT_EQ(sum, all);
    }
  }
}

TEST(MakeWorkList, NothingToDoIsAnEmptyList) {
  TestContext t(2);
  EXPECT_TRUE(MakeList({}, t.ctx).empty());
  EXPECT_TRUE(MakeList({{0, 4, 4, kNarrow}, {3, 0, 4, kNarrow}, {0, 0, 0, kCoarse}}, t.ctx).empty());
}

TEST(MakeWorkList, ItemsOfALargeProblemEndSmall) {
  for (const int threads : {2, 3, 4}) {
    TestContext t(threads);
    const auto items = MakeList({{160, 128, 100, kNarrow}}, t.ctx);
    int64_t all = 0;
    for (const WorkItem& item : items) all += item.work;
    EXPECT_LT(items.back().work, all / threads / 16);  // no thread ends much later than the others
    EXPECT_LT(std::ssize(items), 200 * threads);
  }
}

// At most `least` tiles are not worth a second item, however many threads wait.
TEST(MakeWorkList, FewTilesStayTogether) {
  TestContext t(4);
  EXPECT_EQ(MakeList({{6, 8, 100, kCoarse}}, t.ctx).size(), 1u);
  EXPECT_GT(MakeList({{7, 7, 100, kCoarse}}, t.ctx).size(), 1u);
  EXPECT_EQ(MakeList({{16, 4, 100, kNarrow}, {0, 4, 100, kNarrow}}, t.ctx).front().problem, 0);
}

// The same list every time, whatever the order in which items of the same work were found.
TEST(MakeWorkList, ItemsOfTheSameWorkAreInOrder) {
  TestContext t(2);
  const auto items = MakeList({{1, 4, 9, kNarrow}, {1, 4, 9, kNarrow}, {1, 4, 9, kNarrow}}, t.ctx);
  for (size_t i = 1; i < items.size(); ++i) {
    const WorkItem &a = items[i - 1], &b = items[i];
    if (a.work == b.work) {
      EXPECT_LT(std::pair(a.problem, a.panel), std::pair(b.problem, b.panel));
    }
  }
}

}  // namespace
}  // namespace moe::test
