#pragma once

#include <cstdint>
#include <vector>

#include "moe/tensor/tensor.h"

namespace moe {

struct ModelConfig;

// Keys and values of past positions of several sequences, float32, one slab per layer: [slots, capacity, G*P]. Keys are stored
// rotated.
struct KvCache {
  int64_t num_slots = 0;     // sequences
  int64_t capacity = 0;      // positions of each
  int64_t width = 0;         // G*P
  std::vector<Tensor> k, v;  // one per layer

  static KvCache Make(const ModelConfig& config, int64_t num_slots, int64_t capacity);
  static int64_t Bytes(const ModelConfig& config, int64_t num_slots, int64_t capacity);
  float* key(int64_t layer, int64_t slot, int64_t position) {
    return k[static_cast<size_t>(layer)].data() + (slot * capacity + position) * width;
  }
  float* value(int64_t layer, int64_t slot, int64_t position) {
    return v[static_cast<size_t>(layer)].data() + (slot * capacity + position) * width;
  }
};

}  // namespace moe
