// The register tile: `rows` rows by one panel of 32 columns, in passes of two vectors.

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
                     bool accumulate, const NextTiles& next) {
  if (next.c != nullptr) {
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t n = 0; n < kPanelColumns; n += 16) __builtin_prefetch(next.c + r * ldc + n, 1);
    }
  }
  // Without an address, one that is there already: a branch in the loop would cost more.
  const char* wanted = static_cast<const char*>(next.b != nullptr ? next.b : b);
  const int64_t wanted_step = next.b != nullptr ? next.b_step / (A::kLinesPerStep * kPasses) : 0, half = wanted_step * K;
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
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kPassVectors; ++v) Store(c + r * ldc + column + v * kLanes, acc[r][v]);
    }
  }
}

template <class Step, class A, int kRows = kMaxRows>
MOE_INLINE void TileRows(int64_t rows, int64_t K, const A a, const typename Step::Element* b, int64_t b_stride, float* c,
                         int64_t ldc, bool accumulate, const NextTiles& next) {
  if (rows == kRows) return Tile<kRows, Step>(K, a, b, b_stride, c, ldc, accumulate, next);
  if constexpr (kRows > 1) TileRows<Step, A, kRows - 1>(rows, K, a, b, b_stride, c, ldc, accumulate, next);
}

void TileF32(int64_t rows, int64_t K, const float* const* a, const float* b, int64_t b_stride, float* c, int64_t ldc,
             bool accumulate, const NextTiles& next) {
  TileRows<StepF32>(rows, K, RowPointers<float>{a}, b, b_stride, c, ldc, accumulate, next);
}
void OuterF32(int64_t rows, int64_t K, const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
              int64_t ldc, bool accumulate, const NextTiles& next) {
  TileRows<StepF32>(rows, K, Columns<float>{a, a_stride}, b, b_stride, c, ldc, accumulate, next);
}
void TileBf16(int64_t rows, int64_t K2, const uint32_t* const* a, const uint32_t* b, int64_t b_stride, float* c, int64_t ldc,
              bool accumulate, const NextTiles& next) {
  TileRows<StepBf16>(rows, K2, RowPointers<uint32_t>{a}, b, b_stride, c, ldc, accumulate, next);
}
void OuterBf16(int64_t rows, int64_t K2, const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, float* c,
               int64_t ldc, bool accumulate, const NextTiles& next) {
  TileRows<StepBf16>(rows, K2, Columns<uint32_t>{a, a_stride}, b, b_stride, c, ldc, accumulate, next);
}

MOE_INLINE uint32_t Bf16Bits(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded;
}

// Two half vectors of 16-bit elements, one after the other, as indices of a shuffle.
#if MOE_VECTOR_BYTES == 64
#define MOE_ALL_OF_BOTH \
  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
#elif MOE_VECTOR_BYTES == 32
#define MOE_ALL_OF_BOTH 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#else
#define MOE_ALL_OF_BOTH 0, 1, 2, 3, 4, 5, 6, 7
#endif
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

void ToBf16Row(const float* x, int64_t n, Bf16* out) {
  int64_t i = 0;
#ifdef __AVX512BF16__
  for (; i + kLanes <= n; i += kLanes) {
    const VecBf16 rounded = RoundVector(x + i);
    __builtin_memcpy(out + i, &rounded, sizeof(rounded));
  }
#endif
  for (; i < n; ++i) out[i].bits = static_cast<uint16_t>(Bf16Bits(x[i]));
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

// Bf16Bits, in the upper half of every lane.
MOE_INLINE VecU RoundToUpperBf16(VecF x) {
#ifdef __AVX512BF16__
  return reinterpret_cast<VecU>(RoundPairs(VecF{}, x));
#else
  const VecU u = reinterpret_cast<VecU>(x);
  return (u & 0x7fffffffu) > 0x7f800000u ? u | 0x400000u : u + 0x7fffu + ((u >> 16) & 1u);
#endif
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

// Four products of 8-bit integers per lane, summed in 32 bits: what quantised weights could reach.
struct StepInt8 {
  using Element = uint32_t;
  using BVector = VecI;
  using Acc = VecI;
  static constexpr double kFlop = 8;
  MOE_INLINE static BVector LoadB(const uint32_t* b) { return LoadInt(b); }
  MOE_INLINE static void Keep(BVector& b) { MOE_KEEP(b); }
  MOE_INLINE static VecI Fma(uint32_t a, BVector b, VecI acc) {
#if defined(__AVX512VNNI__)
    const __m512i x = _mm512_set1_epi32(static_cast<int>(a));
    return reinterpret_cast<VecI>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), x, reinterpret_cast<__m512i>(b)));
#elif defined(__AVX512BW__)
    const __m512i x = _mm512_set1_epi32(static_cast<int>(a)), pairs = _mm512_maddubs_epi16(x, reinterpret_cast<__m512i>(b));
    return acc + reinterpret_cast<VecI>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(__AVX2__)
    const __m256i x = _mm256_set1_epi32(static_cast<int>(a)), pairs = _mm256_maddubs_epi16(x, reinterpret_cast<__m256i>(b));
    return acc + reinterpret_cast<VecI>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
    for (int i = 0; i < 32; i += 8) acc += static_cast<int32_t>(a >> i & 0xff) * (b << (24 - i) >> 24);
    return acc;
#endif
  }
};

// Multiply-adds on as many accumulators as a full tile has, operands never leaving registers: what the tile could reach.
template <class Step>
MOE_INLINE double Peak(int64_t steps, float* sink) {
  using Acc = typename Step::Acc;
  Acc acc[kMaxRows][kPassVectors] = {};
  const typename Step::Element zeros[kPassColumns] = {}, a{};  // any values do
  typename Step::BVector b[kPassVectors];
  for (int64_t v = 0; v < kPassVectors; ++v) b[v] = Step::LoadB(zeros + v * kLanes);
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 16
    for (int r = 0; r < kMaxRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kPassVectors; ++v) {
        Step::Keep(b[v]);  // else one product would serve all rows
        acc[r][v] = Step::Fma(a, b[v], acc[r][v]);
      }
    }
  }
  Acc sum = {};
  for (int r = 0; r < kMaxRows; ++r)
    for (int v = 0; v < kPassVectors; ++v) sum += acc[r][v];
  *sink = SumLanes(reinterpret_cast<VecF>(sum));
  return Step::kFlop * static_cast<double>(steps * kMaxRows * kPassColumns);
}
double PeakF32(int64_t steps, float* sink) {
  return Peak<StepF32>(steps, sink);
}
double PeakBf16(int64_t steps, float* sink) {
  return Peak<StepBf16>(steps, sink);
}
double PeakInt8(int64_t steps, float* sink) {
  return Peak<StepInt8>(steps, sink);
}

}  // namespace
}  // namespace moe::MOE_ISA
