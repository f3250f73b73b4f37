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

// Matrix `index` [rows,cols] of a parameter, one tensor.
Status OneOf(const Fn& fn, std::string parameter, int64_t index, std::string name, int64_t rows, int64_t cols) {
  return fn({.parameter = std::move(parameter),
             .index = index,
             .rows = rows,
             .cols = cols,
             .pieces = {{.name = std::move(name), .rows = rows}}});
}
// Gates and ups [F,cols] each, interleaved in one matrix.
Status Gated(const Fn& fn, std::string parameter, int64_t index, const std::string& gate, const std::string& up, int64_t F,
             int64_t cols) {
  return fn(
      {.parameter = std::move(parameter),
       .index = index,
       .rows = 2 * F,
       .cols = cols,
       .pieces = {{.name = gate, .rows = F, .layout = HfPiece::kGates}, {.name = up, .rows = F, .layout = HfPiece::kUps}}});
}

// Expert `index` of those that `parameters` hold.
Status Expert(const Fn& fn, const ExpertSpec& spec, const std::string& parameters, int64_t index, const std::string& prefix,
              const FfnNames& names, int64_t D) {
  if (spec.kind == ExpertKind::kConstant) {
    MOE_TRY(fn({.parameter = parameters + "constant",
                .index = index,
                .rows = 1,
                .cols = D,
                .is_vector = true,
                .pieces = {{.name = prefix + "constant", .rows = 1}}}));
    return OneOf(fn, parameters + "mix", index, prefix + "mix.weight", 2, D);
  }
  if (!spec.is_ffn()) return {};
  const int64_t F = spec.width;
  const auto hidden_layer = [&](const char* ours, const std::string& middle, int64_t cols) {
    const std::string up = prefix + middle + names.up + ".weight";
    if (!spec.gated) return OneOf(fn, parameters + ours, index, up, F, cols);
    return Gated(fn, parameters + ours, index, prefix + middle + names.gate + ".weight", up, F, cols);
  };
  MOE_TRY(hidden_layer(spec.gated ? "gate_up" : "up", "", D));
  if (spec.depth == 2) MOE_TRY(hidden_layer("middle", "middle_", F));
  return OneOf(fn, parameters + "down", index, prefix + names.down + ".weight", D, F);
}

// A SwiGLU FFN that is no expert among others.
Status Ffn(const Fn& fn, const std::string& parameters, const std::string& prefix, int64_t D, int64_t F) {
  return Expert(fn, {.width = F}, parameters, 0, prefix, kFfnNames, D);
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
  const std::vector<ExpertGroup> groups = moe.experts();
  for (size_t g = 0, e = 0; g < groups.size(); ++g) {
    const std::string number = groups.size() > 1 ? fmt::format("{}.", g) : "";
    for (int64_t i = 0; i < groups[g].count; ++i, ++e) {
      MOE_TRY(Expert(fn, groups[g].spec, ours + "moe.experts." + number, i, fmt::format("{}experts.{}.", block, e),
                     mixtral ? kMixtralNames : kFfnNames, D));
    }
  }
  if (moe.shared_width() == 0) return {};
  if (moe.shared_gate) MOE_TRY(OneTensor(fn, ours + "moe.shared.gate", block + "shared_expert_gate.weight", 1, D));
  return Ffn(fn, ours + "moe.shared.", block + "shared_experts.", D, moe.shared_width());
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
      MOE_TRY(Ffn(fn, ours + "dense.", theirs + "mlp.", D, layer.ffn_width));
    }
  }
  MOE_TRY(Vector(fn, "final_norm", "model.norm.weight", D));
  if (config.tie_embeddings) return {};
  return OneTensor(fn, "head", kHeadTensor, V, D);
}

}  // namespace moe
