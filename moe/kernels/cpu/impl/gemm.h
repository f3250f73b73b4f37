// The register tile: `rows` rows by one panel of 32 columns, in passes of two vectors.

namespace moe::MOE_ISA {
namespace {

constexpr int64_t kPassVectors = 2;
constexpr int64_t kPassColumns = kPassVectors * kLanes;
constexpr int64_t kMaxRows = MOE_TILE_ROWS;

// a[r][k]
template <class T>
struct RowPointers {
  const T* const* a;
  MOE_INLINE T At(int64_t r, int64_t k) const { return a[r][k]; }
};
// a[k*stride + r]
template <class T>
struct Columns {
  const T* a;
  int64_t stride;
  MOE_INLINE T At(int64_t r, int64_t k) const { return a[k * stride + r]; }
};

// acc += a * b for one float32 step of the contraction.
struct StepF32 {
  using Element = float;
  using BVector = VecF;
  MOE_INLINE static BVector LoadB(const float* b) { return Load(b); }
  MOE_INLINE static VecF Fma(float a, BVector b, VecF acc) { return a * b + acc; }
};

// acc += a.low * b.low + a.high * b.high for one pair of bf16.
struct StepBf16 {
  using Element = uint32_t;
#ifdef __AVX512BF16__
  using BVector = VecI;
  MOE_INLINE static BVector LoadB(const uint32_t* b) {
    return LoadInt(b);
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
  MOE_INLINE static VecF Fma(uint32_t a, BVector b, VecF acc) {
    const float low = __builtin_bit_cast(float, a << 16), high = __builtin_bit_cast(float, a & 0xffff0000u);
    acc = low * b.low + acc;
    return high * b.high + acc;
  }
#endif
};

template <int kRows, class Step, class A>
MOE_INLINE void Tile(int64_t K, const A a, const typename Step::Element* b, int64_t b_stride, float* c, int64_t ldc,
                     bool accumulate) {
  for (int64_t column = 0; column < kPanelColumns; column += kPassColumns) {
    VecF acc[kRows][kPassVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kPassVectors; ++v) acc[r][v] = accumulate ? Load(c + r * ldc + column + v * kLanes) : VecF{};
    }
    const typename Step::Element* row = b + column;
    for (int64_t k = 0; k < K; ++k, row += b_stride) {
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
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kPassVectors; ++v) Store(c + r * ldc + column + v * kLanes, acc[r][v]);
    }
  }
}

template <class Step, class A, int kRows = kMaxRows>
MOE_INLINE void TileRows(int64_t rows, int64_t K, const A a, const typename Step::Element* b, int64_t b_stride, float* c,
                         int64_t ldc, bool accumulate) {
  if (rows == kRows) return Tile<kRows, Step>(K, a, b, b_stride, c, ldc, accumulate);
  if constexpr (kRows > 1) TileRows<Step, A, kRows - 1>(rows, K, a, b, b_stride, c, ldc, accumulate);
}

void TileF32(int64_t rows, int64_t K, const float* const* a, const float* b, int64_t b_stride, float* c, int64_t ldc,
             bool accumulate) {
  TileRows<StepF32>(rows, K, RowPointers<float>{a}, b, b_stride, c, ldc, accumulate);
}
void OuterF32(int64_t rows, int64_t K, const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
              int64_t ldc, bool accumulate) {
  TileRows<StepF32>(rows, K, Columns<float>{a, a_stride}, b, b_stride, c, ldc, accumulate);
}
void TileBf16(int64_t rows, int64_t K2, const uint32_t* const* a, const uint32_t* b, int64_t b_stride, float* c, int64_t ldc,
              bool accumulate) {
  TileRows<StepBf16>(rows, K2, RowPointers<uint32_t>{a}, b, b_stride, c, ldc, accumulate);
}
void OuterBf16(int64_t rows, int64_t K2, const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, float* c,
               int64_t ldc, bool accumulate) {
  TileRows<StepBf16>(rows, K2, Columns<uint32_t>{a, a_stride}, b, b_stride, c, ldc, accumulate);
}

MOE_INLINE uint32_t Bf16Bits(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded;
}

void PackF32(const float* w, int64_t n_stride, int64_t k_stride, int64_t num_n, int64_t K, float* panel) {
  constexpr int64_t kBlock = 64;  // of k: the panel lines being written stay in L1
  for (int64_t k0 = 0; k0 < K; k0 += kBlock) {
    const int64_t k1 = k0 + kBlock < K ? k0 + kBlock : K;
    for (int64_t n = 0; n < kPanelColumns; ++n) {
      const float* from = w + n * n_stride;
      if (n < num_n) {
        for (int64_t k = k0; k < k1; ++k) panel[k * kPanelColumns + n] = from[k * k_stride];
      } else {
        for (int64_t k = k0; k < k1; ++k) panel[k * kPanelColumns + n] = 0.0f;
      }
    }
  }
}

void PackBf16(const float* w, int64_t n_stride, int64_t k_stride, int64_t num_n, int64_t K, uint32_t* panel) {
  constexpr int64_t kBlock = 64;  // pairs
  const int64_t whole = K / 2, pairs = (K + 1) / 2;
  for (int64_t p0 = 0; p0 < pairs; p0 += kBlock) {
    const int64_t p1 = p0 + kBlock < pairs ? p0 + kBlock : pairs;
    for (int64_t n = 0; n < kPanelColumns; ++n) {
      const float* from = w + n * n_stride;
      for (int64_t p = p0; p < p1; ++p) {
        uint32_t pair = 0;
        if (n < num_n) {
          pair = Bf16Bits(from[2 * p * k_stride]);
          if (p < whole) pair |= Bf16Bits(from[(2 * p + 1) * k_stride]) << 16;
        }
        panel[p * kPanelColumns + n] = pair;
      }
    }
  }
}

void ToBf16Row(const float* x, int64_t n, Bf16* out) {
  for (int64_t i = 0; i < n; ++i) out[i].bits = static_cast<uint16_t>(Bf16Bits(x[i]));
}
void ToFloatRow(const Bf16* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = __builtin_bit_cast(float, static_cast<uint32_t>(x[i].bits) << 16);
}
void InterleaveBf16(const float* x0, const float* x1, int64_t n, uint32_t* out) {
  if (x1 == nullptr) {
    for (int64_t i = 0; i < n; ++i) out[i] = Bf16Bits(x0[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = Bf16Bits(x0[i]) | Bf16Bits(x1[i]) << 16;
  }
}

}  // namespace
}  // namespace moe::MOE_ISA
