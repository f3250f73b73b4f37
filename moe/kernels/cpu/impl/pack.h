// Weights to panels of 32 columns (PackedWeight): one pack, or the forward and the transposed one from a single reading.
#pragma once
#include "moe/kernels/cpu/impl/round.h"

namespace moe::MOE_ISA {
namespace {

// panel[k*32 + n] = rows[n*stride + k] for n < num_n, 0 for the other n < 32; k in [0, K). Square blocks turn in registers.
MOE_INLINE void TransposeToPanel(const AnyFloat* rows, int64_t stride, int64_t num_n, int64_t K, AnyFloat* panel) {
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) {
    for (int64_t n0 = 0; n0 < kPanelColumns; n0 += kLanes) {
      VecF block[kLanes];
      if (n0 + kLanes <= num_n) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kLanes; ++i) block[i] = Load(rows + (n0 + i) * stride + k);
      } else {
        for (int64_t i = 0; i < kLanes; ++i) block[i] = n0 + i < num_n ? Load(rows + (n0 + i) * stride + k) : VecF{};
      }
      Transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) Store(panel + (k + i) * kPanelColumns + n0, block[i]);
    }
  }
  for (; k < K; ++k) {
    for (int64_t n = 0; n < kPanelColumns; ++n) panel[k * kPanelColumns + n] = n < num_n ? rows[n * stride + k] : 0.0f;
  }
}

void PackF32(const float* w, int64_t n_stride, int64_t k_stride, int64_t num_n, int64_t K, float* panel) {
  if (k_stride == 1) return TransposeToPanel(w, n_stride, num_n, K, panel);
  for (int64_t k = 0; k < K; ++k, w += k_stride, panel += kPanelColumns) {
    if (n_stride == 1 && num_n == kPanelColumns) {
      for (int64_t n = 0; n < kPanelColumns; n += kLanes) Store(panel + n, Load(w + n));
    } else {
      for (int64_t n = 0; n < kPanelColumns; ++n) panel[n] = n < num_n ? w[n * n_stride] : 0.0f;
    }
  }
}

void PackBf16(const float* w, int64_t n_stride, int64_t k_stride, int64_t num_n, int64_t K, uint32_t* panel) {
  constexpr int64_t kBlock = 64;  // pairs
  const int64_t whole = K / 2, pairs = (K + 1) / 2;
  if (k_stride == 1) {  // rounded row by row, then transposed by pairs, which move as if they were floats
    uint32_t rounded[kPanelColumns * kBlock];
    for (int64_t p0 = 0; p0 < pairs; p0 += kBlock) {
      const int64_t num_pairs = p0 + kBlock < pairs ? kBlock : pairs - p0, k0 = 2 * p0;
      const int64_t num_k = K - k0 < 2 * kBlock ? K - k0 : 2 * kBlock;
      for (int64_t n = 0; n < num_n; ++n) {
        auto* row = reinterpret_cast<Bf16*>(rounded + n * kBlock);
        ToBf16Row(w + n * n_stride + k0, num_k, row);
        if (num_k % 2 != 0) row[num_k].bits = 0;
      }
      TransposeToPanel(reinterpret_cast<const AnyFloat*>(rounded), kBlock, num_n, num_pairs,
                       reinterpret_cast<AnyFloat*>(panel + p0 * kPanelColumns));
    }
    return;
  }
  for (int64_t p = 0; p < pairs; ++p, w += 2 * k_stride, panel += kPanelColumns) {
    const float* second = p < whole ? w + k_stride : nullptr;
    if (n_stride == 1 && num_n == kPanelColumns) {
      InterleaveBf16(w, second, kPanelColumns, panel);
    } else {
      for (int64_t n = 0; n < kPanelColumns; ++n) {
        const uint32_t high = second != nullptr && n < num_n ? Bf16Bits(second[n * n_stride]) : 0;
        panel[n] = n < num_n ? Bf16Bits(w[n * n_stride]) | high << 16 : 0;
      }
    }
  }
}

// Blocks that fill whole panels of both packs: every value is read once, and turned in registers for the forward pack.
template <bool kStream>
MOE_INLINE void PackBlockF32(const float* w, int64_t stride, int64_t cols, float* forward, float* transposed,
                             int64_t transposed_stride) {
  const auto store = [](AnyFloat * p, VecF x) __attribute__((always_inline)) {
    kStream ? StoreStream(p, x) : Store(p, x);
  };
  for (int64_t c = 0; c < cols; c += kLanes) {
    float* panel = transposed + c / kPanelColumns * transposed_stride + c % kPanelColumns;
    for (int64_t n0 = 0; n0 < kPanelColumns; n0 += kLanes) {
      VecF block[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        block[i] = Load(w + (n0 + i) * stride + c);
        store(panel + (n0 + i) * kPanelColumns, block[i]);
      }
      Transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) store(forward + (c + i) * kPanelColumns + n0, block[i]);
    }
  }
  if (kStream) StreamFence();
}

template <bool kStream>
MOE_INLINE void PackBlockBf16(const float* w, int64_t stride, int64_t cols, uint32_t* forward, uint32_t* transposed,
                              int64_t transposed_stride) {
  const auto store = [](uint32_t * p, VecF x) __attribute__((always_inline)) {
    auto* to = reinterpret_cast<AnyFloat*>(p);
    kStream ? StoreStream(to, x) : Store(to, x);
  };
  for (int64_t c = 0; c < cols; c += 2 * kLanes) {
    uint32_t* panel = transposed + c / kPanelColumns * transposed_stride + c % kPanelColumns;
    for (int64_t n0 = 0; n0 < kPanelColumns; n0 += kLanes) {
      VecF block[kLanes];  // pairs along the columns of a row
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; i += 2) {
        const float *row0 = w + (n0 + i) * stride + c, *row1 = row0 + stride;
        const VecU a0 = RoundToUpperBf16(Load(row0)), b0 = RoundToUpperBf16(Load(row0 + kLanes));
        const VecU a1 = RoundToUpperBf16(Load(row1)), b1 = RoundToUpperBf16(Load(row1 + kLanes));
        uint32_t* pairs = panel + (n0 + i) / 2 * kPanelColumns;  // along the rows
        store(pairs, reinterpret_cast<VecF>(a0 >> 16 | (a1 & 0xffff0000u)));
        store(pairs + kLanes, reinterpret_cast<VecF>(b0 >> 16 | (b1 & 0xffff0000u)));
        block[i] = UpperHalves(a0, b0), block[i + 1] = UpperHalves(a1, b1);
      }
      Transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) store(forward + (c / 2 + i) * kPanelColumns + n0, block[i]);
    }
  }
  if (kStream) StreamFence();
}

void PackBothF32(const float* w, int64_t stride, int64_t cols, bool stream, float* forward, float* transposed,
                 int64_t transposed_stride) {
  if (stream) return PackBlockF32<true>(w, stride, cols, forward, transposed, transposed_stride);
  PackBlockF32<false>(w, stride, cols, forward, transposed, transposed_stride);
}
void PackBothBf16(const float* w, int64_t stride, int64_t cols, bool stream, uint32_t* forward, uint32_t* transposed,
                  int64_t transposed_stride) {
  if (stream) return PackBlockBf16<true>(w, stride, cols, forward, transposed, transposed_stride);
  PackBlockBf16<false>(w, stride, cols, forward, transposed, transposed_stride);
}

}  // namespace
}  // namespace moe::MOE_ISA
