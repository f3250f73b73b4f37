#pragma once
// A recipe whose model begins with the weights of another.

#include <string>
#include <string_view>

#include "moe/train/recipe.h"

namespace moe {

// Keys that say what model.from says already: they need not be there, and may not say anything else.
inline bool IsShapeKey(std::string_view key) {
  return (key.starts_with("model.") && key != "model.from" && key != "model.executor") || key.starts_with("tokenizer.");
}

// The keys of [model] and [tokenizer], and without router.policy those of [router], from the folder recipe.model.from. An
// error, by `where`, if it is no model, or one that no recipe describes: layers that differ in more than their number of
// experts.
Status TakeShape(const std::string& where, Recipe& recipe);

}  // namespace moe
