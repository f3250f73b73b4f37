#include "moe/model/kv_cache.h"

#include "moe/model/config.h"

namespace moe {

KvCache KvCache::Make(const ModelConfig& config, int64_t num_slots, int64_t capacity) {
  KvCache cache{.num_slots = num_slots, .capacity = capacity, .width = config.num_kv_heads * config.head_width};
  for (size_t l = 0; l < config.layers.size(); ++l) {
    cache.k.emplace_back(std::vector<int64_t>{num_slots, capacity, cache.width});
    cache.v.emplace_back(std::vector<int64_t>{num_slots, capacity, cache.width});
  }
  return cache;
}

int64_t KvCache::Bytes(const ModelConfig& config, int64_t num_slots, int64_t capacity) {
  return static_cast<int64_t>(config.layers.size() * 2 * sizeof(float)) * num_slots * capacity * config.num_kv_heads *
         config.head_width;
}

}  // namespace moe
