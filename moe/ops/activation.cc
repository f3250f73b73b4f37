#include "moe/ops/activation.h"

#include "moe/ops/chunks.h"
#include "moe/ops/elementwise.h"

namespace moe {
namespace {

void CheckWidths(bool gated, const ConstAnyMat& x, const ConstAnyMat& h, DType dtype) {
  MOE_CHECK(h.cols % 16 == 0, "width {} is no multiple of 16", h.cols);
  MOE_CHECK(x.rows == h.rows && x.cols == (gated ? 2 : 1) * h.cols, "x [{},{}] for h [{},{}], gated {}", x.rows, x.cols, h.rows,
            h.cols, gated);
  MOE_CHECK(x.dtype == dtype && h.dtype == dtype, "x of {}, h of {}, expected {}", Name(x.dtype), Name(h.dtype), Name(dtype));
}

}  // namespace

void Activate(Activation activation, bool gated, ConstAnyMat x, AnyMat h, ExecContext& ctx) {
  CheckWidths(gated, x, h, x.dtype);
  const ActivationKernels& kernels = ctx.kernels.activation[static_cast<size_t>(activation)];
  ForEachChunk(h.rows, RowsPerChunk(h.cols), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      if (x.dtype == DType::kBf16) {
        kernels.forward_bf16(gated, static_cast<const Bf16*>(x.row(t)), h.cols, static_cast<Bf16*>(h.row(t)));
      } else {
        kernels.forward_f32(gated, static_cast<const float*>(x.row(t)), h.cols, static_cast<float*>(h.row(t)));
      }
    }
  });
}

void ActivateBackward(Activation activation, bool gated, ConstAnyMat x, ConstAnyMat d_h, AnyMat d_x, ExecContext& ctx) {
  if (activation == Activation::kSilu && gated) return SwigluBackward(x, d_h, d_x, ctx);
  CheckWidths(gated, x, d_h, x.dtype);
  MOE_CHECK(d_x.rows == x.rows && d_x.cols == x.cols && d_x.dtype == x.dtype, "d_x [{},{}] of {}, expected as x", d_x.rows,
            d_x.cols, Name(d_x.dtype));
  const ActivationKernels& kernels = ctx.kernels.activation[static_cast<size_t>(activation)];
  ForEachChunk(d_h.rows, RowsPerChunk(d_h.cols), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      if (x.dtype == DType::kBf16) {
        kernels.backward_bf16(gated, static_cast<const Bf16*>(x.row(t)), static_cast<const Bf16*>(d_h.row(t)), d_h.cols,
                              static_cast<Bf16*>(d_x.row(t)));
      } else {
        kernels.backward_f32(gated, static_cast<const float*>(x.row(t)), static_cast<const float*>(d_h.row(t)), d_h.cols,
                             static_cast<float*>(d_x.row(t)));
      }
    }
  });
}

}  // namespace moe
