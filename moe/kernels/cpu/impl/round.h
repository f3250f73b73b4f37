// float32 to bf16, to the nearest even: single values, rows, pairs.
#pragma once

namespace moe::MOE_ISA {
namespace {

MOE_INLINE uint32_t Bf16Bits(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded;
}

// The lower half's elements and the upper half's in turn.
template <class V>
MOE_INLINE V InterleaveHalves(V v) {
#if MOE_VECTOR_BYTES == 64
  return __builtin_shufflevector(v, v, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12,
                                 28, 13, 29, 14, 30, 15, 31);
#elif MOE_VECTOR_BYTES == 32
  return __builtin_shufflevector(v, v, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(v, v, 0, 4, 1, 5, 2, 6, 3, 7);
#endif
}

// 16 floats at once by the CPU's own instruction, where it has one: it takes what is below the normal range for 0, as its
// products do.
#ifdef __AVX512BF16__
typedef uint16_t VecBf16 __attribute__((vector_size(32)));
MOE_INLINE VecBf16 RoundVector(const float* x) {
  return reinterpret_cast<VecBf16>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(Load(x))));
}
// A pair of each lane: `low` in its low half, `high` in its high one.
MOE_INLINE VecI RoundPairs(VecF low, VecF high) {
  typedef uint16_t Vec32 __attribute__((vector_size(64)));
  const auto v = reinterpret_cast<Vec32>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
  return reinterpret_cast<VecI>(InterleaveHalves(v));
}
#endif

MOE_INLINE void RoundRow(const float* x, int64_t n, Bf16* out) {
  int64_t i = 0;
#ifdef __AVX512BF16__
  for (; i + kLanes <= n; i += kLanes) {
    const VecBf16 rounded = RoundVector(x + i);
    __builtin_memcpy(out + i, &rounded, sizeof(rounded));
  }
#endif
  for (; i < n; ++i) out[i].bits = static_cast<uint16_t>(Bf16Bits(x[i]));
}
void ToBf16Row(const float* x, int64_t n, Bf16* out) {
  RoundRow(x, n, out);
}
// A row of a panel is one line.
void RoundRows(int64_t rows, int64_t n, const float* x, int64_t x_stride, Bf16* out, int64_t out_stride, bool stream) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride, out += out_stride) {
    if (n == kPanelColumns && stream) {
      alignas(64) Bf16 line[kPanelColumns];
      RoundRow(x, kPanelColumns, line);
      const auto* words = reinterpret_cast<const AnyFloat*>(line);
      auto* to = reinterpret_cast<AnyFloat*>(out);
      for (int64_t i = 0; i < kPanelColumns / 2; i += kLanes) StoreStream(to + i, Load(words + i));
    } else if (n == kPanelColumns) {
      RoundRow(x, kPanelColumns, out);
    } else if (n == kPanelColumns / 2) {
      RoundRow(x, kPanelColumns / 2, out);
    } else {
      RoundRow(x, n, out);
    }
  }
}
void InterleaveBf16(const float* x0, const float* x1, int64_t n, uint32_t* out) {
  int64_t i = 0;
#ifdef __AVX512BF16__
  for (; i + kLanes <= n; i += kLanes) {
    const VecI pairs = RoundPairs(Load(x0 + i), x1 == nullptr ? VecF{} : Load(x1 + i));
    __builtin_memcpy(out + i, &pairs, sizeof(pairs));
  }
#endif
  if (x1 == nullptr) {
    for (; i < n; ++i) out[i] = Bf16Bits(x0[i]);
  } else {
    for (; i < n; ++i) out[i] = Bf16Bits(x0[i]) | Bf16Bits(x1[i]) << 16;
  }
}

// Bf16Bits, in the upper half of every lane.
MOE_INLINE VecU RoundToUpperBf16(VecF x) {
#ifdef __AVX512BF16__
  return reinterpret_cast<VecU>(RoundPairs(VecF{}, x));
#else
  const VecU u = reinterpret_cast<VecU>(x);
  return (u & 0x7fffffffu) > 0x7f800000u ? u | 0x400000u : u + 0x7fffu + ((u >> 16) & 1u);
#endif
}

}  // namespace
}  // namespace moe::MOE_ISA
