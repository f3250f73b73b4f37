// Included by each isa/*.cc after it has set MOE_ISA (a namespace) and MOE_VECTOR_BYTES. Everything lands in an unnamed
// namespace, so that no symbol compiled for a newer instruction set can be merged with another file's.
//
// Vectors are the compilers' own extension (g++ and clang): one source for every width. No standard library calls here: an
// inline function of it could be emitted as a weak symbol with this file's instructions.

#include <stdint.h>

#include "moe/base/bf16.h"
#include "moe/kernels/cpu/kernel_table.h"

namespace moe::MOE_ISA {
namespace {

typedef float VecF __attribute__((vector_size(MOE_VECTOR_BYTES)));
typedef int32_t VecI __attribute__((vector_size(MOE_VECTOR_BYTES)));
typedef uint32_t VecU __attribute__((vector_size(MOE_VECTOR_BYTES)));
typedef uint16_t VecH __attribute__((vector_size(MOE_VECTOR_BYTES)));
typedef float VecFU __attribute__((vector_size(MOE_VECTOR_BYTES), aligned(4), may_alias));  // unaligned, in memory
typedef int32_t VecIU __attribute__((vector_size(MOE_VECTOR_BYTES), aligned(4), may_alias));
typedef float AnyFloat __attribute__((may_alias));  // four bytes moved as a float, whatever they are

constexpr int64_t kLanes = MOE_VECTOR_BYTES / 4;
constexpr int64_t kPanelColumns = 32;

#define MOE_INLINE inline __attribute__((always_inline))
// The compiler must assume that this vector, in its register, has just changed.
#if defined(__AVX512F__)
#define MOE_KEEP(vector) __asm__ volatile("" : "+v"(vector))
#elif defined(__x86_64__)
#define MOE_KEEP(vector) __asm__ volatile("" : "+x"(vector))
#else
#define MOE_KEEP(vector) __asm__ volatile("" : "+w"(vector))
#endif

MOE_INLINE VecF Load(const AnyFloat* p) {
  return *reinterpret_cast<const VecFU*>(p);
}
MOE_INLINE void Store(AnyFloat* p, VecF v) {
  *reinterpret_cast<VecFU*>(p) = v;
}
// Past the caches, for what is not read again soon; p at a multiple of the vector. Others see it after StreamFence.
MOE_INLINE void StoreStream(AnyFloat* p, VecF v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(reinterpret_cast<float*>(p), reinterpret_cast<__m512>(v));
#elif defined(__AVX__)
  _mm256_stream_ps(reinterpret_cast<float*>(p), reinterpret_cast<__m256>(v));
#else
  Store(p, v);
#endif
}
MOE_INLINE void StreamFence() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}
MOE_INLINE VecI LoadInt(const void* p) {
  return *static_cast<const VecIU*>(p);
}
MOE_INLINE VecF Broadcast(float x) {
  return VecF{} + x;
}

MOE_INLINE VecF Max(VecF a, VecF b) {  // b where a is not greater, NaN included
  return a > b ? a : b;
}
MOE_INLINE VecF Sqrt(VecF x) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecF>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(x)));  // g++ 12 warns of _mm512_sqrt_ps
#elif defined(__AVX__)
  return reinterpret_cast<VecF>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
#else
  for (int64_t i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
// {0, 1, 2, ...} + start
MOE_INLINE VecI LaneIndex(int32_t start) {
#if MOE_VECTOR_BYTES == 64
  return VecI{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + start;
#elif MOE_VECTOR_BYTES == 32
  return VecI{0, 1, 2, 3, 4, 5, 6, 7} + start;
#else
  return VecI{0, 1, 2, 3} + start;
#endif
}

// Whether some lane of a comparison's result is true.
MOE_INLINE bool AnyLane(VecI mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX__)
  return !_mm256_testz_si256(reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256i>(mask));
#else
  int32_t any = 0;
  for (int64_t i = 0; i < kLanes; ++i) any |= mask[i];
  return any != 0;
#endif
}

// Adds or takes the maximum over lanes in a fixed tree order: lane i with lane i + half, until one is left.
typedef float Vec4F __attribute__((vector_size(16)));
typedef float Vec8F __attribute__((vector_size(32)));
template <class Op>
MOE_INLINE float FoldLanes(VecF v, Op op) {
#if MOE_VECTOR_BYTES == 64
  const Vec8F eight =
      op(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  const Vec4F x = op(__builtin_shufflevector(eight, eight, 0, 1, 2, 3), __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
#elif MOE_VECTOR_BYTES == 32
  const Vec4F x = op(__builtin_shufflevector(v, v, 0, 1, 2, 3), __builtin_shufflevector(v, v, 4, 5, 6, 7));
#else
  const Vec4F x = v;
#endif
  const Vec4F two = op(x, __builtin_shufflevector(x, x, 2, 3, 2, 3));
  return op(two, __builtin_shufflevector(two, two, 1, 1, 1, 1))[0];
}
MOE_INLINE float SumLanes(VecF v) {
  return FoldLanes(
      v, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}
MOE_INLINE float MaxLanes(VecF v) {
  return FoldLanes(
      v, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

// The lower (upper) halves of a and b, lane by lane in turn.
MOE_INLINE VecF InterleaveLow(VecF a, VecF b) {
#if MOE_VECTOR_BYTES == 64
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif MOE_VECTOR_BYTES == 32
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}
MOE_INLINE VecF InterleaveHigh(VecF a, VecF b) {
#if MOE_VECTOR_BYTES == 64
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif MOE_VECTOR_BYTES == 32
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}
// The upper halves of the lanes of a, then of b, side by side: {a0, a1}, {a2, a3}, ...
MOE_INLINE VecF UpperHalves(VecU a, VecU b) {
  const VecH x = reinterpret_cast<VecH>(a), y = reinterpret_cast<VecH>(b);
#if MOE_VECTOR_BYTES == 64
  return reinterpret_cast<VecF>(__builtin_shufflevector(x, y, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35,
                                                        37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63));
#elif MOE_VECTOR_BYTES == 32
  return reinterpret_cast<VecF>(__builtin_shufflevector(x, y, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
#else
  return reinterpret_cast<VecF>(__builtin_shufflevector(x, y, 1, 3, 5, 7, 9, 11, 13, 15));
#endif
}
// The same within each quarter of four words.
MOE_INLINE VecF QuarterLow(VecF a, VecF b) {
#if MOE_VECTOR_BYTES == 64
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
#elif MOE_VECTOR_BYTES == 32
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}
MOE_INLINE VecF QuarterHigh(VecF a, VecF b) {
#if MOE_VECTOR_BYTES == 64
  return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
#elif MOE_VECTOR_BYTES == 32
  return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}
// m[i][j] <-> m[j][i]: log2(kLanes) perfect shuffles.
MOE_INLINE void Transpose(VecF* m) {
#pragma GCC unroll 4
  for (int64_t width = 1; width < kLanes; width *= 2) {
    VecF out[kLanes];
#pragma GCC unroll 8
    for (int64_t i = 0; i < kLanes / 2; ++i) {
      out[2 * i] = InterleaveLow(m[i], m[i + kLanes / 2]);
      out[2 * i + 1] = InterleaveHigh(m[i], m[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) m[i] = out[i];
  }
}

// Below this exp is under the normal range and given as exactly 0; above kExpHigh it is +inf.
constexpr float kExpLow = -87.33654f, kExpHigh = 88.72283f;

// exp(r), |r| <= ln(2)/2: polynomial after Cephes' expf.
MOE_INLINE VecF ExpOfRest(VecF r) {
  VecF p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r + 1.0f;
}

// exp(x) = p * 2^n to about 1 ulp, x in [kExpLow, kExpHigh] or NaN. Range reduction by the round-to-integer constant 1.5 *
// 2^23.
struct ExpParts {
  VecF p;
  VecI n;
};
MOE_INLINE ExpParts ExpReduced(VecF x) {
  constexpr float kRound = 12582912.0f;
  const VecF shifted = x * 1.44269504088896341f + kRound;
  const VecF n = shifted - kRound;
  const VecF r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  return {ExpOfRest(r), reinterpret_cast<VecI>(shifted) - 0x4b400000};
}
MOE_INLINE VecF PowerOfTwo(VecI n) {
  return reinterpret_cast<VecF>((n + 127) << 23);
}

// Exactly 0 below kExpLow, +inf above kExpHigh, NaN for NaN.
MOE_INLINE VecF Exp(VecF x) {
  const VecF clamped = x > Broadcast(kExpHigh) ? Broadcast(kExpHigh) : (x < Broadcast(kExpLow) ? Broadcast(kExpLow) : x);
  const ExpParts e = ExpReduced(clamped);
  const VecI half = e.n >> 1;  // 2^n in two factors: n may be 128, one above the largest exponent
  const VecF result = e.p * PowerOfTwo(half) * PowerOfTwo(e.n - half);
  const VecF high = x > Broadcast(kExpHigh) ? Broadcast(__builtin_inff()) : result;
  return x < Broadcast(kExpLow) ? VecF{} : high;
}
// The same, bit for bit, where x < 88 is known, as after a maximum is taken off. The round-to-integer constant holds the
// exponent's bias, so that its lowest bits are those of 2^n once shifted into place.
MOE_INLINE VecF ExpNoOverflow(VecF x) {
  constexpr float kRound = 12582912.0f + 127.0f;
  const VecF shifted = x * 1.44269504088896341f + kRound, n = shifted - kRound;
  const VecF power = reinterpret_cast<VecF>(reinterpret_cast<VecU>(shifted) << 23);
  return x < Broadcast(kExpLow) ? VecF{} : ExpOfRest((x - n * 0.693359375f) - n * -2.12194440e-4f) * power;
}

MOE_INLINE VecF Sigmoid(VecF x) {
  return 1.0f / (1.0f + Exp(-x));
}

}  // namespace
}  // namespace moe::MOE_ISA
