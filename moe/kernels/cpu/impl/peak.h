// The ceilings of arithmetic: the multiply-adds of a full tile without its loads.
#pragma once
#include "moe/kernels/cpu/impl/tile.h"

namespace moe::MOE_ISA {
namespace {

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
