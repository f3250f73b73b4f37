#pragma once
// The [[variant]] tables of a recipe. Not for others.

#include <string>
#include <vector>

#include "moe/train/recipe.h"
#include "moe/train/toml.h"

namespace moe {

// Takes them out of the recipe's table. Strict: name and set, if wanted an axis, nothing else; every name once.
Result<std::vector<RecipeVariant>> TakeVariants(toml::table& recipe, const std::string& where);

}  // namespace moe
