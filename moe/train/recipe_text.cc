// What a recipe becomes: its full text, the model it describes, the keys in which two differ.

#include <algorithm>
#include <type_traits>

#include "moe/train/recipe.h"
#include "moe/train/recipe_checks.h"
#include "moe/train/recipe_fields.h"

namespace moe {
namespace {

std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += fmt::format("\\{}", c);
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

// Empty: the member is unset (outside its range), which is how a recipe says "none".
std::string Text(int64_t value, const WholeRange& range) {
  return value < range.least ? "" : fmt::format("{}", value);
}
std::string Text(double value, const NumberRange& range) {
  return value < range.least || (range.open_below && value == range.least) ? "" : fmt::format("{}", value);
}
std::string Text(bool value, std::nullptr_t) {
  return value ? "true" : "false";
}
template <class T, size_t n>
std::string Text(T value, const Choices<T, n>& choices) {
  for (const auto& [name, choice] : choices.values) {
    if (choice == value) return fmt::format("\"{}\"", name);
  }
  return "";
}
std::string Text(const std::string& value, std::nullptr_t) {
  return value.empty() ? "" : Quoted(value);
}
std::string Text(const std::string& value, AnyPolicy) {
  return Text(value, nullptr);
}
std::string Text(const std::vector<std::string>& values, std::nullptr_t) {
  std::string out;
  for (const std::string& value : values) out += (out.empty() ? "" : ", ") + Quoted(value);
  return "[" + out + "]";
}
std::string Text(const std::vector<ExpertGroup>& groups, AnyGroups) {
  std::string out;
  for (const ExpertGroup& group : groups) out += (out.empty() ? "" : ", ") + Quoted(ToText(group));
  return groups.empty() ? "" : "[" + out + "]";
}
std::string Text(const std::vector<int64_t>& values, const WholeRange&) {
  return values.empty() ? "" : fmt::format("[{}]", fmt::join(values, ", "));
}

// Keys that have the value which follows from other keys: ToToml writes them as comments, so that they follow when those
// change.
bool Derived(const Recipe& recipe, std::string_view key) {
  const ModelRecipe& m = recipe.model;
  const TrainRecipe& t = recipe.train;
  if (key == "model.kv_heads") return m.kv_heads == m.heads;
  if (key == "model.head_width") return m.hidden % m.heads == 0 && m.head_width == m.hidden / m.heads;
  if (key == "train.context") return t.context == m.context;
  if (key == "train.micro_batch_tokens") return t.micro_batch_tokens == t.batch_tokens;
  if (key == "train.min_lr") return t.min_lr == t.lr / 10;
  return false;
}

// What the numbers of a run do not depend on, or what is compared by contents elsewhere.
constexpr std::array<std::string_view, 8> kFreeKeys = {"data.files",       "data.validation",   "tokenizer.file",
                                                       "train.eval_every", "train.eval_tokens", "train.checkpoint_every",
                                                       "train.minutes",    "router.policy"};

}  // namespace

std::string ToToml(const Recipe& recipe) {
  std::string out, section;
  VisitRecipe(recipe, [&](std::string_view key, const auto& member, const auto& range) {
    const std::string text = Text(member, range);
    if (text.empty() || !IdleBecause(recipe, key).empty()) return;
    const size_t dot = key.find('.');
    if (key.substr(0, dot) != section) {
      out += fmt::format("{}[{}]\n", section.empty() ? "" : "\n", key.substr(0, dot));
      section = key.substr(0, dot);
    }
    out += fmt::format("{}{} = {}\n", Derived(recipe, key) ? "# " : "", key.substr(dot + 1), text);
  });
  return out;
}

std::string ValueOf(const Recipe& recipe, std::string_view wanted) {
  std::string value;
  VisitRecipe(recipe, [&](std::string_view key, const auto& member, const auto& range) {
    if (key == wanted) value = Text(member, range);
  });
  return value.empty() ? "none" : value;
}

std::string FirstDifference(const Recipe& a, const Recipe& b) {
  const auto idle = [](const Recipe& recipe, std::string_view key) { return !IdleBecause(recipe, key).empty(); };
  const bool calibrated = a.train.steps == 0 || b.train.steps == 0;
  std::string first;
  VisitRecipe(a, [&](std::string_view key, const auto&, const auto&) {
    if (!first.empty() || std::ranges::find(kFreeKeys, key) != kFreeKeys.end()) return;
    if ((key == "train.steps" && calibrated) || (idle(a, key) && idle(b, key))) return;
    if (ValueOf(a, key) != ValueOf(b, key)) first = key;
  });
  return first;
}

Result<ModelConfig> MakeModelConfig(const Recipe& recipe, int64_t vocab_size, int32_t bos_id, int32_t eos_id,
                                    const std::string& where) {
  const ModelRecipe& m = recipe.model;
  if (m.vocab_size > 0 && m.vocab_size < vocab_size) {
    if (!m.from.empty()) {
      return Err(recipe.tokenizer.file, "got a tokenizer of {} tokens, expected at most the model's {}", vocab_size,
                 m.vocab_size);
    }
    return Err(where + " model.vocab_size", "got {}, expected at least the tokenizer's {}", m.vocab_size, vocab_size);
  }
  ModelConfig config{.vocab_size = std::max(m.vocab_size, vocab_size),
                     .hidden = m.hidden,
                     .num_heads = m.heads,
                     .num_kv_heads = m.kv_heads,
                     .head_width = m.head_width,
                     .context = m.context,
                     .rope_theta = m.rope_theta,
                     .norm_epsilon = static_cast<float>(m.norm_epsilon),
                     .tie_embeddings = m.tie_embeddings,
                     .qk_norm = m.qk_norm,
                     .bos_id = bos_id,
                     .eos_id = eos_id};
  RouterConfig router = recipe.router.config;
  router.num_experts = m.experts, router.top_k = m.top_k;
  MoeConfig moe{.router = router,
                .expert_width = m.expert_width,
                .num_shared_experts = m.shared_experts,
                .shared_expert_width = m.shared_expert_width,
                .shared_gate = m.shared_expert_gate,
                .executor = m.executor};
  if (!m.expert_groups.empty()) SetExperts(m.expert_groups, moe);
  for (int64_t layer = 0; layer < m.layers; ++layer) {
    const bool dense = m.ffn == RecipeFfn::kDense || std::ranges::binary_search(m.dense_layers, layer);
    LayerSpec spec;
    spec.ffn = dense ? FfnKind::kDense : FfnKind::kMoe;
    if (dense) {
      spec.ffn_width = m.ffn_width;
    } else {
      spec.moe = moe;
      if (!m.layer_experts.empty()) spec.moe.router.num_experts = m.layer_experts[static_cast<size_t>(layer)];
      if (!m.layer_top_k.empty()) spec.moe.router.top_k = m.layer_top_k[static_cast<size_t>(layer)];
    }
    config.layers.push_back(spec);
  }
  MOE_TRY(Validate(config, where));
  if (m.ffn == RecipeFfn::kDenseActive) return DenseTwin(config, TwinKind::kEqualActive);
  if (m.ffn == RecipeFfn::kDenseTotal) return DenseTwin(config, TwinKind::kEqualTotal);
  return config;
}

}  // namespace moe
