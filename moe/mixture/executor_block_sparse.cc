#include <algorithm>

#include "moe/mixture/executor.h"
#include "moe/ops/chunks.h"

namespace moe {

// A layer's blocks merge to one rectangle an expert, as fast for blocks of 16 as of 128 and on every kernel table, while the
// rows that pad an expert to its last block grow with them. Of 32, not 16: that is a panel of the weights, so that nothing
// depends on merging, and an index of a quarter of the entries. (docs/adr/0012-block-size.md)
int64_t ExpertBlock(int64_t expert_width) {
  return expert_width % 32 == 0 ? 32 : 16;
}

ExpertLayout BlockSparseLayout(const DispatchPlan& plan, int64_t expert_width, ConstAnyMat x, ExecContext& ctx) {
  const int64_t E = plan.num_experts(), block = ExpertBlock(expert_width), columns = expert_width / block;
  const auto begin = ctx.arena.AllocZero<int32_t>(E + 1);
  for (int64_t e = 0; e < E; ++e) {
    const auto i = static_cast<size_t>(e);
    begin[i + 1] = begin[i] + static_cast<int32_t>(CeilDiv(plan.rows_of(e), block) * block);
  }
  const int64_t rows = begin[static_cast<size_t>(E)], row_blocks = rows / block;

  const auto row_begin = ctx.arena.Alloc<int32_t>(row_blocks + 1), used = ctx.arena.Alloc<int32_t>(row_blocks);
  const auto column = ctx.arena.Alloc<int32_t>(row_blocks * columns);
  for (int64_t i = 0; i <= row_blocks; ++i) row_begin[static_cast<size_t>(i)] = static_cast<int32_t>(i * columns);
  const auto row_token = ctx.arena.AllocZero<int32_t>(rows);
  const auto row_of = ctx.arena.Alloc<int32_t>(plan.num_rows());  // the plan's row -> ours
  for (int64_t e = 0; e < E; ++e) {
    const int64_t first = begin[static_cast<size_t>(e)], from = plan.expert_begin[static_cast<size_t>(e)];
    for (int64_t r = 0; r < plan.rows_of(e); ++r) {
      row_of[static_cast<size_t>(from + r)] = static_cast<int32_t>(first + r);
      row_token[static_cast<size_t>(first + r)] = plan.row_token[static_cast<size_t>(from + r)];
    }
    for (int64_t i = first / block; i < begin[static_cast<size_t>(e) + 1] / block; ++i) {
      used[static_cast<size_t>(i)] = static_cast<int32_t>(std::min(block, plan.rows_of(e) - (i * block - first)));
      for (int64_t j = 0; j < columns; ++j)
        column[static_cast<size_t>(i * columns + j)] = static_cast<int32_t>(e * columns + j);
    }
  }
  const auto slot_row = ctx.arena.Alloc<int32_t>(static_cast<int64_t>(plan.slot_row.size()));
  for (size_t s = 0; s < slot_row.size(); ++s) {
    slot_row[s] = plan.slot_row[s] < 0 ? -1 : row_of[static_cast<size_t>(plan.slot_row[s])];
  }
  return {.begin = begin,
          .slot_row = slot_row,
          .row_token = row_token,
          .input = x,
          .topology = MakeTopology(block, E * columns, row_begin, column, used, ctx)};
}

}  // namespace moe
