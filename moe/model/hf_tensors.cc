#include "moe/model/hf_tensors.h"

#include "moe/model/hf_config.h"

namespace moe {
namespace {

struct FfnNames {
  const char *gate, *up, *down;
};
constexpr FfnNames kFfnNames = {"gate_proj", "up_proj", "down_proj"}, kMixtralNames = {"w1", "w3", "w2"};

using Fn = std::function<Status(const HfMatrix&)>;

Status OneTensor(const Fn& fn, std::string parameter, std::string name, int64_t rows, int64_t cols, bool is_vector = false) {
  return fn({.parameter = std::move(parameter),
             .rows = rows,
             .cols = cols,
             .is_vector = is_vector,
             .pieces = {{.name = std::move(name), .rows = rows}}});
}
Status Vector(const Fn& fn, std::string parameter, std::string name, int64_t width) {
  return OneTensor(fn, std::move(parameter), std::move(name), 1, width, true);
}

// A SwiGLU FFN: `parameters`gate_up and `parameters`down, matrix `index` of each.
Status Ffn(const Fn& fn, const std::string& parameters, int64_t index, const std::string& prefix, const FfnNames& names,
           int64_t D, int64_t F) {
  MOE_TRY(fn({.parameter = parameters + "gate_up",
              .index = index,
              .rows = 2 * F,
              .cols = D,
              .pieces = {{.name = prefix + names.gate + ".weight", .rows = F, .layout = HfPiece::kGates},
                         {.name = prefix + names.up + ".weight", .rows = F, .layout = HfPiece::kUps}}}));
  return fn({.parameter = parameters + "down",
             .index = index,
             .rows = D,
             .cols = F,
             .pieces = {{.name = prefix + names.down + ".weight", .rows = D}}});
}

Status Attention(const Fn& fn, const ModelConfig& config, const std::string& ours, const std::string& theirs) {
  const int64_t D = config.hidden, P = config.head_width, q = config.num_heads * P, kv = config.num_kv_heads * P;
  const auto name = [&](const char* projection) { return theirs + "self_attn." + projection + ".weight"; };
  MOE_TRY(fn({.parameter = ours + "attention.qkv",
              .rows = q + 2 * kv,
              .cols = D,
              .pieces = {{.name = name("q_proj"), .rows = q},
                         {.name = name("k_proj"), .rows = kv, .first_row = q},
                         {.name = name("v_proj"), .rows = kv, .first_row = q + kv}}}));
  MOE_TRY(OneTensor(fn, ours + "attention.out", name("o_proj"), D, q));
  if (config.qk_norm == QkNorm::kNone) return {};
  const bool whole = config.qk_norm == QkNorm::kWhole;
  MOE_TRY(Vector(fn, ours + "attention.q_norm", name("q_norm"), whole ? q : P));
  return Vector(fn, ours + "attention.k_norm", name("k_norm"), whole ? kv : P);
}

Status Moe(const Fn& fn, const MoeConfig& moe, int64_t D, bool mixtral, const std::string& ours, const std::string& theirs) {
  const std::string block = theirs + (mixtral ? "block_sparse_moe." : "mlp.");
  const RouterConfig& router = moe.router;
  const int64_t E = router.num_experts;
  // What no public family has is float32 in every file.
  const auto exact = [&](const char* ours_name, const char* name, int64_t rows, int64_t cols, bool is_vector) {
    return fn({.parameter = ours + ours_name,
               .rows = rows,
               .cols = cols,
               .is_vector = is_vector,
               .exact = true,
               .pieces = {{.name = block + name, .rows = rows}}});
  };
  if (router.gate == GateNetwork::kLinear) {
    MOE_TRY(OneTensor(fn, ours + "moe.router", block + "gate.weight", E, D));
  } else {
    MOE_TRY(exact("moe.router_hidden", "gate.hidden.weight", router.gate_width, D, false));
    MOE_TRY(exact("moe.router", "gate.weight", E, router.gate_width, false));
  }
  if (router.gate == GateNetwork::kCosine) MOE_TRY(exact("moe.router_scale", "gate.log_scale", 1, 1, true));
  if (router.bias) MOE_TRY(exact("moe.router_bias", "gate.bias", 1, E, true));
  if (router.selects_by_bias()) MOE_TRY(exact("moe.selection_bias", "gate.e_score_correction_bias", 1, E, true));
  for (int64_t e = 0; e < E; ++e) {
    MOE_TRY(Ffn(fn, ours + "moe.experts.", e, fmt::format("{}experts.{}.", block, e), mixtral ? kMixtralNames : kFfnNames, D,
                moe.expert_width));
  }
  if (moe.shared_width() == 0) return {};
  return Ffn(fn, ours + "moe.shared.", 0, block + "shared_experts.", kFfnNames, D, moe.shared_width());
}

}  // namespace

Status ForEachHfMatrix(const ModelConfig& config, const Fn& fn) {
  const int64_t V = config.vocab_size, D = config.hidden;
  const bool mixtral = FamilyOf(config) == Family::kMixtral;
  MOE_TRY(OneTensor(fn, "embedding", kEmbeddingTensor, V, D));
  for (size_t l = 0; l < config.layers.size(); ++l) {
    const LayerSpec& layer = config.layers[l];
    const std::string ours = fmt::format("layers.{}.", l), theirs = fmt::format("model.layers.{}.", l);
    MOE_TRY(Vector(fn, ours + "attention.norm", theirs + "input_layernorm.weight", D));
    MOE_TRY(Attention(fn, config, ours, theirs));
    MOE_TRY(Vector(fn, ours + "ffn_norm", theirs + "post_attention_layernorm.weight", D));
    if (layer.ffn == FfnKind::kMoe) {
      MOE_TRY(Moe(fn, layer.moe, D, mixtral, ours, theirs));
    } else {
      MOE_TRY(Ffn(fn, ours + "dense.", 0, theirs + "mlp.", kFfnNames, D, layer.ffn_width));
    }
  }
  MOE_TRY(Vector(fn, "final_norm", "model.norm.weight", D));
  if (config.tie_embeddings) return {};
  return OneTensor(fn, "head", kHeadTensor, V, D);
}

}  // namespace moe
