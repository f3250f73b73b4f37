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
typedef float VecFU __attribute__((vector_size(MOE_VECTOR_BYTES), aligned(4), may_alias));  // unaligned, in memory
typedef int32_t VecIU __attribute__((vector_size(MOE_VECTOR_BYTES), aligned(4), may_alias));

constexpr int64_t kLanes = MOE_VECTOR_BYTES / 4;
constexpr int64_t kPanelColumns = 32;

#define MOE_INLINE inline __attribute__((always_inline))

MOE_INLINE VecF Load(const float* p) {
  return *reinterpret_cast<const VecFU*>(p);
}
MOE_INLINE void Store(float* p, VecF v) {
  *reinterpret_cast<VecFU*>(p) = v;
}
MOE_INLINE VecI LoadInt(const void* p) {
  return *static_cast<const VecIU*>(p);
}
MOE_INLINE VecF Broadcast(float x) {
  return VecF{} + x;
}

// Adds or takes the maximum over lanes, in a fixed tree order.
MOE_INLINE float SumLanes(VecF v) {
  float lanes[kLanes];
  Store(lanes, v);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}
MOE_INLINE float MaxLanes(VecF v) {
  float lanes[kLanes];
  Store(lanes, v);
  float max = lanes[0];
  for (int64_t i = 1; i < kLanes; ++i) max = lanes[i] > max ? lanes[i] : max;
  return max;
}

// exp to about 1 ulp; exactly 0 below the normal range, +inf above, NaN for NaN. Range reduction by the round-to-integer
// constant 1.5 * 2^23; polynomial after Cephes' expf.
MOE_INLINE VecF Exp(VecF x) {
  constexpr float kLow = -87.33654f, kHigh = 88.72283f, kRound = 12582912.0f;
  const VecF clamped = x > Broadcast(kHigh) ? Broadcast(kHigh) : (x < Broadcast(kLow) ? Broadcast(kLow) : x);
  const VecF shifted = clamped * 1.44269504088896341f + kRound;
  const VecF n = shifted - kRound;
  const VecF r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  VecF p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors: n may be 128, one above the largest exponent
  const VecI exponent = reinterpret_cast<VecI>(shifted) - 0x4b400000;
  const VecI half = exponent >> 1;
  const VecF scale1 = reinterpret_cast<VecF>((half + 127) << 23);
  const VecF scale2 = reinterpret_cast<VecF>((exponent - half + 127) << 23);
  const VecF result = p * scale1 * scale2;
  const VecF high = x > Broadcast(kHigh) ? Broadcast(__builtin_inff()) : result;
  return x < Broadcast(kLow) ? VecF{} : high;
}

MOE_INLINE VecF Sigmoid(VecF x) {
  return 1.0f / (1.0f + Exp(-x));
}

}  // namespace
}  // namespace moe::MOE_ISA
