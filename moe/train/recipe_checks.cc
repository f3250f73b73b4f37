#include "moe/train/recipe_checks.h"

#include <algorithm>
#include <cmath>

#include "moe/train/recipe_fields.h"

namespace moe {
namespace {

struct KeyErrors {
  const RecipeKeys& keys;

  // Names the first key; wrong usage where a flag touched any of them.
  template <class... Args>
  tl::unexpected<Error> operator()(std::initializer_list<std::string_view> names, fmt::format_string<Args...> format,
                                   Args&&... args) const {
    const std::string first(*names.begin());
    const auto it = keys.written.find(first);
    const bool usage =
        std::ranges::any_of(names, [&](std::string_view key) { return keys.flagged.contains(std::string(key)); });
    return tl::make_unexpected(Error{it == keys.written.end() ? fmt::format("{} {}", keys.where, first) : it->second.where,
                                     fmt::format(format, std::forward<Args>(args)...), usage ? 2 : 1});
  }
};

// Keys that have no meaning beside the others.
Status RefuseIdleKeys(const Recipe& recipe, const KeyErrors& wrong) {
  const auto refuse = [&](std::string_view because, std::string_view key, auto... beside) -> Status {
    const auto it = wrong.keys.written.find(std::string(key));
    if (it == wrong.keys.written.end()) return {};
    return wrong({key, beside...}, "got {}, expected no such key: {}", it->second.shown, because);
  };
  if (recipe.model.ffn == RecipeFfn::kDense) {
    for (const std::string_view key : kMoeKeys) {
      MOE_TRY(refuse("model.ffn is \"dense\", which has no experts", key, "model.ffn"));
    }
    for (const auto& [key, value] : wrong.keys.written) {
      if (IsMoeKey(key)) MOE_TRY(refuse("model.ffn is \"dense\", which has no router", key, "model.ffn"));
    }
  } else if (recipe.model.dense_layers.empty()) {
    MOE_TRY(refuse("no layer is dense; set model.ffn = \"dense\" or model.dense_layers", "model.ffn_width",
                   "model.dense_layers", "model.ffn"));
  }
  if (recipe.tokenizer.kind != TokenizerKind::kBpe) {
    MOE_TRY(refuse("only tokenizer.kind \"bpe\" has a size to choose", "tokenizer.vocab_size", "tokenizer.kind"));
  }
  if (recipe.tokenizer.kind != TokenizerKind::kFile) {
    MOE_TRY(refuse("tokenizer.kind is not \"file\"", "tokenizer.file", "tokenizer.kind"));
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
  if (m.ffn != RecipeFfn::kDense && m.top_k > m.experts) {
    return wrong({"model.top_k", "model.experts"}, "got {}, expected at most model.experts {}", m.top_k, m.experts);
  }
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

}  // namespace

Status CheckRecipe(const RecipeKeys& keys, Recipe& recipe) {
  const KeyErrors wrong{keys};
  MOE_TRY(RefuseIdleKeys(recipe, wrong));
  return Resolve(recipe, wrong);
}

}  // namespace moe
