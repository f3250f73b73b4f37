// moe compare through the front door.

#include <signal.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/cli/run_moe.h"
#include "tests/train/tiny_run.h"

namespace moe::test {
namespace {

using nlohmann::json;

constexpr const char* kVariants = R"(
[[variant]]
name = "wide"
axis = "experts"
set = ["model.experts=6"]

[[variant]]
name = "as-is"
axis = "experts"
set = []
)";

class CompareCommand : public testing::Test {
 protected:
  CompareCommand() {
    WriteTinyRun(dir_);
    WriteFile(dir_ / "bake.toml", std::string(kTinyRecipe) + kVariants);
  }
  std::vector<std::string> Arguments(std::vector<std::string> more = {}) const {
    std::vector<std::string> all = {"compare", dir_ / "bake.toml", "--out", dir_ / "c", "--threads", "1"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  RunResult Compare(std::vector<std::string> more = {}) { return RunMoe(Arguments(std::move(more))); }

  TempDir dir_;
};

TEST_F(CompareCommand, PrintsATableAndWritesAPage) {
  const RunResult result = Compare({"--markdown", dir_ / "t.md", "--json", dir_ / "t.json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  for (const char* part : {"4 runs of 12 steps of 64 tokens", "[2/4] experts: wide, seed 1:", "bits/byte", "against base",
                           "\nexperts\n", "model.experts=6", "(the runs of base)", "seeds 1, 2", "report.html"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << " in\n" << result.out;
  }
  EXPECT_EQ(result.out.find('\r'), std::string::npos);
  const std::string page = ReadFile(dir_ / "c/report.html"), markdown = ReadFile(dir_ / "t.md");
  EXPECT_TRUE(page.starts_with("<!DOCTYPE html>"));
  EXPECT_NE(markdown.find("| wide | "), std::string::npos);
  const json report = json::parse(ReadFile(dir_ / "t.json"));
  EXPECT_EQ(report["steps"], 12);
  EXPECT_EQ(report["seeds"], (json{1, 2}));
  EXPECT_EQ(report["variants"].size(), 3u);
  EXPECT_EQ(report["variants"][1]["set"], (json{"model.experts=6"}));
  EXPECT_GT(report["variants"][1]["step_ratio"], 0);

  // --show trains nothing, and says the same
  const RunResult shown = Compare({"--show", "--json", "-"});
  ASSERT_EQ(shown.exit_code, 0) << shown.err;
  EXPECT_EQ(json::parse(shown.out), report);
  const RunResult more = Compare({"--show", "--seeds", "3", "--against", "wide", "--json", "-"});
  ASSERT_EQ(more.exit_code, 0) << more.err;
  EXPECT_EQ(json::parse(more.out)["complete"], false);
  EXPECT_EQ(json::parse(more.out)["against"], "wide");
}

TEST_F(CompareCommand, InterruptLosesNothing) {
  const std::vector<std::string> more = {"--set", "train.steps=300", "train.eval_every=100", "--seeds",
                                         "1",     "--json",          dir_ / "t.json"};
  std::vector<std::string> command = Arguments(more);
  command.insert(command.begin(), MOE_BINARY);
  Subprocess process(command);
  ASSERT_TRUE(process.WaitForOutput("step "));
  process.Signal(SIGINT);
  const RunResult stopped = process.Wait();
  EXPECT_EQ(stopped.exit_code, 130) << stopped.out << stopped.err;
  EXPECT_EQ(stopped.err, "");
  EXPECT_NE(stopped.out.find("the same command goes on"), std::string::npos) << stopped.out;
  EXPECT_EQ(json::parse(ReadFile(dir_ / "t.json"))["complete"], false);
  const RunResult resumed = Compare(more);
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_NE(resumed.out.find("goes on"), std::string::npos) << resumed.out;
  const json report = json::parse(ReadFile(dir_ / "t.json"));
  EXPECT_EQ(report["complete"], true);
  EXPECT_EQ(report["variants"][1]["runs"][0]["curve"][2]["step"], 300);
}

TEST_F(CompareCommand, FlagsReachTheRuns) {
  WriteFile(dir_ / "other.toml", std::string(kTinyRecipe) + "z_loss = 0\n");
  const RunResult result = RunMoe({"compare", "--variant", "fast: train.lr=0.02 train.warmup=0", "--set", "train.steps=2",
                                   dir_ / "r.toml", dir_ / "other.toml", "--dtype", "bf16", "--seeds", "1", "--keep-models",
                                   "--out", dir_ / "c", "--threads", "1", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  ASSERT_EQ(report["variants"].size(), 3u);
  EXPECT_EQ(report["variants"][0]["name"], "r");
  EXPECT_EQ(report["variants"][1]["name"], "other");
  EXPECT_EQ(report["variants"][2]["name"], "fast");
  EXPECT_EQ(report["dtype"], "bf16");
  EXPECT_EQ(report["steps"], 2);
  EXPECT_TRUE(std::filesystem::exists(dir_ / "c/fast/seed-1/model.safetensors"));
  const auto recipe = LoadRecipe(dir_ / "c/fast/seed-1/recipe.toml");
  ASSERT_TRUE(recipe) << recipe.error().Message();
  EXPECT_DOUBLE_EQ(recipe->train.lr, 0.02);
  EXPECT_EQ(recipe->train.dtype, DType::kBf16);
}

TEST_F(CompareCommand, WrongUseIsOneLine) {
  ExpectFails(RunMoe({"compare"}), 2, "RECIPE", "got nothing, expected a recipe");
  ExpectFails(RunMoe({"compare", dir_ / "r.toml"}), 2, "RECIPE", "got a single recipe without [[variant]]");
  ExpectFails(Compare({"--variant", "wide: model.experts=5"}), 2, "--variant wide", "got the name twice");
  ExpectFails(Compare({"--variant", "x"}), 2, "--variant", "expected 'NAME: key=value ...'");
  ExpectFails(Compare({"--minutes", "0"}), 2, "--minutes", "expected a number above 0");
  ExpectFails(Compare({"--seeds", "two"}), 2, "--seeds", "got 'two', expected an integer");
  ExpectFails(Compare({"--variants", "x"}), 2, "flags", "expected '--variant'?");
  ExpectFails(Compare({"--set", "train.stps=3"}), 2, "--set", "the nearest is train.steps");
  ExpectFails(Compare({"--json", dir_ / "no/t.json"}), 1, dir_ / "no/t.json", "No such file");
  ExpectFails(Compare({"--markdown", dir_ / "no/t.md"}), 1, dir_ / "no/t.md", "No such file");
  WriteFile(dir_ / "bad.toml", std::string(kTinyRecipe) + "[[variant]]\nname = \"a\"\nset = [\"train.steps=3\"]\n");
  ExpectFails(RunMoe({"compare", dir_ / "bad.toml"}), 1, dir_ / "bad.toml" + ":29 variant a train.steps",
              "got 3, expected 12 as of base");
  EXPECT_FALSE(std::filesystem::exists(dir_ / "c"));
}

}  // namespace
}  // namespace moe::test
