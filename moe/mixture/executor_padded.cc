#include <algorithm>
#include <cstring>

#include "moe/mixture/capacity.h"
#include "moe/mixture/combine.h"
#include "moe/mixture/executor.h"
#include "moe/ops/chunks.h"
#include "moe/ops/elementwise.h"

namespace moe {

int64_t BucketRows(const DispatchPlan& plan, int64_t capacity) {
  if (capacity != kNoCapacity) return capacity;
  int64_t most = 0;
  for (int64_t e = 0; e < plan.num_experts(); ++e) most = std::max(most, plan.rows_of(e));
  return most;
}

void ZeroEmptyRows(const DispatchPlan& plan, const ExpertLayout& layout, AnyMat rows, ExecContext& ctx) {
  ctx.pool.ParallelFor(layout.num_experts(), [&](int64_t e, int) {
    for (int64_t r = layout.begin[static_cast<size_t>(e)] + plan.rows_of(e); r < layout.begin[static_cast<size_t>(e) + 1];
         ++r) {
      std::memset(rows.row(r), 0, static_cast<size_t>(rows.cols * SizeOf(rows.dtype)));
    }
  });
}

ExpertLayout PaddedLayout(const Routing& routing, const DispatchPlan& plan, int64_t bucket_rows, ConstAnyMat x,
                          MatView<const float> gated, ExecContext& ctx) {
  const int64_t E = plan.num_experts(), D = x.cols;
  MOE_CHECK(bucket_rows <= INT32_MAX / E, "{} buckets of {} rows", E, bucket_rows);
  const auto begin = ctx.arena.Alloc<int32_t>(E + 1);
  for (int64_t e = 0; e <= E; ++e) begin[static_cast<size_t>(e)] = static_cast<int32_t>(e * bucket_rows);
  const auto slot_row = ctx.arena.Alloc<int32_t>(static_cast<int64_t>(plan.slot_row.size()));
  const AnyMat buckets = AllocMat(E * bucket_rows, D, x.dtype, ctx);
  const ExpertLayout layout{.begin = begin, .slot_row = slot_row, .input = buckets};
  for (size_t s = 0; s < slot_row.size(); ++s) {
    const auto e = static_cast<size_t>(routing.expert[s]);
    slot_row[s] = plan.slot_row[s] < 0 ? -1 : plan.slot_row[s] - plan.expert_begin[e] + begin[e];
  }
  if (!gated.empty()) GatedRows(routing, slot_row, gated, buckets, ctx);
  ForEachChunk(gated.empty() ? plan.num_rows() : 0, RowsPerChunk(D), ctx, [&](int64_t r0, int64_t r1, int) {
    for (int64_t r = r0; r < r1; ++r) {
      const auto slot = static_cast<size_t>(plan.row_slot[static_cast<size_t>(r)]);
      std::memcpy(buckets.row(slot_row[slot]), x.row(plan.row_token[static_cast<size_t>(r)]),
                  static_cast<size_t>(D * SizeOf(x.dtype)));
    }
  });
  ZeroEmptyRows(plan, layout, buckets, ctx);
  return layout;
}

}  // namespace moe
