#pragma once
// A routing policy as a value: how logits become scores, which experts a token takes by them, how much each counts, who is
// dropped when an expert is full, and what keeps the load even. Recipes, config.json, `--policy` and presets all set these
// fields by the names in VisitRouter. Costs are per token and layer, beside its gate's product and k experts; what they come
// to in time stands in docs/performance.md, printed by `moe bench router`.

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/base/fields.h"
#include "moe/base/result.h"
#include "moe/tensor/dtype.h"

namespace moe {

// From the router's input x [D] of a token to logits z [E], in float32 (mixture/gate.h).
enum class GateNetwork : uint8_t {
  kLinear,  // W x
  kMlp,     // W silu(V x): gate_width hidden values, of the experts' own activation: smooth, and no hidden value can die
  kCosine,  // s cos(V x, w_e), V x of gate_width values; s = exp(learned), at most 100 (Chi et al. 2022, X-MoE; Tutel's clamp)
};
inline constexpr std::array<std::pair<std::string_view, GateNetwork>, 3> kGateNetworks = {
    {{"linear", GateNetwork::kLinear}, {"mlp", GateNetwork::kMlp}, {"cosine", GateNetwork::kCosine}}};

// Of the linear gate's products. bf16 rounds x, W and z (sums stay float32), as a model does whose router is like any other
// layer: near ties change sides, and large logits lose digits. To be compared with, not to be recommended. (Fedus et al.
// 2021, 2.4)
inline constexpr std::array<std::pair<std::string_view, DType>, 2> kRouterDTypes = {
    {{"f32", DType::kF32}, {"bf16", DType::kBf16}}};

// From logits z [E] of a token to scores s [E]. All of them grow with z, so without bias and groups the order of z decides.
// All also take the E exponentials of a softmax, for the z-loss; what else they cost:
enum class RouterScore : uint8_t {
  // exp(z) / sum over all experts of exp(z); nothing else (Shazeer 2017; Mixtral, OLMoE, Qwen, DeepSeek-V2)
  kSoftmax,
  // The same, the sum over the chosen only: gates sum to 1; k additions (Megatron's default, gpt-oss, Granite)
  kTopKSoftmax,
  // 1 / (1 + exp(-z)); E exponentials (DeepSeek-V3, GLM-4.5)
  kSigmoid,
  // sqrt(log(1 + exp(z))); E exponentials, logarithms and roots (DeepSeek-V4)
  kSqrtSoftplus,
  // k <= 2: softmax over the experts near the largest; then again without it. k E exponentials, and k E floats kept for the
  // backward pass (Liu et al. 2023; Phi-3.5)
  kSparsemixer,
  // max(z, 0): every expert above 0 is chosen, any number, also none; E comparisons, and as many experts (Wang et al. 2024,
  // ReMoE)
  kRelu,
};
inline constexpr std::array<std::pair<std::string_view, RouterScore>, 6> kRouterScores = {
    {{"softmax", RouterScore::kSoftmax},
     {"topk_softmax", RouterScore::kTopKSoftmax},
     {"sigmoid", RouterScore::kSigmoid},
     {"sqrt_softplus", RouterScore::kSqrtSoftplus},
     {"sparsemixer", RouterScore::kSparsemixer},
     {"relu", RouterScore::kRelu}}};
// A function of each logit alone (mixture/scores.cc), which sums to nothing in particular.
inline bool IsElementwise(RouterScore score) {
  return score == RouterScore::kSigmoid || score == RouterScore::kSqrtSoftplus || score == RouterScore::kRelu;
}

enum class RouterSelection : uint8_t {
  // The k best of each token; one pass over E, and a short one for each choice.
  kTopK,
  // Training: the k best after the rows and columns of exp(z) were made to sum alike (Sinkhorn & Knopp 1967; Clark et al. 2022,
  // S-BASE); evaluation: kTopK. E exponentials, and 2 E multiply-adds in each round (mixture/selection.h).
  kSinkhorn,
  // Each expert takes its best tokens (Zhou et al. 2022); looks at later tokens, so not for causal models. A partial sort of T
  // tokens for each expert: about T E steps, and a byte for each of the T E pairs.
  kExpertChoice,
  // A function of the token's id; the router's scores are only gates (Roller et al. 2021). E integer hashes; the load is that
  // of
  // the text's words, and nothing learns where they go.
  kHash,
};
inline constexpr std::array<std::pair<std::string_view, RouterSelection>, 4> kRouterSelections = {
    {{"top_k", RouterSelection::kTopK},
     {"sinkhorn", RouterSelection::kSinkhorn},
     {"expert_choice", RouterSelection::kExpertChoice},
     {"hash", RouterSelection::kHash}}};

// Of a group of experts, when only the best groups may be chosen from: one more pass over E.
enum class GroupScore : uint8_t { kMax, kSumOfTwo };  // DeepSeek-V2; DeepSeek-V3
inline constexpr std::array<std::pair<std::string_view, GroupScore>, 2> kGroupScores = {
    {{"max", GroupScore::kMax}, {"sum_of_two", GroupScore::kSumOfTwo}}};

// What training adds so that experts are tried out; evaluation and inference have none. A function of seed, step, layer and
// token, so that a resumed run repeats it.
enum class RouterNoise : uint8_t {
  kNone,
  kGaussian,     // z + noise_scale * N(0, 1), for selection and gates; E draws (Shazeer 2017; V-MoE)
  kGumbel,       // selection by z + noise_scale * Gumbel; gates by z; E draws (DeepSpeed's RSample)
  kGumbelLater,  // the same but for the first choice, which is by z (DeepSpeed's top-2)
  kJitter,       // the router's input times U(1 - noise_scale, 1 + noise_scale), element by element; D draws (Switch)
};
inline constexpr std::array<std::pair<std::string_view, RouterNoise>, 5> kRouterNoises = {
    {{"none", RouterNoise::kNone},
     {"gaussian", RouterNoise::kGaussian},
     {"gumbel", RouterNoise::kGumbel},
     {"gumbel_later", RouterNoise::kGumbelLater},
     {"jitter", RouterNoise::kJitter}}};

// How the selection bias b [E], added to scores for selection only, follows the load n [E] of an optimizer step: E additions a
// token, and E more a step. No loss, no gradient.
enum class BiasRule : uint8_t {
  kNone,  // no bias
  kKept,  // as loaded
  kSign,  // b += rate * sign(mean n - n), then less its change's mean (Wang et al. 2024, loss-free; torchtitan's centring)
  kLoad,  // b = -rate * (n / mean n - 1), n averaged over about the last ten steps: follows the load itself, at once
};
inline constexpr std::array<std::pair<std::string_view, BiasRule>, 4> kBiasRules = {
    {{"none", BiasRule::kNone}, {"kept", BiasRule::kKept}, {"sign", BiasRule::kSign}, {"load", BiasRule::kLoad}}};

// Of a capacity, as trainers differ: up (DeepSpeed, Megatron), down (Mesh-TensorFlow, MegaBlocks), to the nearest (flaxformer).
enum class Rounding : uint8_t { kCeil, kFloor, kNearest };
inline constexpr std::array<std::pair<std::string_view, Rounding>, 3> kRoundings = {
    {{"ceil", Rounding::kCeil}, {"floor", Rounding::kFloor}, {"nearest", Rounding::kNearest}}};

// Who keeps its place in an expert that more slots want than it has rows.
enum class DropOrder : uint8_t {
  kPosition,      // the first in the order of tokens, and of choices within a token (Switch, MegaBlocks); a count of each slot
  kFirstChoices,  // all first choices before all second ones, and so on; then by token (GShard); k counts
  kScore,         // the largest gates; equal ones by position (Megatron's "probs"); a selection among each full expert's slots
  kRandom,        // chance, which a resumed run repeats (DeepSpeed's random token selection); the same, and a draw a slot
};
inline constexpr std::array<std::pair<std::string_view, DropOrder>, 4> kDropOrders = {
    {{"position", DropOrder::kPosition},
     {"first_choices", DropOrder::kFirstChoices},
     {"score", DropOrder::kScore},
     {"random", DropOrder::kRandom}}};

enum class CapacityScope : uint8_t { kBatch, kSequence };
inline constexpr std::array<std::pair<std::string_view, CapacityScope>, 2> kCapacityScopes = {
    {{"batch", CapacityScope::kBatch}, {"sequence", CapacityScope::kSequence}}};

// Rows that an expert takes of T tokens: factor * T * k / E (without k: factor * T / E), rounded, at least `least`.
struct CapacityConfig {
  double factor = 0;       // in training; 0: dropless
  double eval_factor = 0;  // in evaluation and inference; 0: dropless
  bool times_top_k = true;
  Rounding rounding = Rounding::kCeil;
  int64_t least = 1;
  bool zero_is_dropless = false;  // 0 rows: as many as the fullest expert wants (MegaBlocks)
  DropOrder drop = DropOrder::kPosition;
  CapacityScope scope = CapacityScope::kBatch;
  // > 0: the factor of training is a state of the layer. It begins at `factor`, follows the share of slots that were dropped
  // toward this share, and stays within least_factor..most_factor.
  double target_drop = 0;
  double least_factor = 1, most_factor = 4;

  bool operator==(const CapacityConfig&) const = default;
};

// Fields have the meaning of Hugging Face configs where one exists.
struct RouterConfig {
  int64_t num_experts = 8;  // E
  int64_t top_k = 2;        // k <= E; of expert choice, the mean experts of a token
  GateNetwork gate = GateNetwork::kLinear;
  int64_t gate_width = 0;  // of mlp and cosine
  DType dtype = DType::kF32;
  RouterScore score = RouterScore::kSoftmax;
  RouterSelection selection = RouterSelection::kTopK;
  // Gates of a token divided by their sum plus epsilon: over all chosen, or over those that were not dropped.
  bool normalize = true;
  bool normalize_after_drop = false;
  double normalize_epsilon = 0;
  double scale = 1;  // of the gates, at last (routed_scaling_factor)
  // Gates multiply what experts read, not what they write; a token's outputs are summed as they are. (Llama 4)
  bool gates_input = false;
  bool bias = false;  // a learned bias of the logits
  // Experts in groups of equal size, side by side; only the best top_groups may be chosen from. 1: all are one group.
  int64_t groups = 1, top_groups = 1;
  GroupScore group_score = GroupScore::kMax;
  // What the others' selection scores become: 0, as Hugging Face's DeepSeek has it, which a negative score of a chosen group
  // loses against; else -infinity.
  bool zero_other_groups = false;
  double sparsemixer_jitter = 0.01;  // an expert is near the largest within 2 * this, relatively
  RouterNoise noise = RouterNoise::kNone;
  double noise_scale = 0;
  double sinkhorn_tolerance = 1e-4;
  int64_t sinkhorn_rounds = 100;  // at most
  bool allow_noncausal = false;   // expert choice in a model that predicts the next token
  CapacityConfig capacity;

  // Coefficients of losses; each is 1 at perfect balance, importance and load 0. z_loss and sequence_loss are means over tokens
  // or sequences: the same however a step is cut into micro-batches. The others compare loads within a micro-batch. Each costs
  // up to E multiply-adds; beside that the load loss E values of Phi and E floats kept, the sequence loss a count of each
  // sequence's slots, and the z-loss with scores that are no softmax E floats kept.
  double balance_loss = 0.01;  // Switch: E sum_e f_e P_e, f_e = n_e / (k T) (Fedus et al. 2021, eq. 4, k-general)
  double gshard_loss = 0;      // the same with first choices only in f (Lepikhin et al. 2020)
  double importance_loss = 0;  // variance over experts of sum_t p_te, over its squared mean (Shazeer 2017)
  // The same of load_e = sum_t P(e is among the k best of t if its noise is drawn anew) = sum_t Phi((z_te - m_te) /
  // noise_scale), m_te the k-th largest noisy logit but e's own: what importance does to gates, for counts, which have no
  // gradient. With gaussian noise only. (Shazeer 2017, eqs. 8 to 11)
  double load_loss = 0;
  // Switch, sequence by sequence, averaged (DeepSeek-V2). Counts are of the chosen; DeepSeek-V3's own are of the k best
  // scores, without bias and groups.
  double sequence_loss = 0;
  double global_loss = 0;  // Switch with f of the whole optimizer step so far (Qiu et al. 2025)
  double z_loss = 0.001;   // mean of logsumexp(z)^2 (Zoph et al. 2022, eq. 5)
  BiasRule balance_bias = BiasRule::kNone;
  double bias_rate = 0.001;

  bool operator==(const RouterConfig&) const = default;

  bool selects_by_bias() const { return balance_bias != BiasRule::kNone; }
  // Does a token's result in evaluation and inference not depend on who is computed beside it?
  bool serves_tokens_alone() const { return capacity.eval_factor == 0 && selection != RouterSelection::kExpertChoice; }
  // Any number of experts a token, not k.
  bool has_varying_k() const { return score == RouterScore::kRelu || selection == RouterSelection::kExpertChoice; }
};

// visit(name, member, range): every field but num_experts.
template <class Config, class Visitor>
void VisitRouter(Config& r, Visitor&& visit) {
  constexpr NumberRange kPositive{0, kMostNumber, true}, kNotNegative{0, kMostNumber};
  constexpr WholeRange kExperts{1, 1 << 16};
  visit("top_k", r.top_k, kExperts);
  visit("gate", r.gate, Choices{kGateNetworks});
  visit("gate_width", r.gate_width, WholeRange{0, 1 << 16});
  visit("dtype", r.dtype, Choices{kRouterDTypes});
  visit("score", r.score, Choices{kRouterScores});
  visit("selection", r.selection, Choices{kRouterSelections});
  visit("normalize", r.normalize, nullptr);
  visit("normalize_after_drop", r.normalize_after_drop, nullptr);
  visit("normalize_epsilon", r.normalize_epsilon, kNotNegative);
  visit("scale", r.scale, NumberRange{0, 1e6, true});
  visit("gates_input", r.gates_input, nullptr);
  visit("bias", r.bias, nullptr);
  visit("groups", r.groups, kExperts);
  visit("top_groups", r.top_groups, kExperts);
  visit("group_score", r.group_score, Choices{kGroupScores});
  visit("zero_other_groups", r.zero_other_groups, nullptr);
  visit("sparsemixer_jitter", r.sparsemixer_jitter, kNotNegative);
  visit("noise", r.noise, Choices{kRouterNoises});
  visit("noise_scale", r.noise_scale, kNotNegative);
  visit("sinkhorn_tolerance", r.sinkhorn_tolerance, kPositive);
  visit("sinkhorn_rounds", r.sinkhorn_rounds, WholeRange{1, 1 << 20});
  visit("allow_noncausal", r.allow_noncausal, nullptr);
  visit("capacity_factor", r.capacity.factor, kNotNegative);
  visit("eval_capacity_factor", r.capacity.eval_factor, kNotNegative);
  visit("capacity_times_top_k", r.capacity.times_top_k, nullptr);
  visit("capacity_rounding", r.capacity.rounding, Choices{kRoundings});
  visit("least_capacity", r.capacity.least, WholeRange{0, 1 << 30});
  visit("zero_capacity_is_dropless", r.capacity.zero_is_dropless, nullptr);
  visit("drop", r.capacity.drop, Choices{kDropOrders});
  visit("capacity_scope", r.capacity.scope, Choices{kCapacityScopes});
  visit("target_drop", r.capacity.target_drop, NumberRange{0, 1, false, true});
  visit("least_capacity_factor", r.capacity.least_factor, kPositive);
  visit("most_capacity_factor", r.capacity.most_factor, kPositive);
  visit("balance_loss", r.balance_loss, kNotNegative);
  visit("gshard_loss", r.gshard_loss, kNotNegative);
  visit("importance_loss", r.importance_loss, kNotNegative);
  visit("load_loss", r.load_loss, kNotNegative);
  visit("sequence_loss", r.sequence_loss, kNotNegative);
  visit("global_loss", r.global_loss, kNotNegative);
  visit("z_loss", r.z_loss, kNotNegative);
  visit("balance_bias", r.balance_bias, Choices{kBiasRules});
  visit("bias_rate", r.bias_rate, kPositive);
}

// k in 1..E, every field in its range, and fields that mean something together. A gate that is always 1 (k = 1 with gates that
// sum to 1) is refused: the router would get no gradient. `where` names the file or recipe in the error.
Status Validate(const RouterConfig& config, const std::string& where);

// Why a field that was given means nothing beside the others; empty: it means something.
std::string_view IdleBecause(const RouterConfig& config, std::string_view field);
// Fields of which `which` is true get their defaults: what a preset says and other fields have made idle.
void ResetFields(RouterConfig& config, const std::function<bool(std::string_view name)>& which);

// Softmax over all experts, the k best, without losses: what public models are trained on from.
RouterConfig PlainRouter(int64_t num_experts, int64_t top_k, bool normalize);
// What of a policy evaluation and inference follow; the rest as in PlainRouter.
RouterConfig AsServed(RouterConfig config);

// "deepseek-v3", "as-switch,capacity_factor=1.5", "score=sigmoid,top_k=4": a preset's name, or none, then fields. Without a
// name they change `base`.
Result<RouterConfig> ParsePolicy(std::string_view text, int64_t num_experts, const std::string& where,
                                 const RouterConfig& base = {});
std::optional<RouterConfig> PolicyNamed(std::string_view name);  // its num_experts is a default
std::vector<std::string_view> PolicyNames();

template <class T, size_t n>
std::string_view NameIn(const std::array<std::pair<std::string_view, T>, n>& names, T value) {
  for (const auto& [name, v] : names) {
    if (v == value) return name;
  }
  return "?";
}

}  // namespace moe
