// Activations and their slopes, a vector at a time, and what a hidden layer does with them.

namespace moe::MOE_ISA {
namespace {

MOE_INLINE VecF Clamp(VecF x, float most) {
  const VecF low = x < Broadcast(-most) ? Broadcast(-most) : x;
  return low > Broadcast(most) ? Broadcast(most) : low;
}

struct Silu {
  static MOE_INLINE VecF Value(VecF x) { return x * Sigmoid(x); }
  static MOE_INLINE VecF Slope(VecF x) {
    const VecF s = Sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
  }
};

// To 7 units of 2^-24: odd over even polynomial, both minimax on [-4, 4], beyond which it is 1. (Eigen, XLA)
MOE_INLINE VecF Erf(VecF x) {
  const VecF t = Clamp(x, 4.0f), t2 = t * t;
  VecF p = t2 * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * t2 + -2.10102402082508e-06f;
  p = p * t2 + -5.69250639462346e-05f;
  p = p * t2 + -7.34990630326855e-04f;
  p = p * t2 + -2.95459980854025e-03f;
  p = p * t2 + -1.60960333262415e-02f;
  VecF q = t2 * -1.45660718464996e-05f + -2.13374055278905e-04f;
  q = q * t2 + -1.68282697438203e-03f;
  q = q * t2 + -7.37332916720468e-03f;
  q = q * t2 + -1.42647390514189e-02f;
  return t * p / q;
}

struct Gelu {
  static MOE_INLINE VecF Phi(VecF x) { return 0.5f * (1.0f + Erf(x * 0.70710678118654752f)); }
  static MOE_INLINE VecF Value(VecF x) { return x * Phi(x); }
  static MOE_INLINE VecF Slope(VecF x) { return Phi(x) + x * Exp(-0.5f * x * x) * 0.39894228040143268f; }
};

// 0.5 (1 + tanh(u)) is the sigmoid of 2u.
struct GeluTanh {
  static constexpr float kTwice = 1.5957691216057308f, kCubic = 0.044715f;  // 2 sqrt(2 / pi)
  static MOE_INLINE VecF Gate(VecF x) { return Sigmoid(kTwice * x * (1.0f + kCubic * x * x)); }
  static MOE_INLINE VecF Value(VecF x) { return x * Gate(x); }
  static MOE_INLINE VecF Slope(VecF x) {
    const VecF s = Gate(x), t = Clamp(x, 16.0f);  // where the slope is 0 or 1, and the square finite
    return s * (1.0f + t * kTwice * (1.0f + 3 * kCubic * t * t) * (1.0f - s));
  }
};

struct Relu2 {
  static MOE_INLINE VecF Value(VecF x) {
    const VecF r = Max(VecF{}, x);  // in this order a NaN stays one
    return r * r;
  }
  static MOE_INLINE VecF Slope(VecF x) { return 2.0f * Max(VecF{}, x); }
};

template <class F, class T>
MOE_INLINE void Activate(bool gated, const T* x, int64_t n, T* h) {
  for (int64_t i = 0; !gated && i < n; i += kLanes) StoreFloats(h + i, F::Value(LoadFloats(x + i)));
  for (int64_t i = 0; gated && i < n; i += kGroup, x += 2 * kGroup) {
    for (int64_t j = 0; j < kGroup; j += kLanes)
      StoreFloats(h + i + j, F::Value(LoadFloats(x + j)) * LoadFloats(x + kGroup + j));
  }
}
template <class F, class T>
MOE_INLINE void ActivateBackward(bool gated, const T* x, const T* d_h, int64_t n, T* d_x) {
  for (int64_t i = 0; !gated && i < n; i += kLanes) StoreFloats(d_x + i, LoadFloats(d_h + i) * F::Slope(LoadFloats(x + i)));
  for (int64_t i = 0; gated && i < n; i += kGroup, x += 2 * kGroup, d_x += 2 * kGroup) {
    for (int64_t j = 0; j < kGroup; j += kLanes) {
      const VecF gate = LoadFloats(x + j), up = LoadFloats(x + kGroup + j), d = LoadFloats(d_h + i + j);
      StoreFloats(d_x + j, d * up * F::Slope(gate));
      StoreFloats(d_x + kGroup + j, d * F::Value(gate));
    }
  }
}

template <class F>
void ActivateF32(bool gated, const float* x, int64_t n, float* h) {
  Activate<F>(gated, x, n, h);
}
template <class F>
void ActivateBf16(bool gated, const Bf16* x, int64_t n, Bf16* h) {
  Activate<F>(gated, x, n, h);
}
template <class F>
void ActivateBackwardF32(bool gated, const float* x, const float* d_h, int64_t n, float* d_x) {
  ActivateBackward<F>(gated, x, d_h, n, d_x);
}
template <class F>
void ActivateBackwardBf16(bool gated, const Bf16* x, const Bf16* d_h, int64_t n, Bf16* d_x) {
  ActivateBackward<F>(gated, x, d_h, n, d_x);
}
template <class F>
constexpr ActivationKernels kActivationKernels = {ActivateF32<F>, ActivateBf16<F>, ActivateBackwardF32<F>,
                                                  ActivateBackwardBf16<F>};

}  // namespace
}  // namespace moe::MOE_ISA
