#pragma once
// Which keys of a recipe go together.

#include <map>
#include <set>
#include <string>
#include <string_view>

#include "moe/train/recipe.h"

namespace moe {

struct WrittenKey {
  std::string where;  // "demo.toml:12 model.layers", "--set model.layers"
  std::string shown;  // its value, for errors
};
struct RecipeKeys {
  std::map<std::string, WrittenKey> written;
  std::set<std::string> flagged;  // keys that flags gave or took away
  std::set<std::string> changed;  // the same, and those of a [[variant]]
  std::string where;              // the recipe
  bool no_experts = false;        // model.experts was given as 0
};

// Refuses keys without a meaning beside the others, fills in defaults that depend on other keys, then checks what ranges alone
// cannot.
Status CheckRecipe(const RecipeKeys& keys, Recipe& recipe);

// Why a key has no meaning beside the others; empty: it has one.
std::string_view IdleBecause(const Recipe& recipe, std::string_view key);

}  // namespace moe
