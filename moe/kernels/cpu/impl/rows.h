// Loops over one row. Sums run in kSumVectors vectors of lanes and are folded in a fixed order: the result depends on n and the
// table only.

namespace moe::MOE_ISA {
namespace {

constexpr int64_t kSumVectors = 4;
constexpr int64_t kSumBlock = kSumVectors * kLanes;

// Sum of term(i) over [0, n): vector(i) gives the kLanes terms from i on, term(i) a single one.
template <class Vector, class Term>
MOE_INLINE float Sum(int64_t n, Vector vector, Term term) {
  VecF acc[kSumVectors] = {};
  int64_t i = 0;
  for (; i + kSumBlock <= n; i += kSumBlock)
    for (int64_t v = 0; v < kSumVectors; ++v) acc[v] += vector(i + v * kLanes);
  for (; i + kLanes <= n; i += kLanes) acc[0] += vector(i);
  float sum = SumLanes((acc[0] + acc[1]) + (acc[2] + acc[3]));
  for (; i < n; ++i) sum += term(i);
  return sum;
}

float Dot(const float* x, const float* y, int64_t n) {
  return Sum(
      n, [=](int64_t i) { return Load(x + i) * Load(y + i); }, [=](int64_t i) { return x[i] * y[i]; });
}

float MaxOf(const float* x, int64_t n) {
  float max = -__builtin_inff();
  int64_t i = 0;
  if (n >= kLanes) {
    VecF m = Load(x);
    for (i = kLanes; i + kLanes <= n; i += kLanes) {
      m = Max(Load(x + i), m);
    }
    max = MaxLanes(m);
  }
  for (; i < n; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

MOE_INLINE float Exp1(float x) {
  return Exp(Broadcast(x))[0];
}

float ExpSum(const float* x, float shift, int64_t n, float* out) {
  return Sum(
      n,
      [=](int64_t i) {
        const VecF e = Exp(Load(x + i) - shift);
        Store(out + i, e);
        return e;
      },
      [=](int64_t i) { return out[i] = Exp1(x[i] - shift); });
}

constexpr int64_t kBlockVectors = kSoftmaxBlock / kLanes;

// Vector i of a block's row; columns from `valid` on are -inf (kWhole: there are none).
template <bool kWhole>
MOE_INLINE VecF LoadScores(const float* row, int64_t i, int32_t valid) {
  if constexpr (kWhole) return Load(row + i * kLanes);
  const VecI inside = LaneIndex(static_cast<int32_t>(i * kLanes)) < valid;
  return inside ? Load(row + i * kLanes) : Broadcast(-__builtin_inff());
}

// Two vectors as bf16, in order.
MOE_INLINE VecI RoundTwo(VecF first, VecF second) {
#ifdef __AVX512BF16__
  return reinterpret_cast<VecI>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
#else
  return reinterpret_cast<VecI>(UpperHalves(RoundToUpperBf16(first), RoundToUpperBf16(second)));
#endif
}

// Lane r of the result: row[r] folded over its lanes, in FoldLanes' order. A tree of shuffles for all rows at once.
template <class Op>
MOE_INLINE VecF FoldRows(const VecF (&rows)[kLanes], Op op) {
  VecF row[kLanes / 2];
#pragma GCC unroll 8
  for (int64_t i = 0; i < kLanes / 2; ++i)
    row[i] = op(InterleaveLow(rows[i], rows[i + kLanes / 2]), InterleaveHigh(rows[i], rows[i + kLanes / 2]));
#pragma GCC unroll 4
  for (int64_t half = kLanes / 4; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < half; ++i) row[i] = op(InterleaveLow(row[i], row[i + half]), InterleaveHigh(row[i], row[i + half]));
  }
  return row[0];
}

// A row moves its max if a score exceeds it by more than the slack.
MOE_INLINE void MoveMax(int64_t rows, const int32_t* valid, const float* x, float* max, float* rescale) {
  static_assert(kMaxRows <= kLanes && kLanes <= kMaxTileRows);
  VecF fold[kLanes];
  for (int64_t r = rows; r < kLanes; ++r) fold[r] = VecF{};
  for (int64_t r = 0; r < rows; ++r) {
    fold[r] = LoadScores<false>(x + r * kSoftmaxBlock, 0, valid[r]);
#pragma GCC unroll 16
    for (int64_t i = 1; i < kBlockVectors; ++i) fold[r] = Max(LoadScores<false>(x + r * kSoftmaxBlock, i, valid[r]), fold[r]);
  }
  const VecF largest = FoldRows(
      fold, [](VecF a, VecF b) __attribute__((always_inline)) { return Max(a, b); });
  const VecF before = Load(max), after = largest - before > kSoftmaxSlack ? largest : before;
  Store(rescale, after > before ? ExpNoOverflow(before - after) : Broadcast(1.0f));  // both may be -inf
  Store(max, LaneIndex(0) < static_cast<int32_t>(rows) ? after : before);
}

constexpr int64_t kRowSums = kSoftmaxSums / kLanes;

// Exponentials of one row; adds them to sums, and scores above max to `top`.
template <bool kWhole, bool kPairs>
MOE_INLINE void ExpOfRow(const float* x, int32_t valid, float max, VecF (&sums)[kRowSums], VecF& top, float* p,
                         uint32_t* pairs) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kBlockVectors; i += 2) {
    VecF p0 = {}, p1 = {};
    if (kWhole || i * kLanes < valid) {
      const VecF x0 = LoadScores<kWhole>(x, i, valid) - max, x1 = LoadScores<kWhole>(x, i + 1, valid) - max;
      top = Max(x1, Max(x0, top));
      p0 = ExpNoOverflow(x0), p1 = ExpNoOverflow(x1);
      sums[i % kRowSums] += p0;
      sums[(i + 1) % kRowSums] += p1;
    }
    if constexpr (kPairs) {
      const VecI two = RoundTwo(p0, p1);
      __builtin_memcpy(pairs + i * kLanes / 2, &two, sizeof(two));
    } else {
      Store(p + i * kLanes, p0);
      Store(p + (i + 1) * kLanes, p1);
    }
  }
}

// Exponentials and, in `sums`, those of a row's before them. Whether some score stands too far above its row's max.
template <bool kPairs>
MOE_INLINE bool ExpOfRows(int64_t rows, const int32_t* valid, const float* x, const float* max, const float* sum,
                          VecF (*sums)[kRowSums], float* p, uint32_t* pairs) {
  VecF top = Broadcast(-__builtin_inff());
  for (int64_t r = 0; r < rows; ++r, x += kSoftmaxBlock, sum += kSoftmaxSums) {
    for (int64_t i = 0; i < kRowSums; ++i) sums[r][i] = Load(sum + i * kLanes);
    if (valid[r] >= kSoftmaxBlock) {
      ExpOfRow<true, kPairs>(x, valid[r], max[r], sums[r], top, p, pairs);
    } else {
      ExpOfRow<false, kPairs>(x, valid[r], max[r], sums[r], top, p, pairs);
    }
    kPairs ? void(pairs += kSoftmaxBlock / 2) : void(p += kSoftmaxBlock);
  }
  return AnyLane(top > kSoftmaxSlack);
}

// Maxima hardly ever move after the first block, so nothing waits to learn whether one does.
template <bool kPairs>
MOE_INLINE bool SoftmaxRows(int64_t rows, const int32_t* valid, const float* x, float* max, float* sum, float* rescale,
                            float* p, uint32_t* pairs) {
  VecF sums[kMaxRows][kRowSums];
  const bool first = max[0] == -__builtin_inff();
  const bool moved = first || ExpOfRows<kPairs>(rows, valid, x, max, sum, sums, p, pairs);
  if (moved) {
    MoveMax(rows, valid, x, max, rescale);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < kSoftmaxSums; ++i) sum[r * kSoftmaxSums + i] *= rescale[r];
    }
    ExpOfRows<kPairs>(rows, valid, x, max, sum, sums, p, pairs);
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < kRowSums; ++i) Store(sum + r * kSoftmaxSums + i * kLanes, sums[r][i]);
  }
  return moved;
}

bool SoftmaxBlock(int64_t rows, const int32_t* valid, const float* x, float* max, float* sum, float* rescale, float* p,
                  uint32_t* pairs) {
  return pairs != nullptr ? SoftmaxRows<true>(rows, valid, x, max, sum, rescale, p, pairs)
                          : SoftmaxRows<false>(rows, valid, x, max, sum, rescale, p, pairs);
}

void SoftmaxBlockBackward(int64_t rows, const int32_t* valid, const float* log_sum_exp, const float* delta, float* p,
                          float* d) {
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kSoftmaxBlock; i += kLanes) {
      const VecI inside = LaneIndex(static_cast<int32_t>(i)) < valid[r];
      float *p_at = p + r * kSoftmaxBlock + i, *d_at = d + r * kSoftmaxBlock + i;
      const VecF e = ExpNoOverflow(Load(p_at) - log_sum_exp[r]);
      Store(d_at, inside ? e * (Load(d_at) - delta[r]) : VecF{});
      Store(p_at, inside ? e : VecF{});
    }
  }
}

void Scale(float alpha, int64_t n, float* x) {
  for (int64_t i = 0; i < n; ++i) x[i] *= alpha;
}
// A vector's worth of values, or one; bf16 widened.
MOE_INLINE VecF LoadFloats(const float* x) {
  return Load(x);
}
MOE_INLINE VecF LoadFloats(const Bf16* x) {
  typedef uint16_t Half __attribute__((vector_size(MOE_VECTOR_BYTES / 2)));
  Half h;
  __builtin_memcpy(&h, x, sizeof(h));
  return reinterpret_cast<VecF>(__builtin_convertvector(h, VecU) << 16);
}
MOE_INLINE float LoadFloat(const float* x) {
  return *x;
}
MOE_INLINE float LoadFloat(const Bf16* x) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(x->bits) << 16);
}

MOE_INLINE void StoreFloats(float* to, VecF v) {
  Store(to, v);
}
MOE_INLINE void StoreFloats(Bf16* to, VecF v) {
  float x[kLanes];
  Store(x, v);
  RoundRow(x, kLanes, to);
}

template <class T>
MOE_INLINE void CombineRows(int64_t count, const float* gate, const T* const* rows, const float* base, int64_t n, float* y) {
  constexpr int64_t kVectors = 4;  // in flight: each row adds to the same registers
  int64_t i = 0;
  for (; i + kVectors * kLanes <= n; i += kVectors * kLanes) {
    VecF sum[kVectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) sum[v] = base == nullptr ? VecF{} : Load(base + i + v * kLanes);
    for (int64_t r = 0; r < count; ++r) {
      const VecF g = Broadcast(gate[r]);
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) sum[v] += g * LoadFloats(rows[r] + i + v * kLanes);
    }
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) Store(y + i + v * kLanes, sum[v]);
  }
  for (; i < n; ++i) {
    float sum = base == nullptr ? 0.0f : base[i];
    for (int64_t r = 0; r < count; ++r) sum += gate[r] * LoadFloat(rows[r] + i);
    y[i] = sum;
  }
}
void CombineF32(int64_t count, const float* gate, const float* const* rows, const float* base, int64_t n, float* y) {
  CombineRows(count, gate, rows, base, n, y);
}
void CombineBf16(int64_t count, const float* gate, const Bf16* const* rows, const float* base, int64_t n, float* y) {
  CombineRows(count, gate, rows, base, n, y);
}
float DotBf16(const Bf16* x, const float* y, int64_t n) {
  return Sum(
      n, [=](int64_t i) __attribute__((always_inline)) { return LoadFloats(x + i) * Load(y + i); },
      [=](int64_t i) { return LoadFloat(x + i) * y[i]; });
}
void Add(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

double SumSquares(const float* x, int64_t n) {
  constexpr int64_t kChunk = 4096;  // float32 inside, double across: exact enough for a norm, and fast
  double sum = 0.0;
  for (int64_t i = 0; i < n; i += kChunk) sum += Dot(x + i, x + i, n - i < kChunk ? n - i : kChunk);
  return sum;
}

float RmsNorm(const float* x, const float* w, int64_t n, float epsilon, float* y) {
  const float inv_rms = 1.0f / __builtin_sqrtf(Dot(x, x, n) / static_cast<float>(n) + epsilon);
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * inv_rms * w[i];
  return inv_rms;
}

void RmsNormBackward(const float* x, const float* w, float inv_rms, const float* d_y, int64_t n, float* d_x, float* d_w) {
  const float dot = Sum(
      n, [=](int64_t i) { return Load(x + i) * Load(w + i) * Load(d_y + i); }, [=](int64_t i) { return x[i] * w[i] * d_y[i]; });
  const float shrink = dot * inv_rms * inv_rms / static_cast<float>(n);
  if (d_w != nullptr) {
    for (int64_t i = 0; i < n; ++i) d_w[i] += d_y[i] * x[i] * inv_rms;
  }
  for (int64_t i = 0; i < n; ++i) d_x[i] = inv_rms * (w[i] * d_y[i] - x[i] * shrink);
}

constexpr int64_t kGroup = 16;  // gates, then ups

void Swiglu(const float* gate_up, int64_t n, float* h) {
  for (int64_t i = 0; i < n; i += kGroup, gate_up += 2 * kGroup) {
    for (int64_t j = 0; j < kGroup; j += kLanes) {
      const VecF gate = Load(gate_up + j), up = Load(gate_up + kGroup + j);
      Store(h + i + j, gate * Sigmoid(gate) * up);
    }
  }
}

template <class T>
MOE_INLINE void SwigluBackward(const T* gate_up, const T* d_h, int64_t n, T* d_gate_up) {
  for (int64_t i = 0; i < n; i += kGroup, gate_up += 2 * kGroup, d_gate_up += 2 * kGroup) {
    for (int64_t j = 0; j < kGroup; j += kLanes) {
      const VecF gate = LoadFloats(gate_up + j), up = LoadFloats(gate_up + kGroup + j), d = LoadFloats(d_h + i + j);
      const VecF sigmoid = Sigmoid(gate);
      StoreFloats(d_gate_up + j, d * up * sigmoid * (1.0f + gate * (1.0f - sigmoid)));
      StoreFloats(d_gate_up + kGroup + j, d * gate * sigmoid);
    }
  }
}
void SwigluBackwardF32(const float* gate_up, const float* d_h, int64_t n, float* d_gate_up) {
  SwigluBackward(gate_up, d_h, n, d_gate_up);
}
void SwigluBackwardBf16(const Bf16* gate_up, const Bf16* d_h, int64_t n, Bf16* d_gate_up) {
  SwigluBackward(gate_up, d_h, n, d_gate_up);
}

void Rope(const float* cos, const float* sin, float sign, int64_t half, float* x) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half], s = sign * sin[i];
    x[i] = a * cos[i] - b * s;
    x[i + half] = b * cos[i] + a * s;
  }
}

// One vector everywhere, so that an element's result does not depend on where its row was cut.
struct AdamwVector {
  AdamwStep s;
  float keep, rate, inv_correction2;
  MOE_INLINE void operator()(float* grad, float* value, float* m, float* v) const {
    const VecF g = Load(grad) * s.grad_scale;
    const VecF m_new = s.beta1 * Load(m) + (1.0f - s.beta1) * g, v_new = s.beta2 * Load(v) + (1.0f - s.beta2) * g * g;
    Store(m, m_new);
    Store(v, v_new);
    Store(value, Load(value) * keep - rate * m_new / (Sqrt(v_new * inv_correction2) + s.epsilon));
    Store(grad, VecF{});
  }
};

void Adamw(const AdamwStep& step, int64_t n, int64_t fetch_ahead, float* grad, float* value, float* m, float* v) {
  constexpr int64_t kLine = 16;  // floats
  const AdamwVector update{step, 1.0f - step.lr * step.weight_decay, step.lr / step.correction1, 1.0f / step.correction2};
  int64_t i = 0;
  for (; i + kLine <= n; i += kLine) {
    if (fetch_ahead != 0) {
      const int64_t ahead = i + fetch_ahead;
      __builtin_prefetch(grad + ahead, 1), __builtin_prefetch(value + ahead, 1);
      __builtin_prefetch(m + ahead, 1), __builtin_prefetch(v + ahead, 1);
    }
    for (int64_t j = i; j < i + kLine; j += kLanes) update(grad + j, value + j, m + j, v + j);
  }
  for (; i + kLanes <= n; i += kLanes) update(grad + i, value + i, m + i, v + i);
  if (i == n) return;
  float last[4][kLanes] = {};
  for (int64_t j = i; j < n; ++j)
    last[0][j - i] = grad[j], last[1][j - i] = value[j], last[2][j - i] = m[j], last[3][j - i] = v[j];
  update(last[0], last[1], last[2], last[3]);
  for (int64_t j = i; j < n; ++j) grad[j] = 0, value[j] = last[1][j - i], m[j] = last[2][j - i], v[j] = last[3][j - i];
}

}  // namespace
}  // namespace moe::MOE_ISA
