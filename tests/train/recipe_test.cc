#include "moe/train/recipe.h"

#include <filesystem>

#include "moe/train/recipe_fields.h"
#include "testing/temp_dir.h"
#include "tests/train/recipe_fixture.h"

namespace moe::test {
namespace {

TEST(Recipe, DefaultsAreFilledIn) {
  const auto recipe = Parse(kSmall);
  ASSERT_TRUE(recipe) << recipe.error().Message();
  EXPECT_EQ(recipe->model.kv_heads, 4);
  EXPECT_EQ(recipe->model.head_width, 16);
  EXPECT_EQ(recipe->train.context, 16);
  EXPECT_EQ(recipe->train.micro_batch_tokens, 64);
  EXPECT_DOUBLE_EQ(recipe->train.min_lr, 0.001);
  EXPECT_EQ(recipe->data.files, (std::vector<std::string>{"/recipes/a.txt", "/recipes/sub/b.txt"}));
  EXPECT_EQ(recipe->data.validation, (std::vector<std::string>{"/v.txt"}));
}

TEST(Recipe, TextComesBackAsTheSameRecipe) {
  for (const std::vector<std::string>& sets : std::vector<std::vector<std::string>>{
           {},
           {"model.shared_experts=1", "model.shared_expert_width=48", "router.capacity_factor=1.25", "model.executor=padded"},
           {"model.dense_layers=[0]", "model.ffn_width=96", "train.weight_decay=1e-7", "train.seed=9223372036854775807"},
           {"model.ffn=dense-total", "router.score=topk_softmax", "train.dtype=bf16", "data.files=[\"q\\\"\\\\\\u0001.txt\"]"},
           {"model.expert_groups=2 silu 32, 1 gelu 16 plain deep, 1 zero",
            "model.expert_width=", "router.normalize_after_drop=true"},
           {"model.expert_groups=[\"3 relu2 48\", \"2 constant\", \"1 copy\"]", "model.expert_width=", "model.experts=",
            "model.shared_experts=1", "model.shared_expert_width=16", "model.shared_expert_gate=true"},
           {"model.layer_experts=[3, 6]", "model.layer_top_k=[2, 3]", "model.experts=", "model.top_k="},
           {"model.layer_experts=[0, 6]", "model.experts=", "model.dense_layers=[0]", "model.ffn_width=96"},
           {"tokenizer.kind=bpe", "tokenizer.vocab_size=300", "train.micro_batch_tokens=16", "train.min_lr=0"}}) {
    const auto recipe = Parse(kSmall, {.sets = sets});
    ASSERT_TRUE(recipe) << recipe.error().Message();
    const std::string text = ToToml(*recipe);
    const auto again = Parse(text);
    ASSERT_TRUE(again) << again.error().Message() << "\n" << text;
    EXPECT_EQ(ToToml(*again), text);
    EXPECT_EQ(FirstDifference(*recipe, *again), "");
  }
}

TEST(Recipe, SetChangesAKeyAndTakesOneAway) {
  const auto recipe =
      Parse(kSmall, {.sets = {"model.experts=8", "train.lr=3e-4", "model.ffn=moe", "train.steps=", "train.minutes=1.5"}});
  ASSERT_TRUE(recipe) << recipe.error().Message();
  EXPECT_EQ(recipe->model.experts, 8);
  EXPECT_DOUBLE_EQ(recipe->train.lr, 3e-4);
  EXPECT_EQ(recipe->train.steps, 0);
  EXPECT_DOUBLE_EQ(recipe->train.minutes, 1.5);
}

// What the text says of another policy gives way; what flags say does not.
TEST(Recipe, APolicyGivenByAFlagIsThatPolicy) {
  const std::string text = std::string(kSmall) + "[router]\nbalance_loss = 0.5\n";
  const auto recipe =
      Parse(text + "capacity_factor = 3\nbias = true", {.sets = {"router.policy=as-switch", "router.z_loss=0.125"}});
  ASSERT_TRUE(recipe) << recipe.error().Message();
  RouterConfig wanted = PolicyNamed("as-switch").value();
  wanted.z_loss = 0.125;
  EXPECT_EQ(recipe->router.config, wanted);
  EXPECT_EQ(recipe->model.top_k, 1);
  EXPECT_EQ(Parse(text, {.sets = {"router.policy=as-switch", "model.top_k=2"}})->model.top_k, 2);
  EXPECT_EQ(Parse(text, {.sets = {"router.policy=\"\""}})->router.config.balance_loss, 0.5);  // none
  const auto own = Parse(text + "policy = \"as-switch\"");                                    // which the text itself changes
  ASSERT_TRUE(own) << own.error().Message();
  EXPECT_EQ(own->router.config.balance_loss, 0.5);
  EXPECT_EQ(own->router.config.z_loss, wanted.z_loss - 0.125);
  EXPECT_EQ(own->model.top_k, 2);
}

// What a policy says beside a key that makes it mean nothing is forgotten; what the recipe itself says is not.
TEST(Recipe, WhatAPolicySaysGivesWay) {
  const auto quiet = Parse(kSmall, {.sets = {"router.policy=as-switch", "router.noise=none"}});
  ASSERT_TRUE(quiet) << quiet.error().Message();
  EXPECT_EQ(quiet->router.config.noise_scale, 0);
  const auto whole = Parse(kSmall, {.sets = {"router.policy=deepseek-v3", "router.groups=1", "model.top_k=2"}});
  ASSERT_TRUE(whole) << whole.error().Message();
  EXPECT_EQ(whole->router.config.top_groups, 1);
  EXPECT_FALSE(whole->router.config.zero_other_groups);
  EXPECT_EQ(whole->router.config.scale, 2.5);
  const auto told = Parse(kSmall, {.sets = {"router.policy=deepseek-v3", "router.groups=1", "router.top_groups=2"}});
  ASSERT_FALSE(told);
  EXPECT_EQ(told.error().where, "--set router.top_groups");
}

TEST(Recipe, FlagsReplaceDataMinutesAndDtype) {
  const auto recipe = Parse(kSmall, {.data = {"/x.txt"}, .validation = {"/y.txt", "/z.txt"}, .minutes = 2, .dtype = "bf16"});
  ASSERT_TRUE(recipe) << recipe.error().Message();
  EXPECT_EQ(recipe->data.files, (std::vector<std::string>{"/x.txt"}));
  EXPECT_EQ(recipe->data.validation.size(), 2u);
  EXPECT_EQ(recipe->train.steps, 0);
  EXPECT_DOUBLE_EQ(recipe->train.minutes, 2);
  EXPECT_EQ(recipe->train.dtype, DType::kBf16);
}

TEST(Recipe, PathsThatNoRecipeCanHoldAreRefused) {
  const auto recipe = Parse(kSmall, {.data = {"/caf\xe9.txt"}});
  ASSERT_FALSE(recipe);
  EXPECT_EQ(recipe.error().Message(), "[--data] got a path that is not UTF-8, expected one a recipe can hold");
  EXPECT_EQ(recipe.error().exit_code, 2);
  const auto validation = Parse(kSmall, {.validation = {"/caf\xe9.txt"}});
  ASSERT_FALSE(validation);
  EXPECT_EQ(validation.error().where, "--validation");
  const auto folder = ParseRecipe(kSmall, "r.toml", "/caf\xe9");
  ASSERT_FALSE(folder);
  EXPECT_EQ(folder.error().where, "r.toml:15 data.files");
  EXPECT_EQ(folder.error().exit_code, 1);
}

TEST(Recipe, DataWithoutValidationIsCutUnlessToldOtherwise) {
  const auto data_of = [](RecipeOverrides overrides) {
    overrides.data = {"/x.txt"};
    return Parse(kSmall, overrides).value().data;
  };
  EXPECT_EQ(data_of({}).validation_share, kCutShare);
  EXPECT_TRUE(data_of({}).validation.empty());
  EXPECT_EQ(data_of({.validation = {"/y.txt"}}).validation_share, 0);
  for (const char* none : {"data.validation=", "data.validation=[]", "data.validation_share=0"}) {
    EXPECT_EQ(data_of({.sets = {none}}).validation_share, 0) << none;
    EXPECT_TRUE(data_of({.sets = {none}}).validation.empty()) << none;
  }
  EXPECT_EQ(data_of({.sets = {"data.validation=/y.txt"}}).validation, std::vector<std::string>{"/y.txt"});
  EXPECT_EQ(data_of({.sets = {"data.validation_share=0.1"}}).validation_share, 0.1);

  // a run that goes on: what was cut stays cut, what it validated on stays unless other text is named
  const DataRecipe begun{.files = {"/old.txt"}, .validation = {"/w.txt"}, .validation_share = 0.25};
  EXPECT_EQ(data_of({.begun = &begun}).validation, begun.validation);
  EXPECT_EQ(data_of({.begun = &begun}).validation_share, 0.25);
  EXPECT_EQ(data_of({.validation = {"/y.txt"}, .begun = &begun}).validation, std::vector<std::string>{"/y.txt"});
  EXPECT_EQ(data_of({.validation = {"/y.txt"}, .begun = &begun}).validation_share, 0.25);
  EXPECT_TRUE(data_of({.sets = {"data.validation=[]"}, .begun = &begun}).validation.empty());
  EXPECT_EQ(data_of({.sets = {"data.validation_share=0.1"}, .begun = &begun}).validation_share, 0.1);  // to be refused
}

TEST(Recipe, PathsAreRelativeToTheRecipe) {
  const TempDir dir;
  test::WriteFile(dir / "r.toml", kSmall);
  const auto recipe = LoadRecipe(dir / "r.toml");
  ASSERT_TRUE(recipe) << recipe.error().Message();
  EXPECT_EQ(recipe->data.files[1], dir / "sub/b.txt");
  EXPECT_FALSE(LoadRecipe(dir / "none.toml"));
}

TEST(Recipe, FirstDifferenceSkipsWhatNumbersDoNotDependOn) {
  const Recipe a = *Parse(kSmall);
  const auto with = [](std::vector<std::string> sets) { return *Parse(kSmall, {.sets = std::move(sets)}); };
  EXPECT_EQ(
      FirstDifference(a, with({"train.eval_every=3", "train.checkpoint_every=7", "train.eval_tokens=9", "data.files=[\"z\"]"})),
      "");
  EXPECT_EQ(FirstDifference(a, with({"train.lr=0.02"})), "train.lr");
  EXPECT_EQ(FirstDifference(a, with({"train.steps=11"})), "train.steps");
  EXPECT_EQ(FirstDifference(a, with({"train.steps=", "train.minutes=3"})), "");
  EXPECT_EQ(FirstDifference(a, with({"router.capacity_factor=2"})), "router.capacity_factor");
  EXPECT_EQ(ValueOf(a, "router.capacity_factor"), "0");
  EXPECT_EQ(FirstDifference(a, with({"router.policy=mixtral", "router.balance_loss=0.01", "router.z_loss=0.001"})), "");
}

TEST(Recipe, MakesTheModelItDescribes) {
  const auto recipe = Small("model", "dense_layers = [1]\nffn_width = 96\nshared_experts = 1\nkv_heads = 2");
  ASSERT_TRUE(recipe) << recipe.error().Message();
  const auto config = MakeModelConfig(*recipe, 259, 256, 257, "r.toml");
  ASSERT_TRUE(config) << config.error().Message();
  ASSERT_EQ(config->layers.size(), 2u);
  EXPECT_EQ(config->layers[0].ffn, FfnKind::kMoe);
  EXPECT_EQ(config->layers[0].moe.router.num_experts, 4);
  EXPECT_EQ(config->layers[0].moe.shared_width(), 32);
  EXPECT_EQ(config->layers[1].ffn, FfnKind::kDense);
  EXPECT_EQ(config->layers[1].ffn_width, 96);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->bos_id, 256);

  EXPECT_FALSE(Small("model", "", {"model.top_k=1"}));  // its gate would always be 1
}

TEST(Recipe, MakesExpertsOfEveryKindAndOtherCountsPerLayer) {
  const auto mixed =
      Small("model", "expert_groups = [\"2 silu 32\", \"1 silu 32\", \"1 relu2 64 plain\"]", {"model.expert_width="});
  ASSERT_TRUE(mixed) << mixed.error().Message();
  const auto config = MakeModelConfig(*mixed, 259, 256, 257, "r.toml");
  ASSERT_TRUE(config) << config.error().Message();
  const MoeConfig& moe = config->layers[1].moe;
  ASSERT_EQ(moe.groups.size(), 2u);
  EXPECT_EQ(ToText(moe.groups[0]), "3 silu 32");
  EXPECT_EQ(ToText(moe.groups[1]), "1 relu2 64 plain");
  // Values 3 * 3*64*32 and 2*64*64 are those of gated FFNs of width 96 and 42.67; two of four: half.
  const auto total =
      Small("model", "ffn = \"dense-total\"\nexpert_groups = [\"3 silu 32\", \"1 relu2 64 plain\"]", {"model.expert_width="});
  EXPECT_EQ(MakeModelConfig(*total, 259, 256, 257, "r.toml")->layers[0].ffn_width, 144);  // 138.67
  const auto active =
      Small("model", "ffn = \"dense-active\"\nexpert_groups = [\"3 silu 32\", \"1 relu2 64 plain\"]", {"model.expert_width="});
  EXPECT_EQ(MakeModelConfig(*active, 259, 256, 257, "r.toml")->layers[0].ffn_width, 64);  // 69.33

  const auto alike = Small("model", "expert_groups = [\"4 silu 32\"]", {"model.expert_width=", "model.executor=block-sparse"});
  ASSERT_TRUE(alike) << alike.error().Message();
  EXPECT_TRUE(MakeModelConfig(*alike, 259, 256, 257, "r.toml")->layers[0].moe.groups.empty());

  const auto counts = Small("model", "layer_experts = [3, 6]\nlayer_top_k = [2, 3]", {"model.experts=", "model.top_k="});
  ASSERT_TRUE(counts) << counts.error().Message();
  const auto layers = MakeModelConfig(*counts, 259, 256, 257, "r.toml")->layers;
  EXPECT_EQ(layers[0].moe.router.num_experts, 3);
  EXPECT_EQ(layers[1].moe.router.num_experts, 6);
  EXPECT_EQ(layers[0].moe.router.top_k, 2);
  EXPECT_EQ(layers[1].moe.router.top_k, 3);
}

TEST(Recipe, TwinsAreDense) {
  for (const auto& [ffn, width] : {std::pair{"dense-active", 64}, {"dense-total", 128}}) {
    const auto recipe = Parse(kSmall, {.sets = {std::string("model.ffn=") + ffn}});
    ASSERT_TRUE(recipe) << recipe.error().Message();
    const auto config = MakeModelConfig(*recipe, 259, 256, 257, "r.toml");
    ASSERT_TRUE(config) << config.error().Message();
    EXPECT_EQ(config->layers[0].ffn, FfnKind::kDense);
    EXPECT_EQ(config->layers[0].ffn_width, width);
  }
}

TEST(Recipe, TheOnesThatComeWithItAreGood) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(MOE_SOURCE_DIR) + "/recipes")) {
    if (entry.path().extension() != ".toml") continue;
    ++count;
    const auto recipe = LoadRecipe(entry.path().string());
    ASSERT_TRUE(recipe) << recipe.error().Message();
    const auto config = MakeModelConfig(*recipe, recipe->tokenizer.vocab_size, 1, 2, entry.path().string());
    EXPECT_TRUE(config) << config.error().Message();
  }
  EXPECT_GE(count, 2);
}

TEST(Recipe, TheReadmeListsEveryKey) {
  const std::string readme = test::ReadFile(std::string(MOE_SOURCE_DIR) + "/recipes/README.md");
  const Recipe recipe;
  VisitRecipe(recipe, [&](std::string_view key, const auto&, const auto&) {
    EXPECT_NE(readme.find(fmt::format("`{}`", key.substr(key.find('.') + 1))), std::string::npos) << key;
  });
}

}  // namespace
}  // namespace moe::test
