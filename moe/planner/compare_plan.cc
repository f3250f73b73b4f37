#include <algorithm>
#include <array>
#include <filesystem>
#include <span>

#include "moe/base/printable.h"
#include "moe/files/atomic_file.h"
#include "moe/planner/compare.h"
#include "moe/planner/compare_summary.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

// What all variants have in common, or losses after as many tokens would not compare.
constexpr std::array<std::string_view, 14> kCommonKeys = {
    "data.files",     "data.validation",  "data.validation_share", "tokenizer.kind", "tokenizer.vocab_size",
    "tokenizer.file", "train.steps",      "train.minutes",         "train.seed",     "train.batch_tokens",
    "train.context",  "train.eval_every", "train.eval_tokens",     "model.context"};

constexpr const char* kReportName = "report.html";

Status CheckCommon(const CompareVariant& variant, const CompareVariant& base) {
  for (const std::string_view key : kCommonKeys) {
    const std::string got = ValueOf(variant.recipe, key), wanted = ValueOf(base.recipe, key);
    if (got == wanted) continue;
    if (key == "tokenizer.file") {  // a copy will do
      const auto own = ReadFile(variant.recipe.tokenizer.file), of_base = ReadFile(base.recipe.tokenizer.file);
      if (own && of_base && *own == *of_base) continue;
    }
    const std::string where = variant.given.where.empty() ? variant.path : variant.given.where;
    return Err(fmt::format("{} {}", where, key),
               "got {}, expected {} as of {}: variants share text, steps, seeds and evaluations", got, wanted, base.name);
  }
  return {};
}

// A shape that makes no model, found now and not after an hour.
Status CheckModel(const CompareVariant& variant) {
  const std::string where = variant.given.where.empty() ? variant.path : variant.given.where;
  MOE_TRY(MakeModelConfig(variant.recipe, /*vocab_size=*/1, -1, -1, where));
  return {};
}

Result<CompareVariant> LoadVariant(const CompareOptions& options, const std::string& path, const RecipeVariant& given) {
  CompareVariant variant{.name = given.name, .axis = given.axis, .sets = given.sets, .path = path, .given = given};
  RecipeOverrides overrides = options.overrides;
  overrides.variant = &given;
  auto recipe = LoadRecipe(path, overrides);
  if (!recipe) {
    Error error = recipe.error();  // of a line of the recipe, which alone would do
    if (!given.where.empty() && !error.where.starts_with(given.where)) error.where = given.where + ", " + error.where;
    return tl::make_unexpected(error);
  }
  variant.recipe = std::move(*recipe);
  return variant;
}

std::string NamesOf(const ComparePlan& plan) {
  std::string names;
  for (const CompareVariant& variant : plan.variants) names += (names.empty() ? "" : ", ") + variant.name;
  return names;
}

}  // namespace

Result<RecipeVariant> ParseVariant(const std::string& text, const std::string& where) {
  const size_t colon = text.find(':');
  RecipeVariant variant{.name = text.substr(0, colon), .where = where, .from_flag = true};
  if (colon == std::string::npos || !IsVariantName(variant.name)) {
    return UsageErr(where, "got '{}', expected 'NAME: key=value ...', the name of letters, digits and . _ + -",
                    Printable(text));
  }
  variant.where += " " + variant.name;
  for (size_t begin = text.find_first_not_of(' ', colon + 1); begin < text.size(); begin = text.find_first_not_of(' ', begin)) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (word.find('=') == std::string::npos && !variant.sets.empty()) {
      variant.sets.back() += " " + word;  // of a value with blanks
    } else {
      variant.sets.push_back(word);
    }
    begin = end;
  }
  return variant;
}

std::string ComparePlan::FolderOf(size_t variant, int64_t seed) const {
  const std::string& name = variants[variants[variant].runs_of].name;
  return (fs::path(options.folder) / name / fmt::format("seed-{}", seed)).string();
}

Result<ComparePlan> MakeComparePlan(const CompareOptions& options) {
  ComparePlan plan{.options = options};
  if (options.seeds < 1 || options.seeds > 1000) return UsageErr("--seeds", "got {}, expected 1..1000", options.seeds);
  const bool several = options.recipes.size() > 1;
  for (const std::string& path : options.recipes) {
    RecipeVariant given;
    given.name = several ? fs::path(path).stem().string() : "base";
    if (!plan.variants.empty()) given.axis = "recipes";
    MOE_TRY(plan.variants.emplace_back(), LoadVariant(options, path, given));
    if (!IsVariantName(given.name)) {
      return Err(path, "got a recipe whose name is no variant's, expected letters, digits and . _ + -");
    }
    if (plan.variants.size() > 1 && !plan.variants.back().recipe.variants.empty()) {
      return Err(plan.variants.back().recipe.variants.front().where,
                 "got variants in a further recipe, expected them in the first, {}", options.recipes.front());
    }
  }
  std::vector<RecipeVariant> given = plan.base().recipe.variants;
  given.insert(given.end(), options.variants.begin(), options.variants.end());
  for (RecipeVariant& variant : given) {
    if (variant.axis.empty()) variant.axis = "variants";
    MOE_TRY(plan.variants.emplace_back(), LoadVariant(options, options.recipes.front(), variant));
  }
  if (plan.variants.size() == 1) {
    return UsageErr(
        "RECIPE",
        "got a single recipe without [[variant]], expected something to compare it with: another recipe, or --variant");
  }
  const Recipe& base = plan.base().recipe;
  if (base.data.validation.empty() && base.data.validation_share == 0) {
    return Err(options.recipes.front() + " data.validation",
               "got none, expected held-out text to compare on (also: --validation FILE)");
  }
  for (int64_t i = 0; i < options.seeds; ++i) plan.seeds.push_back(base.train.seed + i);
  for (size_t i = 0; i < plan.variants.size(); ++i) {
    CompareVariant& variant = plan.variants[i];
    const std::string where = variant.given.where.empty() ? variant.path : variant.given.where;
    const auto earlier = std::span(plan.variants).first(i);
    if (std::ranges::find(earlier, variant.name, &CompareVariant::name) != earlier.end() || variant.name == kReportName) {
      return tl::make_unexpected(
          Error{where, "got the name twice, or that of the report, expected another", variant.given.from_flag ? 2 : 1});
    }
    MOE_TRY(CheckCommon(variant, plan.base()));
    MOE_TRY(CheckModel(variant));
    const auto same = std::ranges::find_if(
        earlier, [&](const CompareVariant& other) { return FirstDifference(other.recipe, variant.recipe).empty(); });
    variant.runs_of = same == earlier.end() ? i : same->runs_of;
    if (i > 0 && std::ranges::find(plan.axes, variant.axis) == plan.axes.end()) plan.axes.push_back(variant.axis);
    for (const int64_t seed : plan.seeds) {
      Recipe wanted = variant.recipe;
      wanted.train.seed = seed;
      MOE_TRY(CheckRunFolder(plan.FolderOf(i, seed), wanted));
    }
  }
  if (!options.against.empty()) {
    const auto it = std::ranges::find(plan.variants, options.against, &CompareVariant::name);
    if (it == plan.variants.end()) {
      return UsageErr("--against", "got '{}', expected one of {}", Printable(options.against), NamesOf(plan));
    }
    plan.against = static_cast<size_t>(it - plan.variants.begin());
  }
  return plan;
}

}  // namespace moe
