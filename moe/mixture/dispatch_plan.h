#pragma once
// From tokens' choices to experts' rows, and back.

#include <cstdint>
#include <span>

#include "moe/mixture/routing.h"

namespace moe {

// Where each slot's row sits once rows are ordered by expert. R rows kept (R = S when dropless). A stable counting sort: rows
// of one expert keep slot order, so results do not depend on the number of threads. Immutable; one per layer per step; forward,
// backward and metrics read it.
struct DispatchPlan {
  std::span<const int32_t> expert_begin;  // [E+1] rows of expert e: [e], up to [e+1]
  std::span<const int32_t> row_slot;      // [R]   row -> slot
  std::span<const int32_t> row_token;     // [R]   row -> token (gather)
  std::span<const int32_t> slot_row;      // [S]   slot -> row, -1 if dropped (combine)
  int64_t num_dropped = 0;                // slots
  int64_t num_zero = 0;                   // slots of zero experts, which have no row but are not dropped

  int64_t num_experts() const { return static_cast<int64_t>(expert_begin.size()) - 1; }
  int64_t num_rows() const { return static_cast<int64_t>(row_slot.size()); }
  int64_t rows_of(int64_t e) const { return expert_begin[static_cast<size_t>(e) + 1] - expert_begin[static_cast<size_t>(e)]; }
};

// kept [S]: 0 for slots without a row; empty: all have one.
DispatchPlan BuildDispatchPlan(const Routing& routing, int64_t num_experts, std::span<const uint8_t> kept, ExecContext& ctx);

}  // namespace moe
