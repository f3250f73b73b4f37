#pragma once
// The seam between routing and arithmetic. An executor says where the rows of every expert lie and which of them are computed;
// the products, forward and backward, are then the same list for all, so they give the same sums in the same order.

#include <span>

#include "moe/mixture/dispatch_plan.h"
#include "moe/mixture/routing.h"
#include "moe/ops/block_sparse.h"

namespace moe {

struct ExpertLayout {
  std::span<const int32_t> begin;      // [E+1] rows of expert e: [e], up to [e+1]
  std::span<const int32_t> slot_row;   // [S] slot -> row, -1 if dropped
  std::span<const int32_t> row_token;  // [rows] row i reads input[row_token[i]]; empty: input[i]
  ConstAnyMat input;                   // x [T,D], or its rows already in place [rows,D]; as the weights read it
  BlockTopology topology;              // block-sparse: where [rows, E*F] has values

  int64_t num_experts() const { return static_cast<int64_t>(begin.size()) - 1; }
  int64_t num_rows() const { return begin.back(); }
  int64_t rows_of(int64_t e) const { return begin[static_cast<size_t>(e) + 1] - begin[static_cast<size_t>(e)]; }
};

// The plan's own rows, one ragged product per expert; x is gathered by the products themselves.
ExpertLayout GroupedLayout(const DispatchPlan& plan, ConstAnyMat x);

// Buckets [E, bucket_rows, D] in the arena: each expert's rows, then zeros. (The layout of GShard and Switch.) gated [T,D]:
// rows are GatedRows of it; empty: rows of x.
ExpertLayout PaddedLayout(const Routing& routing, const DispatchPlan& plan, int64_t bucket_rows, ConstAnyMat x,
                          MatView<const float> gated, ExecContext& ctx);
// The plan's rows, each expert's beginning with a block; [rows, E*F] has blocks where rows are an expert's and columns its own.
ExpertLayout BlockSparseLayout(const DispatchPlan& plan, int64_t expert_width, ConstAnyMat x, ExecContext& ctx);
// Rows and columns of its blocks: 32, or 16 for widths that are not a multiple of it.
int64_t ExpertBlock(int64_t expert_width);

// Rows of a bucket: the capacity, or the most loaded expert's when dropless.
int64_t BucketRows(const DispatchPlan& plan, int64_t capacity);
// Writes zeros where a bucket holds no row of the plan. rows [E*bucket_rows, any].
void ZeroEmptyRows(const DispatchPlan& plan, const ExpertLayout& layout, AnyMat rows, ExecContext& ctx);

}  // namespace moe
