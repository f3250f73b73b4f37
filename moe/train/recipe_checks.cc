#include "moe/train/recipe_checks.h"

#include <algorithm>
#include <cmath>

#include "moe/files/tokenizer.h"
#include "moe/train/recipe_fields.h"

namespace moe {
namespace {

// Where a key stands; of one that nobody wrote, the policy that says it, or the recipe.
std::string PlaceOf(const RecipeKeys& keys, const std::string& key) {
  if (const auto it = keys.written.find(key); it != keys.written.end()) return it->second.where;
  const auto policy = keys.written.find("router.policy");
  if (policy != keys.written.end() && (key.starts_with("router.") || key == "model.top_k")) {
    return fmt::format("{}: {}", policy->second.where, key);
  }
  return fmt::format("{} {}", keys.where, key);
}

struct KeyErrors {
  const RecipeKeys& keys;

  // Names the first key; wrong usage where a flag touched any of them.
  template <class... Args>
  tl::unexpected<Error> operator()(std::initializer_list<std::string_view> names, fmt::format_string<Args...> format,
                                   Args&&... args) const {
    const bool usage =
        std::ranges::any_of(names, [&](std::string_view key) { return keys.flagged.contains(std::string(key)); });
    return tl::make_unexpected(
        Error{PlaceOf(keys, std::string(*names.begin())), fmt::format(format, std::forward<Args>(args)...), usage ? 2 : 1});
  }
};

Status RefuseIdleKeys(const Recipe& recipe, const RecipeKeys& keys) {
  Status status;
  VisitRecipe(recipe, [&](std::string_view name, const auto&, const auto&) {
    const auto it = keys.written.find(std::string(name));
    const std::string_view because = it == keys.written.end() ? "" : IdleBecause(recipe, name);
    if (because.empty() || !status) return;
    const std::string_view section =
        name.substr(0, name.find('.') + 1);  // what makes it idle stands there, or is the FFN's kind
    const auto any_concerns = [&](const std::set<std::string>& set) {
      return std::ranges::any_of(set, [&](const std::string& key) { return key.starts_with(section) || key == "model.ffn"; });
    };
    const bool usage = any_concerns(keys.flagged);
    const bool in_text = any_concerns(keys.changed) && !keys.changed.contains(std::string(name));
    const std::string way_out = in_text ? fmt::format(" (`{}=` beside that takes it away)", name) : "";
    status = tl::make_unexpected(Error{it->second.where,
                                       fmt::format("got {}, expected no such key: {}{}", it->second.shown, because, way_out),
                                       usage ? 2 : 1});
  });
  return status;
}

// How many experts there are, where groups say it.
Status ResolveExperts(ModelRecipe& m, const KeyErrors& wrong) {
  if (m.ffn == RecipeFfn::kDense) return {};
  int64_t in_groups = 0;
  for (const ExpertGroup& group : m.expert_groups) in_groups += group.count;
  if (in_groups > 0 && !m.layer_experts.empty()) {
    return wrong({"model.layer_experts", "model.expert_groups"},
                 "got it beside model.expert_groups, expected one of them: groups say how many experts a layer has");
  }
  if (in_groups > 0 && !wrong.keys.written.contains("model.experts")) m.experts = in_groups;
  if (in_groups > 0 && in_groups != m.experts) {
    return wrong({"model.expert_groups", "model.experts"}, "got {} experts, expected model.experts {}", in_groups, m.experts);
  }
  if (m.layer_experts.empty() && m.layer_top_k.empty() && m.top_k > m.experts) {
    return wrong({"model.top_k", "model.experts", "model.expert_groups"}, "got {}, expected at most model.experts {}", m.top_k,
                 m.experts);
  }
  return {};
}

// Lists of one number for each layer: 0 of dense ones.
Status CheckLayerCounts(const ModelRecipe& m, const KeyErrors& wrong) {
  for (const auto& [key, list] : {std::pair{"model.layer_experts", &m.layer_experts}, {"model.layer_top_k", &m.layer_top_k}}) {
    if (list->empty()) continue;
    if (std::ssize(*list) != m.layers) {
      return wrong({key, "model.layers"}, "got {} numbers, expected one for each of the {} layers", list->size(), m.layers);
    }
    for (int64_t layer = 0; layer < m.layers; ++layer) {
      const int64_t value = (*list)[static_cast<size_t>(layer)];
      const bool dense = std::ranges::binary_search(m.dense_layers, layer);
      if (dense == (value == 0)) continue;
      return wrong({key, "model.dense_layers"}, "got {} for layer {}, expected {}", value, layer,
                   dense ? "0: it is dense" : "1 or more, or the layer in model.dense_layers");
    }
  }
  if (m.ffn == RecipeFfn::kDense || (m.layer_experts.empty() && m.layer_top_k.empty())) return {};
  for (int64_t layer = 0; layer < m.layers; ++layer) {
    const auto l = static_cast<size_t>(layer);
    const int64_t experts = m.layer_experts.empty() ? m.experts : m.layer_experts[l];
    const int64_t top_k = m.layer_top_k.empty() ? m.top_k : m.layer_top_k[l];
    if (std::ranges::binary_search(m.dense_layers, layer) || top_k <= experts) continue;
    return wrong({m.layer_top_k.empty() ? "model.top_k" : "model.layer_top_k", "model.layer_experts"},
                 "got {} for layer {}, expected at most its {} experts", top_k, layer, experts);
  }
  return {};
}

// Fills in defaults that depend on other keys, then checks what ranges alone cannot.
Status Resolve(Recipe& recipe, const KeyErrors& wrong) {
  ModelRecipe& m = recipe.model;
  TrainRecipe& t = recipe.train;
  if (wrong.keys.no_experts) {
    return wrong({"model.experts"},
                 "got 0, expected 1 or more; a model without experts is model.ffn = \"dense\" with "
                 "model.ffn_width");
  }
  if (m.kv_heads == 0) m.kv_heads = m.heads;
  if (m.head_width == 0) {
    if (m.hidden % m.heads != 0) {
      return wrong({"model.heads", "model.hidden"}, "got {}, expected a divisor of model.hidden {} (or model.head_width)",
                   m.heads, m.hidden);
    }
    m.head_width = m.hidden / m.heads;
  }
  if (m.head_width % 2 != 0) {
    return wrong({"model.head_width", "model.heads", "model.hidden"},
                 "got {}, expected an even number: rotary positions turn pairs", m.head_width);
  }
  if (m.heads % m.kv_heads != 0) {
    return wrong({"model.kv_heads", "model.heads"}, "got {}, expected a divisor of model.heads {}", m.kv_heads, m.heads);
  }
  MOE_TRY(ResolveExperts(m, wrong));
  if (m.ffn_width == 0 && (m.ffn == RecipeFfn::kDense || !m.dense_layers.empty())) {
    return wrong({"model.ffn_width", "model.ffn", "model.dense_layers"}, "got nothing, expected the width of the dense layers");
  }
  for (const int64_t layer : m.dense_layers) {
    if (layer >= m.layers)
      return wrong({"model.dense_layers", "model.layers"}, "got layer {}, expected 0..{}", layer, m.layers - 1);
  }
  std::ranges::sort(m.dense_layers);
  if (std::ranges::adjacent_find(m.dense_layers) != m.dense_layers.end()) {
    return wrong({"model.dense_layers", "model.layers"}, "got a layer twice, expected each once");
  }
  if (static_cast<int64_t>(m.dense_layers.size()) == m.layers) {
    return wrong({"model.dense_layers", "model.layers"}, "got all layers, expected model.ffn = \"dense\" for that");
  }
  MOE_TRY(CheckLayerCounts(m, wrong));
  const TokenizerRecipe& tokens = recipe.tokenizer;
  const int64_t least = tokens.kind == TokenizerKind::kBytes ? kBytesVocabulary
                        : tokens.kind == TokenizerKind::kBpe ? tokens.vocab_size
                                                             : 0;  // a file's is known when it has been read
  if (m.vocab_size > 0 && m.vocab_size < least) {
    return wrong({"model.vocab_size", "tokenizer.kind", "tokenizer.vocab_size"}, "got {}, expected at least the tokenizer's {}",
                 m.vocab_size, least);
  }
  if (recipe.tokenizer.kind == TokenizerKind::kFile && recipe.tokenizer.file.empty()) {
    return wrong({"tokenizer.file", "tokenizer.kind"},
                 "got nothing, expected the tokenizer.json that tokenizer.kind \"file\" asks for");
  }

  if (recipe.data.files.empty()) return wrong({"data.files"}, "got no file, expected training text (also: --data FILE)");
  if (t.steps > 0 && t.minutes > 0) {
    return wrong({"train.minutes", "train.steps"},
                 "got both train.steps and train.minutes, expected one (`--set {}=` takes the other away)",
                 wrong.keys.flagged.contains("train.steps") ? "train.minutes" : "train.steps");
  }
  if (t.steps == 0 && t.minutes == 0)
    return wrong({"train.steps", "train.minutes"}, "got nothing, expected train.steps or train.minutes");
  if (t.context == 0) t.context = m.context;
  if (t.context > m.context) {
    return wrong({"train.context", "model.context"}, "got {}, expected at most model.context {}", t.context, m.context);
  }
  if (t.batch_tokens % t.context != 0) {
    return wrong({"train.batch_tokens", "train.context", "model.context"}, "got {}, expected a multiple of the context {}",
                 t.batch_tokens, t.context);
  }
  if (t.micro_batch_tokens == 0) t.micro_batch_tokens = t.batch_tokens;
  if (t.batch_tokens % t.micro_batch_tokens != 0 || t.micro_batch_tokens % t.context != 0) {
    return wrong({"train.micro_batch_tokens", "train.batch_tokens", "train.context", "model.context"},
                 "got {}, expected a multiple of the context {} that divides batch_tokens {}", t.micro_batch_tokens, t.context,
                 t.batch_tokens);
  }
  if (t.min_lr < 0) t.min_lr = t.lr / 10;
  if (t.min_lr > t.lr) return wrong({"train.min_lr", "train.lr"}, "got {}, expected at most train.lr {}", t.min_lr, t.lr);
  if (t.warmup >= 1 && t.warmup != std::floor(t.warmup)) {
    return wrong({"train.warmup"}, "got {}, expected whole steps, or below 1 a share of all", t.warmup);
  }
  return {};
}

// What the model's own checks find, where a key is to blame: all but the vocabulary is known by now.
Status CheckShape(const Recipe& recipe, const RecipeKeys& keys) {
  const auto config = MakeModelConfig(recipe, /*vocab_size=*/1, -1, -1, "");
  if (config) return {};
  const std::string& place = config.error().where;  // ": layer 0: top_k"
  std::string field = place.substr(std::min(place.rfind(' ') + 1, place.size()));
  std::string what = config.error().what;
  const ModelRecipe& m = recipe.model;
  if (!m.layer_experts.empty() || !m.layer_top_k.empty()) {  // then layers differ
    const size_t begin = std::min<size_t>(2, place.size()), end = place.rfind(':');
    if (end != std::string::npos && end > begin) what = place.substr(begin, end - begin) + ": " + what;
  }
  if ((field == "top_k" && !m.layer_top_k.empty()) || (field == "experts" && !m.layer_experts.empty()))
    field = "layer_" + field;
  std::string blamed;
  VisitRecipe(recipe, [&](std::string_view key, const auto&, const auto&) {
    if (key == "model." + field || key == "router." + field) blamed = key;
  });
  if (blamed.empty()) return {};  // then MakeModelConfig says it
  const bool usage = std::ranges::any_of(
      keys.flagged, [](const std::string& key) { return key.starts_with("model.") || key.starts_with("router."); });
  return tl::make_unexpected(Error{PlaceOf(keys, blamed), what, usage ? 2 : 1});
}

}  // namespace

std::string_view IdleBecause(const Recipe& recipe, std::string_view key) {
  if (recipe.model.ffn == RecipeFfn::kDense) {
    if (key.starts_with("router.")) return "model.ffn is \"dense\", which has no router";
    if (IsMoeKey(key)) return "model.ffn is \"dense\", which has no experts";
  } else if (key == "model.ffn_width" && recipe.model.dense_layers.empty()) {
    return "no layer is dense; set model.ffn = \"dense\" or model.dense_layers";
  }
  if (key == "model.expert_width" && !recipe.model.expert_groups.empty()) return "model.expert_groups gives widths";
  if (key == "model.experts" && !recipe.model.layer_experts.empty()) return "model.layer_experts says it layer by layer";
  if (key == "model.top_k" && !recipe.model.layer_top_k.empty()) return "model.layer_top_k says it layer by layer";
  const auto is_zero = [](const ExpertGroup& group) { return group.spec.kind == ExpertKind::kZero; };
  if (key == "router.normalize_after_drop" && std::ranges::any_of(recipe.model.expert_groups, is_zero)) return "";
  if (key == "tokenizer.vocab_size" && recipe.tokenizer.kind != TokenizerKind::kBpe) {
    return "only tokenizer.kind \"bpe\" has a size to choose";
  }
  if (key == "tokenizer.file" && recipe.tokenizer.kind != TokenizerKind::kFile) return "tokenizer.kind is not \"file\"";
  return key.starts_with("router.") ? IdleBecause(recipe.router.config, key.substr(7)) : "";
}

Status CheckRecipe(const RecipeKeys& keys, Recipe& recipe) {
  const KeyErrors wrong{keys};
  MOE_TRY(RefuseIdleKeys(recipe, keys));
  MOE_TRY(Resolve(recipe, wrong));
  return CheckShape(recipe, keys);
}

}  // namespace moe
