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
  MOE_CHECK(shape.format == DType::kF32 || shape.format == DType::kBf16, "products of {}", Name(shape.format));
  MOE_CHECK(shape.head_width > 0 && shape.head_width % 2 == 0, "head width {}", shape.head_width);
  MOE_CHECK(ctx.kernels.max_rows <= kMaxTileRows, "{} rows in a tile", ctx.kernels.max_rows);
}

// A word of an operand is a float, or a pair of bf16 along the contraction.
template <class Word>
inline constexpr int64_t kPerWord = 1;
template <>
inline constexpr int64_t kPerWord<uint32_t> = 2;
// The one of a kernel's two forms that takes such words.
template <class Word, class F32, class Bf16>
auto ForWords(F32 f32, Bf16 bf16) {
  if constexpr (kPerWord<Word> == 2) {
    return bf16;
  } else {
    return f32;
  }
}

// Panels [2][words of P][32] of a block: element (p, key) so that a product with it contracts over p. Keys from `count` on are
// zero and not read.
template <class Word>
void TransposeBlock(const float* rows, int64_t stride, int64_t count, int64_t P, Word* out, const KernelTable& k) {
  for (int64_t begin = 0; begin < count; begin += kPanel) {
    const int64_t here = std::min(kPanel, count - begin);
    if constexpr (kPerWord<Word> == 2) {
      k.pack_bf16(rows + begin * stride, stride, 1, here, P, out + begin * P / 2);
    } else {
      k.pack_f32(rows + begin * stride, stride, 1, here, P, out + begin * P);
    }
  }
}

// Panels [padded/32][words of 64][32] of a block: a product with it contracts over its rows.
inline void SpreadBlock(const float* rows, int64_t stride, int64_t count, int64_t P, float* out, const KernelTable& k) {
  for (int64_t i = 0; i < count; ++i) {
    k.spread_f32(rows + i * stride, P, true, kKeyBlock * kPanel, reinterpret_cast<uint32_t*>(out + i * kPanel));
  }
}
inline void SpreadBlock(const float* rows, int64_t stride, int64_t count, int64_t P, uint32_t* out, const KernelTable& k) {
  for (int64_t i = 0; i < count; i += 2) {
    const float* row = rows + i * stride;
    k.spread_rounded(row, i + 1 < count ? row + stride : nullptr, P, true, kKeyBlock / 2 * kPanel, out + i / 2 * kPanel);
  }
}

// Rows of a block as the tiles read them, by panels of 32 columns: spread, or in place, but for the last columns of a width
// that is no multiple of 32, which are copied.
template <class Word>
struct BlockRows {
  const Word* rows;
  int64_t stride, panel_stride;
  int64_t whole;     // columns that lie at `rows`
  const Word* tail;  // [64,32], columns from `whole` on

  const Word* at(int64_t column) const { return column < whole ? rows + column / kPanel * panel_stride : tail; }
  int64_t stride_at(int64_t column) const { return column < whole ? stride : kPanel; }
};
template <class Word>
BlockRows<Word> SpreadRows(const Word* spread, int64_t P) {
  return {spread, kPanel, kKeyBlock / kPerWord<Word> * kPanel, RoundUpToPanel(P), nullptr};
}
inline BlockRows<float> RowsInPlace(const float* rows, int64_t stride, int64_t count, int64_t P, float* tail) {
  const int64_t whole = P / kPanel * kPanel;
  for (int64_t i = 0; whole < P && i < count; ++i) {
    std::memcpy(tail + i * kPanel, rows + i * stride + whole, static_cast<size_t>(P - whole) * sizeof(float));
    std::fill(tail + i * kPanel + P - whole, tail + (i + 1) * kPanel, 0.0f);
  }
  return {rows, stride, kPanel, whole, tail};
}

}  // namespace moe
