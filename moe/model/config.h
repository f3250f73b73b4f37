#pragma once
// The shape of a model: all that is needed to build it, count it, or find its dense twins.

#include <cstdint>
#include <string>
#include <vector>

#include "moe/base/result.h"
#include "moe/mixture/moe_layer.h"

namespace moe {

enum class FfnKind : uint8_t { kDense, kMoe };

// What one layer does. Layers may differ.
struct LayerSpec {
  FfnKind ffn = FfnKind::kMoe;
  int64_t ffn_width = 0;  // F of a dense FFN, a multiple of 16
  MoeConfig moe;          // used when ffn is kMoe
};

enum class QkNorm : uint8_t {
  kNone,
  kPerHead,  // RMSNorm over each head's P values, one weight [P] for all heads (Qwen3)
  kWhole,    // RMSNorm over all heads' values together, weight [H*P] and [G*P] (OLMoE)
};

struct ModelConfig {
  int64_t vocab_size = 0;    // V
  int64_t hidden = 0;        // D
  int64_t num_heads = 0;     // H
  int64_t num_kv_heads = 0;  // G, divides H
  int64_t head_width = 0;    // P, even
  int64_t context = 0;       // C, longest sequence
  double rope_theta = 10000.0;
  float norm_epsilon = 1e-5f;
  bool tie_embeddings = true;  // the output head is the embedding
  QkNorm qk_norm = QkNorm::kNone;
  int32_t bos_id = -1, eos_id = -1;  // -1: none
  std::vector<LayerSpec> layers;     // L

  bool has_experts() const;
};

// Shape errors in one line: widths, divisibility, experts (through Validate(MoeConfig)). `where` names the file or recipe.
Status Validate(const ModelConfig& config, const std::string& where);

// Values, not bytes. active: what one token's forward pass multiplies with: k experts of every MoE layer, shared experts,
// attention, norms, the head; of the embedding one row (when it is not tied to the head). Of experts that differ, k means.
struct ParameterCount {
  int64_t total = 0, active = 0;
  int64_t embedding = 0, head = 0, attention = 0, norms = 0, router = 0, experts = 0, shared_experts = 0,
          dense_ffn = 0;  // sum = total
};
ParameterCount CountParameters(const ModelConfig& config);

// The same model with every MoE layer replaced by one dense FFN of equal active (top_k*F + shared) or equal total (E*F +
// shared) width. The router's E*D values are what the counts then differ by. Experts that differ have the width of a gated FFN
// of as many values, and top_k*F is top_k times their mean, as if chosen uniformly; both to the nearest multiple of 16.
enum class TwinKind : uint8_t { kEqualActive, kEqualTotal };
ModelConfig DenseTwin(const ModelConfig& config, TwinKind kind);

}  // namespace moe
