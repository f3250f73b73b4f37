#pragma once
// How long an op takes on a machine, counted from its shape. Times of independent resources overlap: see StreamCost.

#include <span>

#include "moe/costs/machine.h"

namespace moe {

// So many matrices (a mean, or a share of one) are multiplied with so many rows each.
struct RowsOfMatrices {
  double matrices = 1, rows = 1;
};

// One list of products of the same shape, on one work list: an FFN's, or those of all experts that have rows.
struct ProductOp {
  DType format = DType::kBf16;
  ProductKind kind = ProductKind::kLinear;
  double N = 0, K = 0;     // outputs, inputs
  double bytes = 0;        // of all matrices touched, that memory or a cache must bring (and take back)
  double reuse_bytes = 0;  // what passes between two readings of the same weight: decides where it comes from
  double row_bytes = 0, row_reuse_bytes = 0;  // the same of the rows read and written
  std::span<const RowsOfMatrices> rows;
};

// Computing and moving, each by itself, and together.
struct OpTime {
  double compute_s = 0, memory_s = 0, fixed_s = 0;
  double s = 0;  // of the op

  OpTime& operator+=(const OpTime& o) {
    compute_s += o.compute_s, memory_s += o.memory_s, fixed_s += o.fixed_s, s += o.s;
    return *this;
  }
};

// A machine as it is now. Shared machines change by half within minutes: what was measured beside a step, over what the profile
// says.
struct Conditions {
  const MachineProfile& machine;
  double memory = 1, compute = 1;

  // Bandwidth of a working set. Caches share the pace of the cores.
  double BytesPerS(double working_set) const;
};

double Overlapped(double compute_s, double memory_s, double overlap);
OpTime TimeOf(const ProductOp& op, const Conditions& now);

// `chunks` pieces are what threads can share; a fraction: the last is smaller.
struct RowWork {
  RowOp op = RowOp::kNorm;
  double values = 0, chunks = 1;
  double working_set = 0;  // bytes that pass between writing and reading
};
OpTime TimeOf(const RowWork& work, const Conditions& now);

struct AttentionOp {
  DType format = DType::kBf16;
  bool backward = false;
  double heads = 0, kv_heads = 0, head_width = 0;
  double segments = 0, rows = 0;  // rows of each
  double first_position = 0;      // of each segment's first row
  double kv_working_set = 0;      // bytes
  double last_rows = 0;           // of one shorter segment besides; 0: none
  double kv_value_bytes = 4;      // of a key or value that is kept
  double pairs() const {          // (query, key), of one head
    return segments * rows * (first_position + (rows + 1) / 2) + last_rows * (first_position + (last_rows + 1) / 2);
  }
  double all_rows() const { return segments * rows + last_rows; }
  // The pairs that are computed: keys come in panels of 32, the last one of a row in part for nothing.
  double computed_pairs() const;
  double kv_bytes() const {
    const double positions = segments * (first_position + rows) + (last_rows > 0 ? first_position + last_rows : 0);
    return positions * 2 * kv_heads * head_width * kv_value_bytes;
  }
};
OpTime TimeOf(const AttentionOp& op, const AttentionCost& cost, const Conditions& now);
OpTime TimeOf(const AttentionOp& op, const Conditions& now);

}  // namespace moe
