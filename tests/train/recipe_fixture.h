#pragma once
// A small recipe, and that with other lines.

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "moe/train/recipe.h"

namespace moe::test {

inline constexpr const char* kSmall = R"(
[model]
layers = 2
hidden = 64
heads = 4
experts = 4
top_k = 2
expert_width = 32
context = 16

[tokenizer]
kind = "bytes"

[data]
files = ["a.txt", "sub/b.txt"]
validation = ["/v.txt"]

[train]
steps = 10
batch_tokens = 64
lr = 0.01
)";

inline Result<Recipe> Parse(const std::string& text, const RecipeOverrides& overrides = {}) {
  return ParseRecipe(text, "r.toml", "/recipes", overrides);
}
// kSmall with lines added to a section, or taken away by "--set key=".
inline Result<Recipe> Small(const std::string& section, const std::string& lines, std::vector<std::string> sets = {}) {
  std::string text = kSmall;
  const size_t at = text.find("[" + section + "]\n") + section.size() + 3;
  return Parse(text.insert(at, lines + "\n"), {.sets = std::move(sets)});
}

}  // namespace moe::test
