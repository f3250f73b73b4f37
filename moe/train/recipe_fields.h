#pragma once
// Every key of a recipe, once: name, member, what is allowed. Reader, writer and comparison walk this list. Not for others.

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <string_view>

#include "moe/base/fields.h"
#include "moe/train/recipe.h"

namespace moe {

inline constexpr Choices<RecipeFfn, 4> kFfnChoices{{{{"moe", RecipeFfn::kMoe},
                                                     {"dense", RecipeFfn::kDense},
                                                     {"dense-active", RecipeFfn::kDenseActive},
                                                     {"dense-total", RecipeFfn::kDenseTotal}}}};
inline constexpr Choices<Executor, 4> kExecutorChoices{{{{"grouped", Executor::kGrouped},
                                                         {"padded", Executor::kPadded},
                                                         {"loop", Executor::kLoop},
                                                         {"block-sparse", Executor::kBlockSparse}}}};
inline constexpr Choices<QkNorm, 3> kQkNormChoices{
    {{{"none", QkNorm::kNone}, {"per_head", QkNorm::kPerHead}, {"whole", QkNorm::kWhole}}}};
inline constexpr Choices<TokenizerKind, 3> kTokenizerChoices{
    {{{"bytes", TokenizerKind::kBytes}, {"bpe", TokenizerKind::kBpe}, {"file", TokenizerKind::kFile}}}};
inline constexpr Choices<DType, 2> kDTypeChoices{{{{"f32", DType::kF32}, {"bf16", DType::kBf16}}}};

// Keys that a model of ffn = "dense" has no use for.
inline constexpr std::array<std::string_view, 11> kMoeKeys = {
    "model.experts",       "model.top_k",        "model.expert_width",      "model.expert_groups",
    "model.layer_experts", "model.layer_top_k",  "model.shared_experts",    "model.shared_expert_width",
    "model.executor",      "model.dense_layers", "model.shared_expert_gate"};
inline bool IsMoeKey(std::string_view key) {
  return key.starts_with("router.") || std::ranges::find(kMoeKeys, key) != kMoeKeys.end();
}

struct AnyPolicy {};  // a name of PolicyNames(), or none
struct AnyGroups {};  // entries of ParseExpertGroup

// visit(key, member, range or choices); lists have no range.
template <class RecipeT, class Visitor>
void VisitRecipe(RecipeT& r, Visitor&& visit) {
  constexpr NumberRange kPositive{0, kMostNumber, true}, kNotNegative{0, kMostNumber}, kShare{0, 1, false, true};
  constexpr WholeRange kCount{1, kMostWhole}, kCountOrNone{0, kMostWhole};
  visit("model.from", r.model.from, nullptr);
  visit("model.vocab_size", r.model.vocab_size, WholeRange{1, 1 << 24});
  visit("model.layers", r.model.layers, WholeRange{1, 10000});
  visit("model.hidden", r.model.hidden, WholeRange{1, 1 << 20});
  visit("model.heads", r.model.heads, WholeRange{1, 1 << 16});
  visit("model.kv_heads", r.model.kv_heads, WholeRange{1, 1 << 16});
  visit("model.head_width", r.model.head_width, WholeRange{1, 1 << 16});
  visit("model.context", r.model.context, WholeRange{1, 1 << 24});
  visit("model.ffn", r.model.ffn, kFfnChoices);
  visit("model.experts", r.model.experts, WholeRange{1, 1 << 16});
  visit("model.top_k", r.model.top_k, WholeRange{1, 1 << 16});
  visit("model.expert_width", r.model.expert_width, WholeRange{1, 1 << 20});
  visit("model.expert_groups", r.model.expert_groups, AnyGroups{});
  visit("model.layer_experts", r.model.layer_experts, WholeRange{0, 1 << 16});
  visit("model.layer_top_k", r.model.layer_top_k, WholeRange{0, 1 << 16});
  visit("model.shared_experts", r.model.shared_experts, WholeRange{0, 1 << 16});
  visit("model.shared_expert_width", r.model.shared_expert_width, WholeRange{1, 1 << 20});
  visit("model.shared_expert_gate", r.model.shared_expert_gate, nullptr);
  visit("model.executor", r.model.executor, kExecutorChoices);
  visit("model.ffn_width", r.model.ffn_width, WholeRange{1, 1 << 24});
  visit("model.dense_layers", r.model.dense_layers, WholeRange{0, 9999});
  visit("model.qk_norm", r.model.qk_norm, kQkNormChoices);
  visit("model.tie_embeddings", r.model.tie_embeddings, nullptr);
  visit("model.rope_theta", r.model.rope_theta, kPositive);
  visit("model.norm_epsilon", r.model.norm_epsilon, NumberRange{0, 1, true});
  visit("router.policy", r.router.policy, AnyPolicy{});
  VisitRouter(r.router.config, [&](std::string_view name, auto& member, const auto& range) {
    if (name != "top_k") visit("router." + std::string(name), member, range);
  });
  visit("tokenizer.kind", r.tokenizer.kind, kTokenizerChoices);
  visit("tokenizer.vocab_size", r.tokenizer.vocab_size, WholeRange{257, 1 << 20});
  visit("tokenizer.file", r.tokenizer.file, nullptr);
  visit("data.files", r.data.files, nullptr);
  visit("data.validation", r.data.validation, nullptr);
  visit("data.validation_share", r.data.validation_share, NumberRange{0, 0.5});
  visit("train.steps", r.train.steps, kCount);
  visit("train.minutes", r.train.minutes, kPositive);
  visit("train.batch_tokens", r.train.batch_tokens, WholeRange{1, 1 << 30});
  visit("train.micro_batch_tokens", r.train.micro_batch_tokens, WholeRange{1, 1 << 24});
  visit("train.context", r.train.context, WholeRange{1, 1 << 24});
  visit("train.lr", r.train.lr, kPositive);
  visit("train.min_lr", r.train.min_lr, kNotNegative);
  visit("train.warmup", r.train.warmup, kNotNegative);
  visit("train.weight_decay", r.train.weight_decay, kNotNegative);
  visit("train.beta1", r.train.beta1, kShare);
  visit("train.beta2", r.train.beta2, kShare);
  visit("train.epsilon", r.train.epsilon, kPositive);
  visit("train.clip", r.train.clip, kNotNegative);
  visit("train.skip_idle_experts", r.train.skip_idle_experts, nullptr);
  visit("train.seed", r.train.seed, WholeRange{0, std::numeric_limits<int64_t>::max()});
  visit("train.dtype", r.train.dtype, kDTypeChoices);
  visit("train.eval_every", r.train.eval_every, kCountOrNone);
  visit("train.eval_tokens", r.train.eval_tokens, kCountOrNone);
  visit("train.checkpoint_every", r.train.checkpoint_every, kCountOrNone);
}

}  // namespace moe
