// Operands in the order in which the outer tiles read them: rows turned into columns, steps of one or two tokens spread over
// tiles and panels.
#pragma once
#include "moe/kernels/cpu/impl/round.h"
#include "moe/kernels/cpu/impl/tile.h"

namespace moe::MOE_ISA {
namespace {

// Two half vectors of 16-bit elements, one after the other, as indices of a shuffle.
#if MOE_VECTOR_BYTES == 64
#define MOE_ALL_OF_BOTH \
  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
#elif MOE_VECTOR_BYTES == 32
#define MOE_ALL_OF_BOTH 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#else
#define MOE_ALL_OF_BOTH 0, 1, 2, 3, 4, 5, 6, 7
#endif
// Words of one step: floats, pairs of floats rounded, pairs of bf16. `At` gives one, `Vector` kLanes of them.
struct WordsF32 {
  const float* x;
  MOE_INLINE uint32_t At(int64_t i) const { return __builtin_bit_cast(uint32_t, x[i]); }
  MOE_INLINE VecI Vector(int64_t i) const { return LoadInt(x + i); }
};
template <bool kTwo>
struct WordsRounded {
  const float *x0, *x1;
  MOE_INLINE uint32_t At(int64_t i) const { return Bf16Bits(x0[i]) | (kTwo ? Bf16Bits(x1[i]) << 16 : 0); }
  MOE_INLINE VecI Vector(int64_t i) const {
#ifdef __AVX512BF16__
    return RoundPairs(Load(x0 + i), kTwo ? Load(x1 + i) : VecF{});
#else
    uint32_t words[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) words[j] = At(i + j);
    return LoadInt(words);
#endif
  }
};
template <bool kTwo>
struct WordsBf16 {
  typedef uint16_t Half __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
  typedef uint16_t Whole __attribute__((vector_size(4 * kLanes)));
  const Bf16 *x0, *x1;
  MOE_INLINE uint32_t At(int64_t i) const { return x0[i].bits | (kTwo ? static_cast<uint32_t>(x1[i].bits) << 16 : 0); }
  MOE_INLINE VecI Vector(int64_t i) const {
    const Half low = *reinterpret_cast<const Half*>(x0 + i), high = kTwo ? *reinterpret_cast<const Half*>(x1 + i) : Half{};
    return reinterpret_cast<VecI>(InterleaveHalves(__builtin_shufflevector(low, high, MOE_ALL_OF_BOTH)));
  }
};

template <class Words>
MOE_INLINE void Spread(const Words words, int64_t n, bool panels, int64_t stride, uint32_t* out) {
  const int64_t width = panels ? kPanelColumns : kMaxRows;
  int64_t i = 0;
  if (panels) {
    for (; i + kPanelColumns <= n; i += kPanelColumns, out += stride) {
#pragma GCC unroll 8
      for (int64_t j = 0; j < kPanelColumns; j += kLanes) {
        const VecI v = words.Vector(i + j);
        __builtin_memcpy(out + j, &v, sizeof(v));
      }
    }
  } else {
    static_assert(kMaxRows <= kLanes);
    for (; i + kLanes <= n; i += kMaxRows, out += stride) {
      const VecI v = words.Vector(i);
      __builtin_memcpy(out, &v, sizeof(v));
    }
  }
  for (; i < n; i += width, out += stride) {
    for (int64_t j = 0; j < width; ++j) out[j] = i + j < n ? words.At(i + j) : 0;
  }
}
void SpreadF32(const float* x, int64_t n, bool panels, int64_t stride, uint32_t* out) {
  Spread(WordsF32{x}, n, panels, stride, out);
}
void SpreadRounded(const float* x0, const float* x1, int64_t n, bool panels, int64_t stride, uint32_t* out) {
  if (x1 == nullptr) return Spread(WordsRounded<false>{x0, x1}, n, panels, stride, out);
  Spread(WordsRounded<true>{x0, x1}, n, panels, stride, out);
}
void SpreadBf16(const Bf16* x0, const Bf16* x1, int64_t n, bool panels, int64_t stride, uint32_t* out) {
  if (x1 == nullptr) return Spread(WordsBf16<false>{x0, x1}, n, panels, stride, out);
  Spread(WordsBf16<true>{x0, x1}, n, panels, stride, out);
}

// Four words of a vector, the kQuarter-th.
template <int kQuarter>
MOE_INLINE Vec4F Quarter(VecF v) {
#if MOE_VECTOR_BYTES == 16
  return v;
#else
  return __builtin_shufflevector(v, v, 4 * kQuarter, 4 * kQuarter + 1, 4 * kQuarter + 2, 4 * kQuarter + 3);
#endif
}
// The four columns k of block [4][kLanes] with k / 4 == kQuarter, as rows of out; then those of the next quarter.
template <int kQuarter = 0, int kGroups>
MOE_INLINE void StoreColumns(const VecF (&block)[kGroups][4], float* out) {
  if constexpr (kQuarter < kLanes / 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        const Vec4F four = Quarter<kQuarter>(block[g][i]);
        __builtin_memcpy(out + (4 * kQuarter + i) * kMaxRows + 4 * g, &four, sizeof(four));
      }
    }
    StoreColumns<kQuarter + 1>(block, out);
  }
}

// out[k*kMaxRows + r] = a[r][k]: what the outer tiles read in one stream. Squares of 4 by 4 turn within the quarters of
// vectors. A height that is no multiple of four ends each step with what the next one overwrites, the last one beyond the end.
void InterleaveTile(int64_t rows, int64_t K, const uint32_t* const* a, uint32_t* out) {
  constexpr int kGroups = static_cast<int>((kMaxRows + 3) / 4);
  const AnyFloat* row[4 * kGroups];
  for (int64_t r = 0; r < 4 * kGroups; ++r) row[r] = reinterpret_cast<const AnyFloat*>(a[r < rows ? r : 0]);
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) {
    VecF block[kGroups][4];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      const VecF x0 = Load(row[4 * g] + k), x1 = Load(row[4 * g + 1] + k);
      const VecF x2 = Load(row[4 * g + 2] + k), x3 = Load(row[4 * g + 3] + k);
      const VecF low02 = QuarterLow(x0, x2), high02 = QuarterHigh(x0, x2);
      const VecF low13 = QuarterLow(x1, x3), high13 = QuarterHigh(x1, x3);
      block[g][0] = QuarterLow(low02, low13), block[g][1] = QuarterHigh(low02, low13);
      block[g][2] = QuarterLow(high02, high13), block[g][3] = QuarterHigh(high02, high13);
    }
    StoreColumns(block, reinterpret_cast<float*>(out + k * kMaxRows));
  }
  for (; k < K; ++k) {
    for (int64_t r = 0; r < rows; ++r) out[k * kMaxRows + r] = a[r][k];
  }
}

}  // namespace
}  // namespace moe::MOE_ISA
