#pragma once
// The pinned evaluation: what a model's loss on a text is, the same for whoever asks, however much is computed at a time.
//
// A document's n tokens are cut into windows of C: every window is read as BOS and its first C-1 tokens, and all its C tokens
// are targets. So windows do not overlap, each token is scored exactly once and none is context for another window. Losses are
// added in double, in the order of the text.

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <vector>

#include "moe/mixture/moe_metrics.h"
#include "moe/model/model.h"

namespace moe {

// What a router did with a text. Everything is 0 or empty for a dense layer.
struct ExpertLoad {
  std::vector<int64_t> tokens_per_expert;  // [E] assignments, before dropping
  double max_violation = 0;                // most loaded / mean - 1; 0: perfectly even (Wang et al. 2024, eq. 4)
  double coefficient_of_variation = 0;     // of the load: standard deviation / mean
  double drop_rate = 0;                    // share of assignments
  double entropy = 0;                      // of the router's softmax, nats, mean over tokens
  int64_t dead_experts = 0;                // those without a token
  double gate_mean = 0;                    // over assignments, as chosen
  double largest_logit = 0;                // the largest |z|
};

// What `moe eval` and metrics.jsonl say of it.
nlohmann::json ToJson(const ExpertLoad& load);

struct Evaluation {
  double loss_sum = 0;  // nats
  int64_t num_tokens = 0, num_bytes = 0;
  std::vector<double> document_loss_sum;  // nats, one per document; their sum is loss_sum
  std::vector<ExpertLoad> layers;         // [L]

  double loss() const;           // nats per token
  double bits_per_byte() const;  // of the raw text, so that vocabularies compare
  double perplexity() const;     // exp(loss)
};
// 0 bytes: 0.
double BitsPerByte(double loss_sum, int64_t num_bytes);

struct Document {
  std::span<const int32_t> tokens;
  int64_t num_bytes = 0;  // of the text they are
};

inline constexpr int64_t kEvaluateRows = 4096;

struct EvaluateOptions {
  int64_t context = 0;  // C; 0: the model's
  int64_t batch = 0;    // windows of one step: memory and speed, never the result; 0: about kEvaluateRows tokens
  int32_t bos_id = -1;  // -1: the model's
  // If set, after each step: its rows, one window after another, and the logits of each layer's router [rows,E], empty for a
  // dense layer. They are gone after it.
  std::function<Status(std::span<const RowInfo> rows, std::span<const MatView<float>> router_logits)> on_router_logits;
  // After that; loss_sum is of the tokens done. False ends the evaluation with an error.
  std::function<bool(int64_t tokens_done, int64_t tokens_total, double loss_sum)> on_step;
};

// Errors: no tokens, a model without BOS, a context beyond the model's, a token beyond its vocabulary, losses that are not
// finite. Resets ctx.arena.
Result<Evaluation> Evaluate(const Model& model, std::span<const Document> documents, const EvaluateOptions& options,
                            ExecContext& ctx);

}  // namespace moe
