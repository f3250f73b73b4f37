#pragma once

#include <cstdint>
#include <span>

#include "moe/tensor/mat_view.h"

namespace moe {

struct KvCache;

// One row of a step: one token of one sequence.
struct RowInfo {
  int32_t sequence = 0;  // slot of the KV cache; without a cache only "same or not" matters
  int32_t position = 0;  // in its sequence
  int32_t token_id = 0;
  bool valid = true;  // false: padding, computed but counted nowhere
};

// All rows of a step. Rows of one sequence are adjacent and have consecutive positions. With a cache, a sequence's earlier
// positions are read from it and its new ones written to it; without one (training) every sequence starts at position 0.
struct StepBatch {
  std::span<const RowInfo> rows;        // [T]
  std::span<const int32_t> logit_rows;  // rows whose logits are wanted, ascending
  KvCache* cache = nullptr;
  uint64_t key = 0;  // training: what noise and drops by chance are functions of, beside layer and row
  // [L], each [T,E], or empty for a dense layer: the routers' logits are copied there. Empty: nowhere.
  std::span<const MatView<float>> router_logits = {};
  // Measuring: [L], each [S] or empty, see LayerTokens::forced. Empty: routers choose.
  std::span<const std::span<const int32_t>> forced_experts = {};
};

}  // namespace moe
