// Runs that begin with the weights of another model.
#include <fstream>

#include "moe/model/load.h"
#include "moe/model/upcycle.h"
#include "testing/test_context.h"
#include "tests/train/run_fixture.h"

namespace moe::test {
namespace {

namespace fs = std::filesystem;

class ModelFrom : public RunTest {
 protected:
  // Of kTinyRecipe with the tokenizer, which comes with the folder, left out.
  static std::vector<std::string> From(const std::string& folder, std::vector<std::string> more = {}) {
    more.insert(more.end(), {"model.from=" + folder, "tokenizer.kind="});
    return more;
  }
  static std::vector<std::string> NoShape(std::vector<std::string> sets) {
    for (const char* key : {"layers", "hidden", "heads", "context", "experts", "top_k", "expert_width"}) {
      sets.push_back(fmt::format("model.{}=", key));
    }
    return sets;
  }
};

TEST_F(ModelFrom, ARunGoesOnFromAnothersWeights) {
  const auto first = Run("a");
  ASSERT_TRUE(first) << first.error().Message();
  // A step so small that no weight moves by more than 1e-7: what is validated is what was loaded.
  const auto second = Run("b", false, {.sets = NoShape(From(Folder("a"), {"train.lr=1e-8", "train.steps=1"}))});
  ASSERT_TRUE(second) << second.error().Message();
  EXPECT_NEAR(second->validation_loss, first->validation_loss, 1e-5);
  EXPECT_EQ(ReadFile(Folder("b") + "/tokenizer.json"), ReadFile(Folder("a") + "/tokenizer.json"));
  EXPECT_EQ(ReadFile(Folder("b") + "/config.json"), ReadFile(Folder("a") + "/config.json"));
  const std::string recipe = ReadFile(Folder("b") + "/recipe.toml");
  EXPECT_NE(recipe.find("from = \"" + Folder("a") + "\""), std::string::npos);
  EXPECT_NE(recipe.find("kind = \"file\""), std::string::npos);
  EXPECT_NE(recipe.find("hidden = 32"), std::string::npos);
}

TEST_F(ModelFrom, ResumedEqualsNeverStoppedThoughTheFolderIsGone) {
  ASSERT_TRUE(Run("a"));
  const auto sets = From(Folder("a"), {"router.balance_loss=0.02"});
  ASSERT_TRUE(Run("whole", false, {.sets = sets}));
  ASSERT_TRUE(Run("stopped", false, {.sets = sets}, StopAfter(5)));
  fs::rename(Folder("a"), Folder("elsewhere"));
  ThreadPool pool(1);
  Arena arena;
  ExecContext ctx{pool, arena, *SupportedKernelTables().front()};
  const auto resumed = RunTraining({.folder = Folder("stopped"), .resume = true}, {}, ctx);
  ASSERT_TRUE(resumed) << resumed.error().Message();
  ExpectSameRun(Folder("stopped"), Folder("whole"));
}

// Any recipe trains any model on: what it says of a model of its own gives way.
TEST_F(ModelFrom, AFlagTakesTheRecipesShapeAway) {
  ASSERT_TRUE(Run("a", false, {.sets = {"model.hidden=48", "model.heads=3", "train.steps=2"}}));
  const auto run = Run("b", false, {.sets = {"model.from=" + Folder("a"), "train.steps=2"}});
  ASSERT_TRUE(run) << run.error().Message();
  EXPECT_NE(ReadFile(Folder("b") + "/recipe.toml").find("hidden = 48"), std::string::npos);
  ExpectError(Run("c", false, {.sets = {"model.from=" + Folder("a"), "model.hidden=32"}}), "--set model.hidden",
              "got 32, expected 48");
}

// Public models pad their vocabulary: the rows stay, and no token of the text is one of them.
TEST_F(ModelFrom, APaddedVocabularyStays) {
  ASSERT_TRUE(Run("a", false, {.sets = {"model.vocab_size=320"}}));
  EXPECT_NE(ReadFile(Folder("a") + "/config.json").find("\"vocab_size\": 320"), std::string::npos);
  const auto run = Run("b", false, {.sets = {"model.from=" + Folder("a"), "train.steps=2"}});
  ASSERT_TRUE(run) << run.error().Message();
  EXPECT_EQ(ReadFile(Folder("b") + "/config.json"), ReadFile(Folder("a") + "/config.json"));
  // The tokenizer of a folder that has fewer rows is to blame, not the recipe.
  fs::copy(Folder("a"), Folder("c"), fs::copy_options::recursive);
  const auto small = Run("d", false, {.sets = {"train.steps=2"}});
  ASSERT_TRUE(small);
  std::string tokenizer = ReadFile(Folder("d") + "/tokenizer.json");
  const size_t last = tokenizer.rfind("258");
  ASSERT_NE(last, std::string::npos);
  WriteFile(Folder("d") + "/tokenizer.json", tokenizer.replace(last, 3, "300"));
  ExpectError(Run("e", false, {.sets = {"model.from=" + Folder("d"), "train.steps=2"}}), Folder("d") + "/tokenizer.json",
              "expected at most the model's 259");
}

// A matrix may have as many values and another meaning.
TEST_F(ModelFrom, AnotherGateIsRefused) {
  ASSERT_TRUE(Run("a"));
  ExpectError(Run("b", false, {.sets = {"model.from=" + Folder("a"), "router.gate=mlp", "router.gate_width=32"}}), Folder("a"),
              "layer 0: got the linear gate, expected mlp of 32, as the model to train has it");
}

TEST_F(ModelFrom, WhatContradictsTheFolderIsRefused) {
  ASSERT_TRUE(Run("a"));
  const std::string a = Folder("a");
  ExpectError(Run("b", false, {.sets = From(a, {"model.hidden=64"})}), "--set model.hidden",
              "got 64, expected 32, or no such key: " + a + " says so");
  ExpectError(Run("b", false, {.sets = From(a, {"model.experts=8"})}), "--set model.experts", "got 8, expected 4");
  ExpectError(Run("b", false, {.sets = From(a, {"model.expert_groups=4 relu2 16", "model.expert_width="})}),
              "--set model.expert_groups", "expected none, or no such key");
  std::string text = kTinyRecipe;  // that says of itself what it begins with
  text.replace(text.find("hidden = 32"), 11, "hidden = 64\nfrom = \"a\"");
  const auto both = ParseRecipe(text, "r.toml", dir_.path().string());
  ASSERT_FALSE(both);
  EXPECT_EQ(both.error().where, "r.toml:4 model.hidden");
  EXPECT_EQ(both.error().what, "got 64, expected 32, or no such key: " + a + " says so");
  ExpectError(Run("b", false, {.sets = From(dir_ / "none")}), "--set model.from",
              "got " + (dir_ / "none") + ", expected a model folder");
  fs::remove(a + "/model.safetensors");
  ExpectError(Run("b", false, {.sets = From(a)}), a, "holds no model");
  EXPECT_FALSE(fs::exists(Folder("b") + "/train_state"));
}

TEST_F(ModelFrom, ASelectionBiasThatTheFolderLacksBeginsAtZero) {
  ASSERT_TRUE(Run("a"));
  const auto run = Run("b", false, {.sets = From(Folder("a"), {"router.balance_bias=sign"})});
  ASSERT_TRUE(run) << run.error().Message();
  const auto back = Run("c", false, {.sets = From(Folder("b"), {"router.balance_bias=none"})});
  ExpectError(back, Folder("b"), "holds 'model.layers.0.mlp.gate.e_score_correction_bias', which the model to train has not");
}

// The whole way: dense, upcycled, trained on. Copies part because they get other tokens.
TEST_F(ModelFrom, CopiesOfAnUpcycledModelPart) {
  const auto dense =
      Run("dense", false,
          {.sets = {"model.ffn=dense", "model.ffn_width=32",
                    "model.experts=", "model.top_k=", "model.expert_width=", "model.executor=", "router.capacity_factor="}});
  ASSERT_TRUE(dense) << dense.error().Message();
  for (const UpcycleOptions& options : {UpcycleOptions{.experts = 4, .top_k = 2}, {.experts = 8, .top_k = 4, .split = 2}}) {
    SCOPED_TRACE(options.split);
    const std::string moe = Folder(fmt::format("moe{}", options.split)), more = fmt::format("more{}", options.split);
    ASSERT_TRUE(Upcycle(Folder("dense"), moe, options));
    const auto trained =
        Run(more, false, {.sets = NoShape(From(moe, {"train.steps=20", "train.lr=0.003", "router.capacity_factor="}))});
    ASSERT_TRUE(trained) << trained.error().Message();
    EXPECT_LT(trained->validation_loss, dense->validation_loss);
    TestContext t;
    const auto distance = [&](const std::string& folder) {  // of copies of one slice, relative to their size
      const auto model = LoadModel(folder, {.format = DType::kF32, .training = true}, t.ctx).value();
      const Tensor& down = model->parameters().Find("layers.0.moe.experts.down")->value;
      double least = INFINITY;
      for (int64_t a = 0; a < options.experts; ++a) {
        for (int64_t b = a % options.split; b < a; b += options.split) {
          double apart = 0, size = 0;
          const MatView<float> x = down.slice(a), y = down.slice(b);
          for (int64_t i = 0; i < x.size(); ++i) apart += std::pow(x.data[i] - y.data[i], 2), size += std::pow(x.data[i], 2);
          least = std::min(least, std::sqrt(apart / size));
        }
      }
      return least;
    };
    EXPECT_EQ(distance(moe), 0);
    EXPECT_GT(distance(Folder(more)), 0.01);
  }
}

TEST_F(ModelFrom, ExpertsOfEveryKindBeginFromAFolderToo) {
  const std::vector<std::string> kinds = {"model.expert_groups=1 silu 16, 1 gelu 16 plain deep, 1 zero, 1 constant",
                                          "model.expert_width=", "router.capacity_factor="};
  const auto first = Run("a", false, {.sets = kinds});
  ASSERT_TRUE(first) << first.error().Message();
  const auto second =
      Run("b", false, {.sets = NoShape(From(Folder("a"), {"train.lr=1e-8", "train.steps=1", "router.capacity_factor="}))});
  ASSERT_TRUE(second) << second.error().Message();
  EXPECT_NEAR(second->validation_loss, first->validation_loss, 1e-5);
  const auto layers =
      Run("c", false, {.sets = {"model.layer_experts=[2, 5]", "model.layer_top_k=[2, 3]", "model.experts=", "model.top_k="}});
  ASSERT_TRUE(layers) << layers.error().Message();
  const auto again = Run("d", false, {.sets = NoShape(From(Folder("c"), {"train.lr=1e-8", "train.steps=1"}))});
  ASSERT_TRUE(again) << again.error().Message();
  EXPECT_NEAR(again->validation_loss, layers->validation_loss, 1e-5);
}

}  // namespace
}  // namespace moe::test
