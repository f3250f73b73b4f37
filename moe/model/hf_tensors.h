#pragma once
// Which tensors a model has on disk and which rows of our matrices they are: q, k and v are three tensors there and one matrix
// here; gate and up likewise, interleaved.

#include <functional>
#include <string>
#include <vector>

#include "moe/model/config.h"

namespace moe {

struct HfPiece {
  enum Layout : uint8_t {
    kRows,   // rows [first_row, first_row + rows)
    kGates,  // row r is row r % 16 of group r / 16, which has 16 gates, then 16 ups
    kUps,
  };
  std::string name;  // "model.layers.0.self_attn.q_proj.weight"
  int64_t rows = 0;
  Layout layout = kRows;
  int64_t first_row = 0;

  int64_t MatrixRow(int64_t r) const {
    return layout == kRows ? first_row + r : r / 16 * 32 + r % 16 + (layout == kUps ? 16 : 0);
  }
  // Rows that follow each other here and there.
  int64_t RunLength() const { return layout == kRows ? rows : 16; }
};

// One matrix, or vector, of the ParameterStore and the tensors it is made of.
struct HfMatrix {
  std::string parameter;
  int64_t index = 0;  // which expert's
  int64_t rows = 0, cols = 0;
  bool is_vector = false;  // [cols] on disk
  bool exact = false;      // float32 in every file: a rounded selection bias would choose others
  std::vector<HfPiece> pieces;

  std::vector<int64_t> Shape(const HfPiece& piece) const {
    return is_vector ? std::vector<int64_t>{cols} : std::vector<int64_t>{piece.rows, cols};
  }
};

// Calls fn for all of them, in the order of the file. Stops at the first error, which it returns. The head is left out when it
// is the embedding.
Status ForEachHfMatrix(const ModelConfig& config, const std::function<Status(const HfMatrix&)>& fn);

inline constexpr const char* kEmbeddingTensor = "model.embed_tokens.weight";
inline constexpr const char* kHeadTensor = "lm_head.weight";

}  // namespace moe
