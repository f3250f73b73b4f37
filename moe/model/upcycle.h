#pragma once
// A mixture of experts out of a dense model, which says what the dense model says until it is trained on. (Komatsuzaki et al.
// 2023, sparse upcycling; granular, with a router row for all slices of a copy: He et al. 2024, "virtual groups")
//
// There are E / N copies of each FFN, each cut into N slices of F / N hidden values, an expert each; the slices of a copy have
// the same router row, so that a token's k experts are k / N whole copies. With softmax gates that are divided by their sum and
// then multiplied by N, the gates of a copy's slices are equal, those of all copies sum to N, and the slices to what the FFN
// says:
//   sum over copies c and slices j of N * (g_c / N) * slice_j(x) = sum over c of g_c * ffn(x) = ffn(x).
// Router rows are random, so copies get other tokens and part in training. Where k = E every copy gets all tokens, and only
// their gates differ: then noise parts them.

#include <cstdint>
#include <functional>
#include <string>

#include "moe/model/config.h"
#include "moe/ops/exec_context.h"
#include "moe/tensor/dtype.h"

namespace moe {

struct UpcycleOptions {
  int64_t experts = 8, top_k = 2;
  int64_t split = 1;  // N
  double noise = 0;  // added to experts' weights: normal, times the rms of the matrix; above 0 the output is no longer the same
  int64_t seed = 1;  // of router and noise
  // Asked between tensors; false ends the work.
  std::function<bool(int64_t bytes_done, int64_t bytes_total)> on_progress;
};

// The shape of what Upcycle makes. Errors (wrong usage) say what cannot be equal, and why: a model with experts already, k = 1,
// E or k that are no multiples of N, an FFN that N does not cut.
Result<ModelConfig> UpcycledConfig(const ModelConfig& dense, const UpcycleOptions& options, const std::string& where);

// Writes the folder `out`, which must not be there or be empty: model.safetensors (bf16 where the dense model is, else
// float32), the tokenizer's files, and config.json at last, so that what is not whole is no model. Goes tensor by tensor: never
// holds more than a layer's FFN.
Status Upcycle(const std::string& folder, const std::string& out, const UpcycleOptions& options);

// How far apart two models with the same vocabulary are: the largest difference of a logit over `tokens` random ones, and the
// largest logit. In float32, one model after the other.
struct LogitDifference {
  double largest = 0, largest_logit = 0;
};
Result<LogitDifference> CompareLogits(const std::string& folder, const std::string& other, int64_t tokens, ExecContext& ctx);

}  // namespace moe
