#include <gtest/gtest.h>

#include <vector>

#include "tests/ops/block_sparse_cases.h"

namespace moe::test {
namespace {

TEST(BlockSparse, TheTopologyIndexesBlocksByRowAndColumn) {
  TestContext t;
  // x . x
  // . x x
  // x . x
  const Blocks b(16, 3, 3, {true, false, true, false, true, true, true, false, true}, {}, t.ctx);
  const BlockTopology& top = b.topology;
  EXPECT_EQ(std::vector<int32_t>(top.row.begin(), top.row.end()), (std::vector<int32_t>{0, 0, 1, 1, 2, 2}));
  EXPECT_EQ(std::vector<int32_t>(top.column_begin.begin(), top.column_begin.end()), (std::vector<int32_t>{0, 2, 3, 6}));
  EXPECT_EQ(std::vector<int32_t>(top.by_column.begin(), top.by_column.end()), (std::vector<int32_t>{0, 4, 2, 1, 3, 5}));
  EXPECT_EQ(top.num_rows(), 48);
}

TEST(BlockSparse, AnMoeLayersTopologyIsARectanglePerExpert) {
  TestContext t;
  const Blocks b(32, 5, 4, {true,  true,  false, false, true,  true,  false, false, true, true, false, false,  //
                            false, false, true,  true,  false, false, true,  true},
                 {32, 32, 7, 32, 32}, t.ctx);
  for (const auto rectangles : {b.topology.along_rows, b.topology.along_columns}) {
    ASSERT_EQ(rectangles.size(), 2u);
    EXPECT_EQ(rectangles[0].rows, 71);
    EXPECT_EQ(rectangles[0].columns, 2);
    EXPECT_EQ(rectangles[1].row_block, 3);
    EXPECT_EQ(rectangles[1].rows, 64);
    EXPECT_EQ(rectangles[1].column, 2);
    EXPECT_EQ(rectangles[1].round, 0);
  }
}

}  // namespace
}  // namespace moe::test
