#pragma once
// Every arithmetic loop of the product, one table per instruction set. Raw pointers; no checks, threads or allocation: ops/
// does that.
//
// The order of every sum depends on indices alone: a tile of 1 row and a tile of 12 add the same products in the same order
// with the same instruction, so a row's result does not depend on how many rows stand beside it.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "moe/base/bf16.h"
#include "moe/base/result.h"

namespace moe {

inline constexpr int64_t kSoftmaxBlock = 64;  // columns of softmax_block: keys of attention are taken in blocks of it

// A running maximum that moves with every small excess would have all sums so far multiplied again and again; exponentials up
// to e^8 are as good as those up to 1.
inline constexpr float kSoftmaxSlack = 8.0f;
inline constexpr int64_t kSoftmaxSums = 16;  // parts of a row's sum, not folded until its end

struct AdamwStep {
  float lr, beta1, beta2, epsilon, weight_decay;
  float correction1, correction2;  // 1 - beta^t
  float grad_scale;                // gradients are multiplied by it first (clipping, accumulation)
};

// What a hidden layer applies to its product: x sigmoid(x); x Phi(x), by erf (Hugging Face's "gelu") or by tanh
// ("gelu_pytorch_tanh"); max(x, 0)^2.
enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh, kRelu2 };
inline constexpr int64_t kNumActivations = 4;

// h [n] = f(x), x [n]; gated: f(gate) * up, x [2n] in groups of 32, 16 gates, then their 16 ups. d_x as x, which it may be. n:
// a multiple of 16.
struct ActivationKernels {
  void (*forward_f32)(bool gated, const float* x, int64_t n, float* h);
  void (*forward_bf16)(bool gated, const Bf16* x, int64_t n, Bf16* h);
  void (*backward_f32)(bool gated, const float* x, const float* d_h, int64_t n, float* d_x);
  void (*backward_bf16)(bool gated, const Bf16* x, const Bf16* d_h, int64_t n, Bf16* d_x);
};

inline constexpr int64_t kMaxTileRows = 16;  // no table has more

// What a tile may know of what comes after it; no result depends on it. What the next tiles will read is asked for while this
// one computes: `b_step` bytes of b for every step of the contraction, and the rows of c, at the same distance as this tile's.
// Any address will do; null: nothing. stream: c, not accumulated, at multiples of kAlignment, is not read again soon and goes
// past the caches; others see it after stream_fence.
struct TileHints {
  const void* b = nullptr;
  int64_t b_step = 0;
  const float* c = nullptr;
  bool stream = false;
};

struct KernelTable {
  const char* name;  // "avx512bf16"
  int64_t max_rows;  // rows of one tile

  // c[r][0..32) (+)= sum over k of a[r][k] * b[k*b_stride + 0..32), rows <= max_rows. accumulate: starts from c, else from 0.
  void (*tile_f32)(int64_t rows, int64_t K, const float* const* a, const float* b, int64_t b_stride, float* c, int64_t ldc,
                   bool accumulate, const TileHints& hints);
  // The same with a column-wise a: element (r, k) is a[k*a_stride + r]. Weight gradients, c = A^T B, and forward products of
  // many rows, turned by interleave_tile; the same bits as tile_f32.
  void (*outer_f32)(int64_t rows, int64_t K, const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
                    int64_t ldc, bool accumulate, const TileHints& hints);
  // bf16 twins: an element is a pair of bf16 along the contraction (low half first), K2 and strides count pairs.
  void (*tile_bf16)(int64_t rows, int64_t K2, const uint32_t* const* a, const uint32_t* b, int64_t b_stride, float* c,
                    int64_t ldc, bool accumulate, const TileHints& hints);
  void (*outer_bf16)(int64_t rows, int64_t K2, const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
                     float* c, int64_t ldc, bool accumulate, const TileHints& hints);
  // The same with the rows of a where softmax_block leaves them: a[r*64 + k], in pairs a[r*32 + k].
  void (*block_f32)(int64_t rows, int64_t K, const float* a, const float* b, int64_t b_stride, float* c, int64_t ldc,
                    bool accumulate);
  void (*block_bf16)(int64_t rows, int64_t K2, const uint32_t* a, const uint32_t* b, int64_t b_stride, float* c, int64_t ldc,
                     bool accumulate);

  void (*stream_fence)();

  // One panel of PackedWeight from value(n, k) = w[n*n_stride + k*k_stride], n < num_n <= 32; the rest of the panel is 0.
  void (*pack_f32)(const float* w, int64_t n_stride, int64_t k_stride, int64_t num_n, int64_t K, float* panel);
  void (*pack_bf16)(const float* w, int64_t n_stride, int64_t k_stride, int64_t num_n, int64_t K, uint32_t* panel);
  // 32 rows by `cols` columns (a multiple of 32) of a matrix, to their places in its forward and its transposed pack. forward:
  // in the rows' panel, at the first column; transposed: in the first column's panel, at the first row; its next panel is
  // transposed_stride elements on. stream: past the caches; then both are at kAlignment.
  void (*pack_both_f32)(const float* w, int64_t stride, int64_t cols, bool stream, float* forward, float* transposed,
                        int64_t transposed_stride);
  void (*pack_both_bf16)(const float* w, int64_t stride, int64_t cols, bool stream, uint32_t* forward, uint32_t* transposed,
                         int64_t transposed_stride);
  void (*to_bf16)(const float* x, int64_t n, Bf16* out);  // below the normal range the result may be 0
  // The same for rows of a tile, n <= 32 columns. stream: past the caches, as a tile's, n = 32.
  void (*round_rows)(int64_t rows, int64_t n, const float* x, int64_t x_stride, Bf16* out, int64_t out_stride, bool stream);
  // out[k*max_rows + r] = a[r][k], rows <= max_rows: words of four bytes. Writes up to kMaxTileRows words beyond the end.
  void (*interleave_tile)(int64_t rows, int64_t K, const uint32_t* const* a, uint32_t* out);
  // out[i] = pair(x0[i], x1[i]); x1 null: (x0[i], 0).
  void (*interleave_bf16)(const float* x0, const float* x1, int64_t n, uint32_t* out);
  // One step of a contraction over rows, cut into groups of 32 columns (`panels`) or of max_rows, `stride` words apart: word i
  // of the step goes to out[i/width*stride + i%width], zeros follow in the last group. Groups of max_rows may be followed by up
  // to kMaxTileRows words of nonsense: write steps in ascending order. Words are floats, pairs of floats rounded, pairs of
  // bf16; x1 null: (x0[i], 0).
  void (*spread_f32)(const float* x, int64_t n, bool panels, int64_t stride, uint32_t* out);
  void (*spread_rounded)(const float* x0, const float* x1, int64_t n, bool panels, int64_t stride, uint32_t* out);
  void (*spread_bf16)(const Bf16* x0, const Bf16* x1, int64_t n, bool panels, int64_t stride, uint32_t* out);

  // Multiply-adds between registers, as many at once as a full tile has; returns the FLOP done. The tiles' ceiling.
  double (*peak_f32)(int64_t steps, float* sink);
  double (*peak_bf16)(int64_t steps, float* sink);
  double (*peak_int8)(int64_t steps, float* sink);

  float (*dot)(const float* x, const float* y, int64_t n);
  float (*dot_bf16)(const Bf16* x, const float* y, int64_t n);
  float (*max)(const float* x, int64_t n);  // -inf when n = 0; NaNs are not ordered
  // out = exp(x - shift); returns the sum. Below exp's range the result is exactly 0. May run in place.
  float (*exp_sum)(const float* x, float shift, int64_t n, float* out);
  // One block of a running softmax, rows <= max_rows. Columns >= valid[r] of x [rows][64] count as -inf and are not
  // looked at. max[r] becomes the block's largest value if that exceeds it by more than kSoftmaxSlack; p [rows][64] = exp(x -
  // max[r]), exactly 0 below the normal range; sum[r], in kSoftmaxSums parts, has the block's added. max starts at -inf, sum at
  // 0. Returns whether some max may have changed; only then is rescale[r] written, exp(old max - new max), and the sum
  // multiplied by it first. pairs [rows][32], bf16, unless null: takes the exponentials, rounded, instead of p; the sum is that
  // of the unrounded. max and rescale are read and written as kMaxTileRows elements; those of max beyond the rows keep their
  // value.
  bool (*softmax_block)(int64_t rows, const int32_t* valid, const float* x, float* max, float* sum, float* rescale, float* p,
                        uint32_t* pairs);
  // p [rows][64]: scores on entry, exp(p - log_sum_exp[r]) on return. d: d_p on entry, p * (d_p - delta[r]) on return.
  // Columns >= valid[r] become 0 in both, whatever they held.
  void (*softmax_block_backward)(int64_t rows, const int32_t* valid, const float* log_sum_exp, const float* delta, float* p,
                                 float* d);
  void (*scale)(float alpha, int64_t n, float* x);  // x *= alpha
  // y = base + gate[0] * rows[0] + gate[1] * rows[1] ..., one after the other; base null: 0; y may be base.
  void (*combine_f32)(int64_t count, const float* gate, const float* const* rows, const float* base, int64_t n, float* y);
  void (*combine_bf16)(int64_t count, const float* gate, const Bf16* const* rows, const float* base, int64_t n, float* y);
  void (*add)(const float* x, int64_t n, float* y);  // y += x
  double (*sum_squares)(const float* x, int64_t n);

  // y = x * inv_rms * w, returns inv_rms = 1 / sqrt(mean(x^2) + epsilon).
  float (*rms_norm)(const float* x, const float* w, int64_t n, float epsilon, float* y);
  // Overwrites d_x, adds to d_w (unless null).
  void (*rms_norm_backward)(const float* x, const float* w, float inv_rms, const float* d_y, int64_t n, float* d_x, float* d_w);

  // gate_up holds groups of 32: 16 gates, then their 16 ups. h [n]: h = silu(gate) * up. gate_up has 2n elements, n a multiple
  // of 16.
  void (*swiglu)(const float* gate_up, int64_t n, float* h);
  // d_gate_up may be gate_up itself.
  void (*swiglu_backward_f32)(const float* gate_up, const float* d_h, int64_t n, float* d_gate_up);
  void (*swiglu_backward_bf16)(const Bf16* gate_up, const Bf16* d_h, int64_t n, Bf16* d_gate_up);

  ActivationKernels activation[kNumActivations];  // by Activation

  // Rotates the halves of a head: (x[i], x[i+half]) by the angle of (cos[i], sin[i]); sign -1 rotates back. (Su et al. 2021,
  // NeoX order.)
  void (*rope)(const float* cos, const float* sin, float sign, int64_t half, float* x);

  // Elementwise; grad is 0 afterwards. What lies fetch_ahead elements on in all four is fetched meanwhile (0: nothing).
  void (*adamw)(const AdamwStep& step, int64_t n, int64_t fetch_ahead, float* grad, float* value, float* m, float* v);
};

// Tables that this CPU can run, best first.
std::span<const KernelTable* const> SupportedKernelTables();
// All tables built in, supported or not.
std::span<const KernelTable* const> BuiltInKernelTables();
// name empty: what MOE_ISA says, else the best. An unknown or unsupported name is an error that lists the usable ones.
Result<const KernelTable*> SelectKernelTable(std::string_view name = "");

}  // namespace moe
