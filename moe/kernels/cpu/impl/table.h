// The table itself, the one symbol that an isa file exports, and the sources of all that it names.
#include "moe/kernels/cpu/impl/simd.h"
//
#include "moe/kernels/cpu/impl/interleave.h"
#include "moe/kernels/cpu/impl/pack.h"
#include "moe/kernels/cpu/impl/peak.h"
#include "moe/kernels/cpu/impl/round.h"
#include "moe/kernels/cpu/impl/rows.h"
#include "moe/kernels/cpu/impl/tile.h"
//
#include "moe/kernels/cpu/impl/activation.h"

namespace moe::MOE_ISA {

extern const KernelTable kTable;
const KernelTable kTable = {
    .name = MOE_ISA_NAME,
    .max_rows = kMaxRows,
    .tile_f32 = TileF32,
    .outer_f32 = OuterF32,
    .tile_bf16 = TileBf16,
    .outer_bf16 = OuterBf16,
    .block_f32 = BlockF32,
    .block_bf16 = BlockBf16,
    .stream_fence = StreamFence,
    .pack_f32 = PackF32,
    .pack_bf16 = PackBf16,
    .pack_both_f32 = PackBothF32,
    .pack_both_bf16 = PackBothBf16,
    .to_bf16 = ToBf16Row,
    .round_rows = RoundRows,
    .interleave_tile = InterleaveTile,
    .interleave_bf16 = InterleaveBf16,
    .spread_f32 = SpreadF32,
    .spread_rounded = SpreadRounded,
    .spread_bf16 = SpreadBf16,
    .peak_f32 = PeakF32,
    .peak_bf16 = PeakBf16,
    .peak_int8 = PeakInt8,
    .dot = Dot,
    .dot_bf16 = DotBf16,
    .max = MaxOf,
    .exp_sum = ExpSum,
    .softmax_block = SoftmaxBlock,
    .softmax_block_backward = SoftmaxBlockBackward,
    .scale = Scale,
    .combine_f32 = CombineF32,
    .combine_bf16 = CombineBf16,
    .add = Add,
    .sum_squares = SumSquares,
    .rms_norm = RmsNorm,
    .rms_norm_backward = RmsNormBackward,
    .swiglu = Swiglu,
    .swiglu_backward_f32 = SwigluBackwardF32,
    .swiglu_backward_bf16 = SwigluBackwardBf16,
    .activation = {kActivationKernels<Silu>, kActivationKernels<Gelu>, kActivationKernels<GeluTanh>, kActivationKernels<Relu2>},
    .rope = Rope,
    .adamw = Adamw,
};

}  // namespace moe::MOE_ISA
