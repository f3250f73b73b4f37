#include "moe/train/recipe_variants.h"

#include <algorithm>
#include <array>

#include "moe/base/edit_distance.h"

namespace moe {
namespace {

constexpr std::array<std::string_view, 3> kKeys = {"name", "axis", "set"};

std::string Nearest(std::string_view key) {
  return std::string(*std::ranges::min_element(
      kKeys, {}, [&](std::string_view known) { return EditDistance(std::string(key), std::string(known)); }));
}

std::string LineOf(const std::string& where, const toml::node& node) {
  return fmt::format("{}:{}", where, node.source().begin.line);
}

Result<std::string> TextOf(const toml::table& table, std::string_view key, const std::string& where) {
  const toml::node* node = table.get(key);
  if (node == nullptr) return std::string();
  const auto* text = node->as_string();
  if (text == nullptr || text->get().empty()) {
    return Err(fmt::format("{} variant.{}", LineOf(where, *node), key), "got something else, expected a text in quotes");
  }
  return text->get();
}

}  // namespace

bool IsVariantName(std::string_view name) {
  const auto fits = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '_' || c == '+' ||
           c == '-';
  };
  return !name.empty() && name.size() <= 60 && name[0] != '.' && name[0] != '-' && std::ranges::all_of(name, fits);
}

Result<std::vector<RecipeVariant>> TakeVariants(toml::table& recipe, const std::string& where) {
  std::vector<RecipeVariant> variants;
  const toml::node* node = recipe.get("variant");
  if (node == nullptr) return variants;
  const toml::array* tables = node->as_array();
  if (tables == nullptr) return Err(LineOf(where, *node) + " variant", "got one value, expected tables [[variant]]");
  for (const toml::node& item : *tables) {
    const toml::table* table = item.as_table();
    if (table == nullptr) return Err(LineOf(where, item) + " variant", "got a value, expected a table [[variant]]");
    for (const auto& [key, value] : *table) {
      if (std::ranges::find(kKeys, key.str()) != kKeys.end()) continue;
      return Err(fmt::format("{} variant.{}", LineOf(where, value), Printable(key.str())),
                 "got an unknown key, expected name, axis or set, the nearest is {}", Nearest(key.str()));
    }
    RecipeVariant variant;
    MOE_TRY(variant.name, TextOf(*table, "name", where));
    MOE_TRY(variant.axis, TextOf(*table, "axis", where));
    variant.where = LineOf(where, item) + " variant";
    if (!IsVariantName(variant.name)) {
      return Err(variant.where, "got the name '{}', expected at most 60 letters, digits and . _ + -, as of a folder",
                 Printable(variant.name));
    }
    variant.where += " " + variant.name;
    if (std::ranges::find(variants, variant.name, &RecipeVariant::name) != variants.end()) {
      return Err(variant.where, "got the name twice, expected another");
    }
    const toml::node* sets = table->get("set");
    const toml::array* list = sets == nullptr ? nullptr : sets->as_array();
    if (list == nullptr) {
      return Err(variant.where, "got {}, expected set = [\"key=value\", ...]", sets == nullptr ? "no set" : "another set");
    }
    for (const toml::node& set : *list) {
      if (!set.is_string()) return Err(variant.where, "got a set that is no text, expected \"key=value\"");
      variant.sets.push_back(set.as_string()->get());
    }
    variants.push_back(std::move(variant));
  }
  recipe.erase("variant");
  return variants;
}

}  // namespace moe
