#pragma once
// What a step must move and compute, counted from the shape alone: no clock, no machine.

#include <cstdint>
#include <span>
#include <vector>

#include "moe/model/config.h"
#include "moe/tensor/dtype.h"

namespace moe {

// One decode step: every one of `batch` sequences has `context` past positions in its cache and adds one.
struct DecodeStep {
  int64_t batch = 1;
  int64_t context = 0;
};

struct Cost {
  double bytes = 0;  // to and from memory, each byte once
  double flop = 0;   // 2 per multiply-add

  Cost& operator+=(const Cost& other) {
    bytes += other.bytes, flop += other.flop;
    return *this;
  }
};

// Counted: packed weights as they are stored (panels padded to 32 outputs), each read once however many rows use it, and of the
// experts only those touched; the cache of the past read, the new position written; matrices, and attention over context + 1
// positions. Not counted: activations (about 30 D values per row and layer, which stay in cache), norms' and softmax's
// arithmetic.
struct StepCost {
  Cost attention;  // norm, projections, cache, scores and sums
  Cost router;
  Cost ffn;    // chosen experts and shared experts, or the dense FFN; its norm
  Cost other;  // embedding rows, last norm, head

  Cost total() const;
};

// Experts that differ are counted as their mean, as if chosen uniformly; zero and copy cost nothing.
// distinct_experts [L]: experts with at least one token in each layer, measured or expected; ignored for dense layers.
StepCost DecodeCost(const ModelConfig& config, DType format, const DecodeStep& step, std::span<const double> distinct_experts);

// Experts touched by `tokens` independent tokens under uniform routing: E (1 - (1 - k/E)^tokens).
double UniformDistinctExperts(int64_t experts, int64_t top_k, int64_t tokens);
// The same for every layer of a model, 0 for dense ones. [L]
std::vector<double> UniformDistinctExperts(const ModelConfig& config, int64_t tokens);
// Tokens that touch 95 % of the experts: (E/k) ln 20. 0 without experts; of the layer with the most experts per chosen one.
double SaturationBatch(const ModelConfig& config);
// Values of matrices whose rows are longer than kAdamwWholeRows.
double ValuesOfWideRows(const ModelConfig& config);

}  // namespace moe
