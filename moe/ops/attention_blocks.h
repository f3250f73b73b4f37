#pragma once
// What forward and backward of attention share: blocks of keys or values as the tiles want them.

#include <cstring>

#include "moe/ops/attention.h"
#include "moe/ops/chunks.h"
#include "moe/tensor/packed_weight.h"

namespace moe {

inline constexpr int64_t kKeyBlock = kSoftmaxBlock;  // keys taken at once, at absolute multiples of it

inline int64_t RoundUpToPanel(int64_t x) {
  return CeilDiv(x, kPanel) * kPanel;
}

inline void CheckShape(const AttentionShape& shape, const ExecContext& ctx) {
  MOE_CHECK(shape.num_kv_heads > 0 && shape.num_heads > 0 && shape.num_heads % shape.num_kv_heads == 0,
            "{} query heads on {} key/value heads", shape.num_heads, shape.num_kv_heads);
  MOE_CHECK(shape.head_width > 0 && shape.head_width % 2 == 0, "head width {}", shape.head_width);
  MOE_CHECK(ctx.kernels.max_rows <= kMaxTileRows, "{} rows in a tile", ctx.kernels.max_rows);
}

// Panels [2][P][32] of a block: element (p, key) so that a product with it contracts over p. Keys from `count` on are zero and
// not read.
inline void TransposeBlock(const float* rows, int64_t stride, int64_t count, int64_t P, float* out, const KernelTable& k) {
  for (int64_t begin = 0; begin < count; begin += kPanel)
    k.pack_f32(rows + begin * stride, stride, 1, std::min(kPanel, count - begin), P, out + begin * P);
}

// Rows of a block, of which the tiles read panels of 32 columns: in place, but for the last columns of a width that is no
// multiple of 32, which are copied.
struct BlockRows {
  const float* rows;
  int64_t row_stride, whole;  // columns that can be read in place
  const float* tail;          // [64,32], columns from `whole` on

  const float* at(int64_t column) const { return column < whole ? rows + column : tail; }
  int64_t stride(int64_t column) const { return column < whole ? row_stride : kPanel; }
};
inline BlockRows PanelRows(const float* rows, int64_t stride, int64_t count, int64_t P, float* tail) {
  const int64_t whole = P / kPanel * kPanel;
  for (int64_t i = 0; whole < P && i < count; ++i) {
    std::memcpy(tail + i * kPanel, rows + i * stride + whole, static_cast<size_t>(P - whole) * sizeof(float));
    std::fill(tail + i * kPanel + P - whole, tail + (i + 1) * kPanel, 0.0f);
  }
  return {rows, stride, whole, tail};
}

}  // namespace moe
