// The bake-off's runs: their order, stopping and going on, what is refused.

#include <algorithm>
#include <fstream>

#include "moe/model/upcycle.h"
#include "tests/planner/compare_fixture.h"

namespace moe::test {
namespace {

using nlohmann::json;

bool Exists(const std::string& path) {
  return std::filesystem::exists(path);
}

TEST_F(CompareTest, SeedsAreTheOuterLoopAndEqualRecipesAreTrainedOnce) {
  CompareOptions options = Options(
      "c", {"same: model.top_k=2", "one: model.top_k=1 router.normalize=false", "again: router.normalize=false model.top_k=1"});
  std::vector<std::string> order;
  const auto report =
      Compare(options, {.on_begin = [&](const CompareRun& run) {
                order.push_back(fmt::format("{}/{} variant {} seed {}", run.index, run.count, run.variant, run.seed));
              }});
  ASSERT_TRUE(report) << report.error().Message();
  EXPECT_EQ(order, (std::vector<std::string>{"0/4 variant 0 seed 1", "1/4 variant 2 seed 1", "2/4 variant 0 seed 2",
                                             "3/4 variant 2 seed 2"}));
  const json result = CompareJson(*report);
  EXPECT_TRUE(result["complete"].get<bool>());
  EXPECT_EQ(result["tokens"], 12 * 64);
  EXPECT_EQ(result["variants"][1]["runs_of"], "base");
  EXPECT_EQ(result["variants"][1]["bits_per_byte"], result["variants"][0]["bits_per_byte"]);
  EXPECT_EQ(result["variants"][3]["runs_of"], "one");
  EXPECT_NE(result["variants"][2]["bits_per_byte"], result["variants"][0]["bits_per_byte"]);
  // what is left of a finished run
  for (const char* run : {"c/base/seed-2", "c/one/seed-1", "c/one/seed-2"}) {
    for (const char* name : {"/metrics.jsonl", "/recipe.toml", "/summary.json"})
      EXPECT_TRUE(Exists(Folder(run) + name)) << run << name;
    for (const char* name : {"/train_state", "/model.safetensors", "/best", "/tokenizer.json"})
      EXPECT_FALSE(Exists(Folder(run) + name)) << run << name;
  }
  EXPECT_TRUE(Exists(Folder("c/base/seed-1/train_state")));
  EXPECT_FALSE(Exists(Folder("c/base/seed-1/model.safetensors")));
  // the same command again trains nothing, and takes away what a kill left of a finished run
  order.clear();
  WriteFile(Folder("c/one/seed-2/model.safetensors"), "weights");
  const auto again = Compare(options, {.on_begin = [&](const CompareRun&) { order.push_back("?"); }});
  ASSERT_TRUE(again);
  EXPECT_TRUE(order.empty());
  EXPECT_EQ(CompareJson(*again), result);
  EXPECT_FALSE(Exists(Folder("c/one/seed-2/model.safetensors")));
  EXPECT_TRUE(Exists(Folder("c/base/seed-1/train_state")));
}

TEST_F(CompareTest, RunsAreOrdinaryRuns) {
  CompareOptions options = Options("c");
  options.seeds = 1, options.keep_models = true;
  const auto report = Compare(options);
  ASSERT_TRUE(report) << report.error().Message();
  ThreadPool pool(1);
  Arena arena;
  ExecContext ctx{pool, arena, *SupportedKernelTables().front()};
  ASSERT_TRUE(
      RunTraining({.recipe = dir_ / "r.toml", .overrides = {.sets = {"model.experts=6"}}, .folder = Folder("alone")}, {}, ctx));
  ExpectSameRun(Folder("c/wide/seed-1"), Folder("alone"));
  // and kept models stay when the command is given without the flag
  options.keep_models = false;
  ASSERT_TRUE(Compare(options));
  EXPECT_TRUE(Exists(Folder("c/wide/seed-1/model.safetensors")));
}

TEST_F(CompareTest, StoppedAnywhereItEndsInTheSameReport) {
  const std::vector<std::string> variants = {"wide: model.experts=6"};
  const auto whole = Compare(Options("whole", variants));
  ASSERT_TRUE(whole) << whole.error().Message();
  const json wanted = WithoutTimes(CompareJson(*whole));
  ASSERT_EQ(wanted["variants"][0]["bits_per_byte"]["values"].size(), 2u);
  // Between two stops: steps of a run, the middle of an evaluation, of the step times; long enough to be through with those.
  for (const std::vector<int>& limits : std::vector<std::vector<int>>{{2, 5, 11, 40}, {40}}) {
    SCOPED_TRACE(limits.size());
    const CompareOptions options = Options(fmt::format("stopped-{}", limits.size()), variants);
    bool done = false;
    json last;
    int64_t runs_seen = 0;
    for (int calls = 0; !done; ++calls) {
      ASSERT_LT(calls, 100);
      int asked = 0;
      const int limit = limits[static_cast<size_t>(calls) % limits.size()];
      const auto report = Compare(options, {.stop_requested = [&] { return ++asked > limit; }}, &done, calls % 4 == 1 ? 2 : 1);
      ASSERT_TRUE(report) << report.error().Message();
      last = WithoutTimes(CompareJson(*report));
      int64_t runs = 0;
      for (const auto& variant : last["variants"]) runs += std::ssize(variant["runs"]);
      EXPECT_GE(runs, runs_seen);  // what is there stays
      EXPECT_EQ(last["complete"], done);
      runs_seen = runs;
    }
    last["threads"] = wanted["threads"];
    EXPECT_EQ(last, wanted);
  }
}

TEST_F(CompareTest, SeedsAndVariantsMayBeAddedLater) {
  CompareOptions options = Options("c", {"wide: model.experts=6"});
  options.seeds = 1;
  ASSERT_TRUE(Compare(options));
  std::vector<std::pair<size_t, int64_t>> begun;
  options = Options("c");
  const auto report = Compare(options, {.on_begin = [&](const CompareRun& run) { begun.emplace_back(run.variant, run.seed); }});
  ASSERT_TRUE(report) << report.error().Message();
  EXPECT_EQ(begun, (std::vector<std::pair<size_t, int64_t>>{{1, 1}, {0, 2}, {1, 2}, {2, 2}}));
  const auto whole = Compare(Options("whole"));
  ASSERT_TRUE(whole);
  EXPECT_EQ(WithoutTimes(CompareJson(*report)), WithoutTimes(CompareJson(*whole)));
  EXPECT_FALSE(report->runs[1][0].step_ratios.empty());  // beside the base's kept checkpoint
}

TEST_F(CompareTest, MinutesBecomeTheStepsOfTheBaseForAll) {
  CompareOptions options = Options("c");
  options.overrides.sets = {"train.steps="};
  options.overrides.minutes = 0.0003;
  options.seeds = 1;
  const auto report = Compare(options);
  ASSERT_TRUE(report) << report.error().Message();
  EXPECT_GT(report->steps, 0);
  for (const auto& runs : report->runs) EXPECT_EQ(runs[0].steps, report->steps);
  // the base's number stands, whatever a clock would say now
  options.overrides.minutes = 0.001;
  options.seeds = 2;
  const auto more = Compare(options);
  ASSERT_TRUE(more) << more.error().Message();
  for (const auto& runs : more->runs) EXPECT_EQ(runs[1].steps, report->steps);
  // a run of another number is seen as soon as the base's is known
  const std::string path = Folder("c/one/seed-1/recipe.toml"), steps = fmt::format("\nsteps = {}\n", report->steps);
  std::string recipe = ReadFile(path);
  ASSERT_NE(recipe.find(steps), std::string::npos) << recipe;
  WriteFile(path, recipe.replace(recipe.find(steps), steps.size(), "\nsteps = 999999\n"));
  ExpectError(Compare(options), Folder("c/one/seed-1") + " train.steps", fmt::format("got {}, expected 999999", report->steps));
}

TEST_F(CompareTest, ARunThatGoesWrongIsAResult) {
  CompareOptions options = Options("c", {"hot: train.lr=1e30 train.clip=0", "wide: model.experts=6"});
  options.seeds = 1;
  std::string ended;
  const auto report = Compare(options, {.on_end = [&](const CompareRun& run, double, const std::string& failed) {
                                if (run.variant == 1) ended = failed;
                              }});
  ASSERT_TRUE(report) << report.error().Message();
  EXPECT_TRUE(ended.starts_with("step ")) << ended;
  const json result = CompareJson(*report);
  EXPECT_EQ(result["variants"][1]["runs"][0]["failed"], ended);
  EXPECT_TRUE(result["variants"][1]["bits_per_byte"]["mean"].is_null());
  EXPECT_TRUE(result["variants"][2]["runs"][0]["failed"].is_null());
  EXPECT_NE(CompareText(*report).find("hot, seed 1, went wrong at step"), std::string::npos);
}

// A base that goes wrong has no step to time others by.
TEST_F(CompareTest, ABaseThatGoesWrongIsAResultToo) {
  CompareOptions options =
      Options("c", {"calm: train.lr=0.01", "mixed: model.expert_groups=2 silu 16, 2 zero model.expert_width="});
  options.overrides.sets.push_back("train.lr=1e30"), options.overrides.sets.push_back("train.clip=0");
  options.seeds = 1;
  for (int again = 0; again < 2; ++again) {
    const auto report = Compare(options);
    ASSERT_TRUE(report) << report.error().Message();
    const json result = CompareJson(*report);
    EXPECT_TRUE(result["variants"][0]["runs"][0]["failed"].get<std::string>().starts_with("step "));
    EXPECT_TRUE(result["variants"][1]["runs"][0]["failed"].is_null());
    EXPECT_EQ(result["variants"][2]["set"][0], "model.expert_groups=2 silu 16, 2 zero");
  }
}

// A dense model trained on, beside the mixture made of it: their tokenizers are copies.
TEST_F(CompareTest, ModelsToBeginWithMayStandInOtherFolders) {
  ThreadPool pool(1);
  Arena arena;
  ExecContext ctx{pool, arena, *SupportedKernelTables().front()};
  const RecipeOverrides dense{.sets = {"model.ffn=dense", "model.ffn_width=16", "model.experts=", "model.top_k=",
                                       "model.expert_width=", "model.executor=", "router.capacity_factor=", "train.steps=2"}};
  const auto trained = RunTraining({.recipe = dir_ / "r.toml", .overrides = dense, .folder = Folder("dense")}, {}, ctx);
  ASSERT_TRUE(trained) << trained.error().Message();
  ASSERT_TRUE(Upcycle(Folder("dense"), Folder("moe"), {.experts = 4, .top_k = 2}));
  CompareOptions options = Options("c", {"denser: model.from=" + Folder("dense") + " model.executor= router.capacity_factor="});
  options.overrides.sets = {"model.from=" + Folder("moe"), "train.steps=3"};
  options.seeds = 1;
  const auto report = Compare(options);
  ASSERT_TRUE(report) << report.error().Message();
  EXPECT_TRUE(CompareJson(*report)["variants"][1]["runs"][0]["failed"].is_null());
}

TEST_F(CompareTest, AnotherRecipeInTheFolderIsRefused) {
  CompareOptions options = Options("c", {"wide: model.experts=6"});
  options.seeds = 1;
  ASSERT_TRUE(Compare(options));
  options.overrides.sets = {"train.lr=0.02"};
  ExpectError(MakeComparePlan(options), Folder("c/base/seed-1") + " train.lr",
              "got 0.02, expected 0.01: the run there was begun with it; --out names another folder");
  options = Options("c", {"wide: model.experts=5"});
  ExpectError(MakeComparePlan(options), Folder("c/wide/seed-1") + " model.experts", "got 5, expected 6");
}

TEST_F(CompareTest, OtherTextBetweenRunsIsRefused) {
  CompareOptions options = Options("c", {"wide: model.experts=6"});
  options.seeds = 1;
  ASSERT_TRUE(Compare(options));
  WriteFile(dir_ / "train.txt", TinyText(9, 3000));
  options = Options("c", {"wide: model.experts=6", "one: model.top_k=1 router.normalize=false"});
  options.seeds = 1;
  ExpectError(Compare(options), Folder("c/one/seed-1"), "got a run with another training text");
}

TEST_F(CompareTest, OtherWeightsToBeginWithAreRefused) {
  ThreadPool pool(1);
  Arena arena;
  ExecContext ctx{pool, arena, *SupportedKernelTables().front()};
  const auto begin = [&](const char* folder, const char* seed) {
    return RunTraining({.recipe = dir_ / "r.toml", .overrides = {.sets = {"train.steps=2", seed}}, .folder = Folder(folder)},
                       {}, ctx);
  };
  ASSERT_TRUE(begin("first", "train.seed=5"));
  ASSERT_TRUE(begin("second", "train.seed=6"));
  CompareOptions options = Options("c", {"slow: train.lr=0.001"});
  options.overrides.sets = {"model.from=" + Folder("first"), "train.steps=3"};
  options.seeds = 1;
  ASSERT_TRUE(Compare(options));
  std::filesystem::copy(Folder("second/model.safetensors"), Folder("first/model.safetensors"),
                        std::filesystem::copy_options::overwrite_existing);
  options.variants.push_back(Options("c", {"slower: train.lr=0.0001"}).variants.front());
  ExpectError(Compare(options), Folder("first"),
              "for " + Folder("c/slower/seed-1") + ", expected those that " + Folder("c/base/seed-1"));
  EXPECT_FALSE(Exists(Folder("c/slower/seed-1/recipe.toml")));  // it was not trained for that
}

TEST_F(CompareTest, WhatDoesNotCompareIsRefused) {
  struct Case {
    std::vector<std::string> variants;
    std::string where, part;
    int exit_code = 1;
  };
  const std::string bakeoff = dir_ / "r.toml";
  for (const Case& c : std::vector<Case>{
           {{}, "RECIPE", "got a single recipe without [[variant]]", 2},
           {{"a: model.experts=6", "a: model.experts=7"}, "--variant a", "got the name twice", 2},
           {{"base: model.experts=6"}, "--variant base", "got the name twice", 2},
           {{"report.html: model.experts=6"}, "--variant report.html", "or that of the report", 2},
           {{"a: model.exprts=6"},
            "--variant a",
            "got the unknown key model.exprts, expected a recipe's, the nearest is model.experts",
            2},
           {{"a: model.experts"}, "--variant a", "got model.experts, expected key=value", 2},
           {{"a: model.experts=x"}, "--variant a model.experts", "expected a whole number", 2},
           {{"a: train.steps=13"}, "--variant a train.steps", "got 13, expected 12 as of base"},
           {{"a: train.seed=2"}, "--variant a train.seed", "got 2, expected 1 as of base"},
           {{"a: train.batch_tokens=32"}, "--variant a train.batch_tokens", "got 32, expected 64"},
           {{"a: model.context=32 train.context=16"}, "--variant a model.context", "got 32, expected 16"},
           {{"a: tokenizer.kind=bpe"}, "--variant a tokenizer.kind", "got \"bpe\", expected \"bytes\""},
           {{"a: model.layer_experts=[4,6]"},
            "--variant a, " + bakeoff + ":7 model.experts",
            "got 4, expected no such key: model.layer_experts says it layer by layer",
            2},
           {{"a: model.expert_width=17"}, "--variant a model.expert_width", "got 17, expected a multiple of 16", 2},
       }) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(c.variants, "; ")));
    ExpectError(MakeComparePlan(Options("c", c.variants)), c.where, c.part, c.exit_code);
  }
  CompareOptions options = Options("c");
  options.against = "won";
  ExpectError(MakeComparePlan(options), "--against", "got 'won', expected one of base, one, wide", 2);
  options = Options("c");
  options.seeds = 0;
  ExpectError(MakeComparePlan(options), "--seeds", "got 0, expected 1..1000", 2);
  options = Options("c");
  options.overrides.sets = {"data.validation="};
  ExpectError(MakeComparePlan(options), dir_ / "r.toml" + " data.validation", "got none, expected held-out text");
  for (const char* text : {"no colon", ": model.experts=6", "../up: model.experts=6", "a b: model.experts=6", ".hidden: x=1"}) {
    ExpectError(ParseVariant(text, "--variant"), "--variant", "expected 'NAME: key=value ...'", 2);
  }
  EXPECT_FALSE(Exists(Folder("c")));
}

TEST_F(CompareTest, FurtherRecipesAreVariants) {
  WriteFile(dir_ / "other.toml", std::string(kTinyRecipe) + "z_loss = 0\n");
  CompareOptions options = Options("c", {});
  options.recipes.push_back(dir_ / "other.toml");
  options.against = "other";
  const auto plan = MakeComparePlan(options);
  ASSERT_TRUE(plan) << plan.error().Message();
  ASSERT_EQ(plan->variants.size(), 2u);
  EXPECT_EQ(plan->variants[0].name, "r");
  EXPECT_EQ(plan->variants[1].name, "other");
  EXPECT_EQ(plan->against, 1u);
  EXPECT_EQ(plan->FolderOf(1, 2), Folder("c/other/seed-2"));
  WriteFile(dir_ / "other.toml", std::string(kTinyRecipe) + "[[variant]]\nname = \"x\"\nset = []\n");
  ExpectError(MakeComparePlan(options), fmt::format("{}:{} variant x", dir_ / "other.toml", 29),
              "got variants in a further recipe");
  WriteFile(dir_ / "other.toml", std::string(kTinyRecipe) + "[train]\n");
  EXPECT_FALSE(MakeComparePlan(options));
}

}  // namespace
}  // namespace moe::test
