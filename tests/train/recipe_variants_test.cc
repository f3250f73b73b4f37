// [[variant]] tables of a recipe.

#include <gtest/gtest.h>

#include <filesystem>

#include "moe/train/recipe.h"
#include "testing/temp_dir.h"

namespace moe {
namespace {

constexpr const char* kRecipe = R"([model]
layers = 1
hidden = 16
heads = 2
context = 16
experts = 4
expert_width = 16
[tokenizer]
kind = "bytes"
[data]
files = ["a.txt"]
[train]
steps = 2
batch_tokens = 16
)";

Result<Recipe> Parse(const std::string& more, const RecipeOverrides& overrides = {}) {
  return ParseRecipe(kRecipe + more, "r.toml", "/recipes", overrides);
}

TEST(RecipeVariants, AreReadAndAreNoPartOfTheRun) {
  const auto recipe = Parse(R"([[variant]]
name = "one"
axis = "top k"
set = ["model.top_k=1", "router.normalize=false"]
[[variant]]
name = "same"
set = []
)");
  ASSERT_TRUE(recipe) << recipe.error().Message();
  ASSERT_EQ(recipe->variants.size(), 2u);
  EXPECT_EQ(recipe->variants[0].name, "one");
  EXPECT_EQ(recipe->variants[0].axis, "top k");
  EXPECT_EQ(recipe->variants[0].sets, (std::vector<std::string>{"model.top_k=1", "router.normalize=false"}));
  EXPECT_EQ(recipe->variants[0].where, "r.toml:15 variant one");
  EXPECT_FALSE(recipe->variants[0].from_flag);
  EXPECT_EQ(recipe->variants[1].axis, "");
  const auto plain = Parse("");
  ASSERT_TRUE(plain);
  EXPECT_TRUE(plain->variants.empty());
  EXPECT_EQ(ToToml(*recipe), ToToml(*plain));
  EXPECT_EQ(FirstDifference(*recipe, *plain), "");
}

TEST(RecipeVariants, SetsComeAfterThoseOfFlags) {
  const RecipeVariant variant{
      .name = "v", .axis = {}, .sets = {"model.experts=6", "model.top_k="}, .where = "r.toml:15 variant v"};
  const auto recipe = Parse("", {.sets = {"model.experts=5", "model.top_k=1", "train.lr=1e-4"}, .variant = &variant});
  ASSERT_TRUE(recipe) << recipe.error().Message();
  EXPECT_EQ(recipe->model.experts, 6);
  EXPECT_EQ(recipe->model.top_k, 2);  // the default again
  EXPECT_DOUBLE_EQ(recipe->train.lr, 1e-4);
}

TEST(RecipeVariants, TheirErrorsNameThem) {
  const auto message = [](std::vector<std::string> sets, bool from_flag) {
    const RecipeVariant variant{
        .name = "v", .axis = {}, .sets = std::move(sets), .where = "r.toml:15 variant v", .from_flag = from_flag};
    const auto recipe = Parse("", {.variant = &variant});
    return recipe ? "no error" : fmt::format("{} {}", recipe.error().Message(), recipe.error().exit_code);
  };
  EXPECT_EQ(message({"model.expert=6"}, false),
            "[r.toml:15 variant v] got the unknown key model.expert, expected a recipe's, the nearest is model.experts 1");
  EXPECT_EQ(message({"model.experts=x"}, false),
            "[r.toml:15 variant v model.experts] got 'x', expected a whole number in 1..65536 1");
  EXPECT_EQ(message({"model.experts=x"}, true),
            "[r.toml:15 variant v model.experts] got 'x', expected a whole number in 1..65536 2");
  EXPECT_EQ(message({"model.top_k=9"}, false), "[r.toml:15 variant v model.top_k] got 9, expected at most model.experts 4 1");
  EXPECT_EQ(message({"model.experts"}, false), "[r.toml:15 variant v] got model.experts, expected key=value 1");
}

TEST(RecipeVariants, TablesAreReadStrictly) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"[variant]\nname = \"a\"\nset = []", "[r.toml:15 variant] got one value, expected tables [[variant]]"},
      {"[[variant]]\nname = \"a\"\nsets = []",
       "[r.toml:17 variant.sets] got an unknown key, expected name, axis or set, the nearest is set"},
      {"[[variant]]\nset = []",
       "[r.toml:15 variant] got the name '', expected at most 60 letters, digits and . _ + -, as of a folder"},
      {"[[variant]]\nname = \"a/b\"\nset = []",
       "[r.toml:15 variant] got the name 'a/b', expected at most 60 letters, digits and . _ + -, as of a folder"},
      {"[[variant]]\nname = \"..\"\nset = []",
       "[r.toml:15 variant] got the name '..', expected at most 60 letters, digits and . _ + -, as of a folder"},
      {"[[variant]]\nname = 3\nset = []", "[r.toml:16 variant.name] got something else, expected a text in quotes"},
      {"[[variant]]\nname = \"a\"", "[r.toml:15 variant a] got no set, expected set = [\"key=value\", ...]"},
      {"[[variant]]\nname = \"a\"\nset = \"x=1\"",
       "[r.toml:15 variant a] got another set, expected set = [\"key=value\", ...]"},
      {"[[variant]]\nname = \"a\"\nset = [1]", "[r.toml:15 variant a] got a set that is no text, expected \"key=value\""},
      {"[[variant]]\nname = \"a\"\nset = []\n[[variant]]\nname = \"a\"\nset = []",
       "[r.toml:18 variant a] got the name twice, expected another"},
  };
  for (const auto& [text, message] : cases) {
    const auto recipe = Parse(text + "\n");
    ASSERT_FALSE(recipe) << text;
    EXPECT_EQ(recipe.error().Message(), message);
    EXPECT_EQ(recipe.error().exit_code, 1);
  }
  const auto value = ParseRecipe(std::string("variant = [1]\n") + kRecipe, "r.toml", "/recipes");
  ASSERT_FALSE(value);
  EXPECT_EQ(value.error().Message(), "[r.toml:1 variant] got a value, expected a table [[variant]]");
}

TEST(RecipeVariants, ShippedOnesMakeModels) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(MOE_SOURCE_DIR) + "/recipes")) {
    if (entry.path().extension() != ".toml") continue;
    const std::string path = entry.path().string();
    const auto recipe = LoadRecipe(path);
    ASSERT_TRUE(recipe) << recipe.error().Message();
    for (const RecipeVariant& variant : recipe->variants) {
      ++count;
      const auto changed = LoadRecipe(path, {.variant = &variant});
      ASSERT_TRUE(changed) << changed.error().Message();
      const auto config = MakeModelConfig(*changed, changed->tokenizer.vocab_size, 1, 2, path);
      EXPECT_TRUE(config) << config.error().Message();
      // one that changes nothing says so, and no other does
      EXPECT_EQ(FirstDifference(*changed, *recipe).empty(), variant.sets.empty()) << variant.where;
    }
  }
  EXPECT_GE(count, 17);
}

}  // namespace
}  // namespace moe
