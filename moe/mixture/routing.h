#pragma once
// What a router says: which experts each token chose, how much each counts, and what it cost to choose them.

#include <array>
#include <cstdint>
#include <span>
#include <utility>

#include "moe/base/result.h"
#include "moe/mixture/router_config.h"
#include "moe/ops/exec_context.h"
#include "moe/tensor/mat_view.h"

namespace moe {

// A token's entropy in nats, and the sum of its gates, are whole multiples of it: then sums over tokens are exact, and the same
// however tokens are grouped into steps (an evaluation must not depend on its batch).
inline constexpr double kEntropyUnit = 0x1p-30;

// Of losses that have a coefficient, without it, else 0; RouterConfig has their formulas.
struct RouterLosses {
  double gshard = 0, importance = 0, load = 0, sequence = 0, global = 0;
};
// By the name of their coefficient.
inline constexpr std::array<std::pair<const char*, double RouterLosses::*>, 5> kRouterLosses = {
    {{"gshard_loss", &RouterLosses::gshard},
     {"importance_loss", &RouterLosses::importance},
     {"load_loss", &RouterLosses::load},
     {"sequence_loss", &RouterLosses::sequence},
     {"global_loss", &RouterLosses::global}}};

// What routing measured on the way. Padding rows are in none of it. p [T,E]: the softmax of the logits, or, of scores that are
// functions of one logit, the scores over their sum.
struct RouterAux {
  double balance_loss = 0;               // Switch loss, without its coefficient
  double z_loss = 0;                     // mean squared log-sum-exp, without its coefficient
  double entropy = 0;                    // mean over tokens of the entropy of p, nats
  double gate_sum = 0;                   // of all slots, as chosen: before dropping, and before a renormalisation after it
  double largest_logit = 0;              // the largest |z|, before noise and selection bias
  int64_t num_tokens = 0;                // valid rows
  std::span<int64_t> tokens_per_expert;  // [E] assignments, before dropping
  RouterLosses losses;                   // the others; measured in training only
};

// Which experts each token chose. A token may have any number of slots (0..E); a padding row has none. Spans live in the step's
// arena.
struct Routing {
  std::span<const int32_t> slot_begin;  // [T+1] slots of token t: [t], up to [t+1]
  std::span<const int32_t> expert;      // [S]   expert of each slot, best first within a token
  std::span<float> gate;                // [S]   weight of each slot; final after NormalizeKept
  std::span<const uint8_t> valid;       // [T]   as RouteInput has it: a token without slots is none of padding
  RouterAux aux;
};

// What a router chooses by.
struct RouteInput {
  MatView<const float> logits;                   // [T,E] float32
  std::span<const uint8_t> valid = {};           // [T] nonzero: a real token; empty: all are
  std::span<const float> selection_bias = {};    // [E] added to the scores for selection only; empty: nothing
  std::span<const int32_t> ids = {};             // [T] what hash routing is a function of
  std::span<const int32_t> sequence_begin = {};  // [sequences+1] first rows, then T; empty: one sequence
  std::span<const int64_t> tokens_before = {};   // [E] assignments of the optimizer step before this; empty: none
  bool training = false;                         // noise, sinkhorn
  uint64_t key = 0;                              // of noise, beside row and expert
};

// Kept by forward for backward.
struct RouterSaved {
  MatView<float> probs;                     // [T,E] p; Route takes it from the arena unless it is given one
  std::span<float> score_sum;               // [T]   scores are p * this; 1 for softmaxes
  std::span<float> log_sum_exp;             // [T]
  MatView<float> softmax;                   // [T,E] of the logits where p is none and z_loss wants it, else empty
  MatView<float> near;                      // [S,E] of sparsemixer: each slot's own softmax, else empty
  MatView<float> load_slope;                // [T,E] of the load loss: the chance to be chosen by its logit, else empty
  std::span<int32_t> next_best;             // [T]   and the expert just not chosen, -1: all were
  std::span<double> load;                   // [E]   and the sums of these chances
  std::span<double> prob_sum;               // [E] sums of p
  std::span<int64_t> first_choices;         // [E]
  std::span<const int32_t> sequence_begin;  // as RouteInput has them
  std::span<const int64_t> tokens_before;
};

// A NaN or infinite logit is an error that names the token (row); padding rows are not looked at. Ties go to the lowest expert.
// saved may be null (inference); saved->probs may be the logits' own memory.
Result<Routing> Route(const RouterConfig& config, const RouteInput& input, RouterSaved* saved, ExecContext& ctx);

// With normalize_after_drop: divides each token's gates by the sum of those whose slot_row [S] is not -1. Else nothing.
void NormalizeKept(const RouterConfig& config, std::span<const int32_t> slot_row, Routing& routing, ExecContext& ctx);

// d_logits [T,E], overwritten, from d_gate [S] (0 for dropped slots) through the gates, plus loss_scale * the sum of all
// losses that have a coefficient. Counts are constants: the gradient of a loss flows through p only, of z_loss through the
// softmax. Gates that were divided before dropping: all chosen slots, dropped ones too, share their Jacobian; after it: those
// that slot_row [S] (else not looked at) kept. Padding rows get 0.
void RouteBackward(const RouterConfig& config, const Routing& routing, const RouterSaved& saved,
                   std::span<const int32_t> slot_row, std::span<const float> d_gate, float loss_scale, MatView<float> d_logits,
                   ExecContext& ctx);

}  // namespace moe
