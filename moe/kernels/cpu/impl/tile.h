// The register tile: `rows` rows by one panel of 32 columns, in passes of two vectors.
#pragma once

namespace moe::MOE_ISA {
namespace {

constexpr int64_t kPassVectors = 2;
constexpr int64_t kPassColumns = kPassVectors * kLanes;
constexpr int64_t kPasses = kPanelColumns / kPassColumns;
constexpr int64_t kMaxRows = MOE_TILE_ROWS;

// a[r][k]
template <class T>
struct RowPointers {
  static constexpr int64_t kLinesPerStep = 2;  // asked for: a single tile must ask for a whole panel
  const T* const* a;
  MOE_INLINE T At(int64_t r, int64_t k) const { return a[r][k]; }
};
// a[k*stride + r]
template <class T>
struct Columns {
  static constexpr int64_t kLinesPerStep = 1;
  const T* a;
  int64_t stride;
  MOE_INLINE T At(int64_t r, int64_t k) const { return a[k * stride + r]; }
};

// a[r*kStride + k]: a distance that is known leaves the registers to the products.
template <class T, int64_t kStride>
struct Rows {
  static constexpr int64_t kLinesPerStep = 1;
  const T* a;
  MOE_INLINE T At(int64_t r, int64_t k) const { return a[r * kStride + k]; }
};

// acc += a * b for one float32 step of the contraction.
struct StepF32 {
  using Element = float;
  using BVector = VecF;
  using Acc = VecF;
  MOE_INLINE static BVector LoadB(const float* b) { return Load(b); }
  MOE_INLINE static VecF Fma(float a, BVector b, VecF acc) { return a * b + acc; }
  MOE_INLINE static void Keep(BVector& b) { MOE_KEEP(b); }
  static constexpr double kFlop = 2;
};

// acc += a.low * b.low + a.high * b.high for one pair of bf16.
struct StepBf16 {
  using Element = uint32_t;
  using Acc = VecF;
  static constexpr double kFlop = 4;
#ifdef __AVX512BF16__
  using BVector = VecI;
  MOE_INLINE static BVector LoadB(const uint32_t* b) {
    return LoadInt(b);
  }
  MOE_INLINE static void Keep(BVector& b) {
    MOE_KEEP(b);
  }
  MOE_INLINE static VecF Fma(uint32_t a, BVector b, VecF acc) {
    return reinterpret_cast<VecF>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(acc),
                                                   reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a))),
                                                   reinterpret_cast<__m512bh>(b)));
  }
#else  // the halves of a pair are two floats once shifted into place
  struct BVector {
    VecF low, high;
  };
  MOE_INLINE static BVector LoadB(const uint32_t* b) {
    const VecI pairs = LoadInt(b);
    return {reinterpret_cast<VecF>(pairs << 16), reinterpret_cast<VecF>(pairs & static_cast<int32_t>(0xffff0000u))};
  }
  MOE_INLINE static void Keep(BVector& b) {
    MOE_KEEP(b.low);
    MOE_KEEP(b.high);
  }
  MOE_INLINE static VecF Fma(uint32_t a, BVector b, VecF acc) {
    const float low = __builtin_bit_cast(float, a << 16), high = __builtin_bit_cast(float, a & 0xffff0000u);
    acc = low * b.low + acc;
    return high * b.high + acc;
  }
#endif
};

template <int kRows, class Step, class A>
MOE_INLINE void Tile(int64_t K, const A a, const typename Step::Element* b, int64_t b_stride, float* c, int64_t ldc,
                     bool accumulate, const TileHints& hints) {
  if (hints.c != nullptr) {
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t n = 0; n < kPanelColumns; n += 16) __builtin_prefetch(hints.c + r * ldc + n, 1);
    }
  }
  // Without an address, one that is there already: a branch in the loop would cost more.
  const char* wanted = static_cast<const char*>(hints.b != nullptr ? hints.b : b);
  const int64_t wanted_step = hints.b != nullptr ? hints.b_step / (A::kLinesPerStep * kPasses) : 0, half = wanted_step * K;
  for (int64_t column = 0; column < kPanelColumns; column += kPassColumns) {
    VecF acc[kRows][kPassVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kPassVectors; ++v) acc[r][v] = accumulate ? Load(c + r * ldc + column + v * kLanes) : VecF{};
    }
    const typename Step::Element* row = b + column;
    for (int64_t k = 0; k < K; ++k, row += b_stride, wanted += wanted_step) {
      __builtin_prefetch(wanted, 0, 2);
      if (A::kLinesPerStep == 2) __builtin_prefetch(wanted + half, 0, 2);
      typename Step::BVector bv[kPassVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kPassVectors; ++v) bv[v] = Step::LoadB(row + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const typename Step::Element x = a.At(r, k);
#pragma GCC unroll 2
        for (int v = 0; v < kPassVectors; ++v) acc[r][v] = Step::Fma(x, bv[v], acc[r][v]);
      }
    }
    if (hints.stream) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kPassVectors; ++v) StoreStream(c + r * ldc + column + v * kLanes, acc[r][v]);
      }
      continue;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kPassVectors; ++v) Store(c + r * ldc + column + v * kLanes, acc[r][v]);
    }
  }
}

template <class Step, class A, int kRows = kMaxRows>
MOE_INLINE void TileRows(int64_t rows, int64_t K, const A a, const typename Step::Element* b, int64_t b_stride, float* c,
                         int64_t ldc, bool accumulate, const TileHints& hints) {
  if (rows == kRows) return Tile<kRows, Step>(K, a, b, b_stride, c, ldc, accumulate, hints);
  if constexpr (kRows > 1) TileRows<Step, A, kRows - 1>(rows, K, a, b, b_stride, c, ldc, accumulate, hints);
}

void TileF32(int64_t rows, int64_t K, const float* const* a, const float* b, int64_t b_stride, float* c, int64_t ldc,
             bool accumulate, const TileHints& hints) {
  TileRows<StepF32>(rows, K, RowPointers<float>{a}, b, b_stride, c, ldc, accumulate, hints);
}
void OuterF32(int64_t rows, int64_t K, const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
              int64_t ldc, bool accumulate, const TileHints& hints) {
  TileRows<StepF32>(rows, K, Columns<float>{a, a_stride}, b, b_stride, c, ldc, accumulate, hints);
}
void TileBf16(int64_t rows, int64_t K2, const uint32_t* const* a, const uint32_t* b, int64_t b_stride, float* c, int64_t ldc,
              bool accumulate, const TileHints& hints) {
  TileRows<StepBf16>(rows, K2, RowPointers<uint32_t>{a}, b, b_stride, c, ldc, accumulate, hints);
}
void OuterBf16(int64_t rows, int64_t K2, const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, float* c,
               int64_t ldc, bool accumulate, const TileHints& hints) {
  TileRows<StepBf16>(rows, K2, Columns<uint32_t>{a, a_stride}, b, b_stride, c, ldc, accumulate, hints);
}

void BlockF32(int64_t rows, int64_t K, const float* a, const float* b, int64_t b_stride, float* c, int64_t ldc,
              bool accumulate) {
  TileRows<StepF32>(rows, K, Rows<float, kSoftmaxBlock>{a}, b, b_stride, c, ldc, accumulate, {});
}
void BlockBf16(int64_t rows, int64_t K2, const uint32_t* a, const uint32_t* b, int64_t b_stride, float* c, int64_t ldc,
               bool accumulate) {
  TileRows<StepBf16>(rows, K2, Rows<uint32_t, kSoftmaxBlock / 2>{a}, b, b_stride, c, ldc, accumulate, {});
}

}  // namespace
}  // namespace moe::MOE_ISA
