#pragma once
// What a routing policy makes of given logits, without a model.

#include <cstdint>
#include <span>
#include <vector>

#include "moe/mixture/routing.h"

namespace moe {

struct ReplayOptions {
  bool training = true;                          // the capacity and noise of training, else of evaluation
  uint64_t seed = 1;                             // of noise and of drops by chance
  std::span<const int32_t> ids = {};             // [T] for hash routing; empty: token t has the id t
  std::span<const int32_t> sequence_begin = {};  // [sequences+1] first rows, then T; empty: one sequence
};

// Slots of token t: [slot_begin[t], slot_begin[t+1]).
struct Replay {
  std::vector<int32_t> slot_begin, expert;
  std::vector<float> gate;                 // as combine uses it: 0 of a dropped slot
  std::vector<bool> kept;                  // [S]
  std::vector<int64_t> tokens_per_expert;  // [E] before dropping
  int64_t num_dropped = 0;
  int64_t bucket_rows = 0;  // rows of a bucket, if experts' rows were padded to one size
  int64_t padded_rows = 0;  // empty ones of all E buckets
  double balance_loss = 0, z_loss = 0, entropy = 0;
};

// logits [T,E]. bias [E] or empty: added to the logits where the policy learns one, else to the scores for selection, which is
// an error where there are none (relu, sparsemixer, sinkhorn, hash, expert_choice).
Result<Replay> ReplayPolicy(const RouterConfig& config, MatView<const float> logits, std::span<const float> bias,
                            const ReplayOptions& options, ExecContext& ctx);

}  // namespace moe
