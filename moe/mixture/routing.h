#pragma once
// What a router says: which experts each token chose, how much each counts, and what it cost to choose them.

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

#include "moe/base/result.h"
#include "moe/ops/exec_context.h"
#include "moe/tensor/mat_view.h"

namespace moe {

enum class RouterScore : uint8_t {
  kSoftmax,      // p = softmax over all experts, then the k largest (Mixtral, OLMoE, Qwen3)
  kTopKSoftmax,  // the k largest logits, then softmax over those k
};
// Their names in recipes, in config.json and in what programs print.
inline constexpr std::array<std::pair<std::string_view, RouterScore>, 2> kRouterScores = {
    {{"softmax", RouterScore::kSoftmax}, {"topk_softmax", RouterScore::kTopKSoftmax}}};
std::string_view Name(RouterScore score);

// Routing policy is a value; every field has the meaning of Hugging Face configs where one exists.
struct RouterConfig {
  int64_t num_experts = 8;  // E
  int64_t top_k = 2;        // k <= E
  RouterScore score = RouterScore::kSoftmax;
  // kSoftmax: divide the k gates by their sum (over all chosen, before dropping); off: raw probabilities. kTopKSoftmax's gates
  // sum to 1 whatever it says: the two are then one formula.
  bool normalize = true;
  double capacity_factor = 0;  // > 0: training drops what overflows an expert's bucket; 0: dropless. Inference never drops.
  // Coefficient of the Switch loss E * sum_e f_e P_e, f_e = n_e / (k tokens): 1 at perfect balance. (Fedus et al. 2021, eq. 4)
  double balance_loss = 0.01;
  double z_loss = 0.001;  // coefficient of mean(logsumexp^2) (Zoph et al. 2022, eq. 5)
};
// k in 1..E, factors finite and not negative; k = 1 of E > 1 with a renormalised or post-selection gate is refused: its gate is
// always 1 and the router would get no gradient. `where` names the file or recipe in the error.
Status Validate(const RouterConfig& config, const std::string& where);

inline constexpr double kEntropyUnit = 0x1p-30;  // nats: a token's entropy is a whole multiple of it

// What routing measured on the way. Padding rows are in none of it.
struct RouterAux {
  double balance_loss = 0;               // Switch loss, without its coefficient
  double z_loss = 0;                     // mean squared log-sum-exp, without its coefficient
  double entropy = 0;                    // mean over tokens of the entropy of p, nats
  int64_t num_tokens = 0;                // valid rows
  std::span<int64_t> tokens_per_expert;  // [E] assignments, before dropping
};

// Which experts each token chose. A token may have any number of slots (0..E); a padding row has none. Spans live in the step's
// arena.
struct Routing {
  std::span<const int32_t> slot_begin;  // [T+1] slots of token t: [t], up to [t+1]
  std::span<const int32_t> expert;      // [S]   expert of each slot, best first within a token
  std::span<const float> gate;          // [S]   weight of each slot
  RouterAux aux;
};

// Kept by forward for backward.
struct RouterSaved {
  MatView<float> probs;          // [T,E] softmax of the logits; Route takes it from the arena unless it is given one
  std::span<float> log_sum_exp;  // [T]
};

// logits [T,E] float32. valid [T] (nonzero: a real token) or empty: all are. Ties go to the lowest expert. A NaN or infinite
// logit is an error that names the token (row); padding rows are not looked at. saved may be null (inference); saved->probs may
// be the logits' own memory.
Result<Routing> Route(const RouterConfig& config, MatView<const float> logits, std::span<const uint8_t> valid,
                      RouterSaved* saved, ExecContext& ctx);

// d_logits [T,E], overwritten, from d_gate [S] (0 for dropped slots) through the gates, plus loss_scale * (balance_loss *
// Switch loss + z_loss * z-loss). The counts f_e are constants: the gradient flows through P only. Gates that sum to 1 were
// divided before dropping, so all chosen slots, dropped ones too, share their Jacobian. Padding rows get 0.
void RouteBackward(const RouterConfig& config, const Routing& routing, const RouterSaved& saved, std::span<const float> d_gate,
                   float loss_scale, MatView<float> d_logits, ExecContext& ctx);

}  // namespace moe
