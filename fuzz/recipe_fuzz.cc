// Any bytes as a recipe: an error in one line, or a recipe whose full text gives it back.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "moe/base/check.h"
#include "moe/train/recipe.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto recipe = moe::ParseRecipe(text, "fuzz", "/");
  if (!recipe) {
    MOE_CHECK(recipe.error().Message().find('\n') == std::string::npos, "{}", recipe.error().Message());
    return 0;
  }
  const std::string whole = moe::ToToml(*recipe);
  const auto again = moe::ParseRecipe(whole, "fuzz", "/");
  MOE_CHECK(again.has_value(), "{}\n{}", again.error().Message(), whole);
  MOE_CHECK(moe::ToToml(*again) == whole, "{}", whole);
  (void)moe::MakeModelConfig(*recipe, 1024, 1021, 1022, "fuzz");
  return 0;
}
