#pragma once
// An MoE layer as a whole, to be measured.

#include <vector>

#include "moe/planner/bench.h"
#include "moe/planner/bench_shapes.h"
#include "moe/tensor/dtype.h"

namespace moe {

// For shapes of 16 rows an expert and more. Forward of every executor: groups "grouped" (the grouped one beside a dense FFN of
// the same FLOP, loop and padded beside the grouped one) and "block_sparse"; "backward", beside the forward that precedes it;
// "grouped" too: `scaling`, the layer with all threads beside one thread, each against the peak of its own threads; and
// "router": the layer, and which share of it router, top-k, plan and combine take.
std::vector<BenchCase> MoeLayerCases(const BenchShapes& shapes, DType format);
// Group "router" too: every routing policy that fits a shape, in training: the layer's forward, and the share of it that the
// gate network, selection, plan and combine take.
std::vector<BenchCase> MoePolicyCases(const BenchShapes& shapes, DType format);
// Group "decode": 1, 2 ... 256 tokens through experts that come from memory. Bounds are the bytes of the experts chosen, and
// the FLOP.
std::vector<BenchCase> MoeDecodeCases(const BenchShapes& shapes, DType format);
// Group "step": for shapes of 4096 tokens and more, whole training steps of a model with two such layers, beside its dense twin
// of equal active parameters.
std::vector<BenchCase> MoeStepCases(const BenchShapes& shapes, DType format);
// Group "step" too: for shapes of 256 to 1024 tokens, a prompt of as many through a model with four such layers.
std::vector<BenchCase> MoePromptCases(const BenchShapes& shapes, DType format);

}  // namespace moe
