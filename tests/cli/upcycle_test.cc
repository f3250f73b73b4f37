// moe upcycle as a user calls it: dense, upcycled, evaluated, generated from, trained on.
#include <cmath>
#include <nlohmann/json.hpp>

#include "moe/model/load.h"
#include "tests/cli/model_folder.h"

namespace moe::test {
namespace {

using nlohmann::json;

class UpcycleCommand : public testing::Test {
 protected:
  UpcycleCommand() {
    const Tokenizer tokenizer = Tokenizer::Bytes();
    ModelConfig config = TinyDense();
    config.vocab_size = tokenizer.vocab_size(), config.bos_id = tokenizer.bos_id(), config.eos_id = tokenizer.eos_id();
    TestContext t;
    Model model(config, DType::kF32, false);
    FillParameters(model, 11, t.ctx);
    std::filesystem::create_directories(dense());
    EXPECT_TRUE(SaveModel(model, dense(), DType::kF32));
    EXPECT_TRUE(tokenizer.Save(dense()));
  }
  std::string dense() const { return dir_ / "dense"; }
  std::string moe() const { return dir_ / "moe"; }
  RunResult Run(std::vector<std::string> more) const {
    std::vector<std::string> arguments = {"upcycle", "--model", dense(), "--out", moe()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunMoe(arguments);
  }
  static json Json(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--json", "-"});
    const RunResult result = RunMoe(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json::parse(result.out, nullptr, false);
  }

  TempDir dir_;
};

TEST_F(UpcycleCommand, TheMixtureSaysWhatTheDenseModelSays) {
  WriteFile(dir_ / "text.txt", "The quick brown fox jumps over the lazy dog, and so on.\n");
  const RunResult made = Run({"--experts", "6", "--top-k", "4", "--split", "2"});
  ASSERT_EQ(made.exit_code, 0) << made.err;
  EXPECT_NE(made.out.find("6 experts of width 16 in each of 2 layers, top-4"), std::string::npos) << made.out;
  EXPECT_NE(made.out.find("model.from=" + moe()), std::string::npos) << made.out;
  const auto eval = [&](const std::string& model) { return Json({"eval", "--model", model, "--data", dir_ / "text.txt"}); };
  const double a = eval(dense())["loss"], b = eval(moe())["loss"];
  // A loss of about 6 nats out of logits that are off by some 1e-6 of theirs.
  EXPECT_NEAR(a, b, 1e-5 * a);
  const auto generate = [&](const std::string& model) {
    return Json({"generate", "--model", model, "-p", "The q", "-n", "20", "--temp", "0"})["text"];
  };
  EXPECT_EQ(generate(dense()), generate(moe()));
  const json inspected = Json({"inspect", "--model", moe()});
  EXPECT_EQ(inspected["experts"], 6);
  EXPECT_EQ(inspected["top_k"], 4);
  EXPECT_EQ(inspected["layers"][0]["expert_groups"], json({"6 silu 16"}));
}

TEST_F(UpcycleCommand, GivesTheDocumentedJson) {
  const json result = Json({"upcycle", "--model", dense(), "--out", moe(), "--experts", "4", "--top-k", "2"});
  ASSERT_TRUE(result.is_object());
  EXPECT_EQ(result["experts"], 4);
  EXPECT_EQ(result["top_k"], 2);
  EXPECT_EQ(result["split"], 1);
  EXPECT_EQ(result["noise"], 0);
  EXPECT_EQ(result["out"], moe());
  const double largest = result["largest_logit"], difference = result["largest_difference"];
  EXPECT_GT(largest, 0.1);
  EXPECT_LT(difference, 1e-4 * largest);
  EXPECT_GE(difference, 0);
  // Three copies more of two FFNs of 3 * 24 * 32, and two routers.
  EXPECT_EQ(result["parameters_total"].get<int64_t>() - result["parameters_dense"].get<int64_t>(),
            2 * (3 * 3 * 24 * 32 + 4 * 24));
  EXPECT_LT(result["parameters_active"], result["parameters_total"]);
}

TEST_F(UpcycleCommand, NoiseAndAllExpertsAreSaid) {
  const RunResult noisy = Run({"--noise", "0.1", "--no-check"});
  EXPECT_EQ(noisy.exit_code, 0) << noisy.err;
  EXPECT_NE(noisy.out.find("the output is not the dense model's"), std::string::npos);
  EXPECT_EQ(noisy.out.find("logits"), std::string::npos);
  std::filesystem::remove_all(moe());
  EXPECT_NE(Run({"--experts", "2"}).out.find("every copy gets every token"), std::string::npos);
}

TEST_F(UpcycleCommand, SaysThatATokenizerIsMissing) {
  std::filesystem::remove(dense() + "/tokenizer.json");
  const RunResult made = Run({});
  EXPECT_EQ(made.exit_code, 0) << made.err;
  EXPECT_NE(made.out.find("there was no tokenizer.json"), std::string::npos) << made.out;
  EXPECT_EQ(made.out.find("to train it on"), std::string::npos);
}

// The help's own example: any recipe trains it on.
TEST_F(UpcycleCommand, AnyRecipeTrainsItOn) {
  ASSERT_EQ(Run({}).exit_code, 0);
  WriteFile(dir_ / "text.txt", std::string(4000, 'a') + "\n");
  const RunResult more =
      RunMoe({"train", MOE_SOURCE_DIR "/recipes/demo.toml", "--data", dir_ / "text.txt", "--out", dir_ / "more", "--set",
              "model.from=" + moe(), "train.minutes=", "train.steps=2", "train.batch_tokens=128"});
  EXPECT_EQ(more.exit_code, 0) << more.err;
}

TEST_F(UpcycleCommand, WrongUseIsOneLine) {
  ExpectFails(Run({"--top-k", "1"}), 2, "--top-k", "the router never learns");
  ExpectFails(Run({"--experts", "6", "--top-k", "3", "--split", "2"}), 2, "--top-k", "a token must reach all slices");
  ExpectFails(Run({"--split", "4", "--top-k", "4"}), 2, "--split", "layer 0 has an FFN of width 32");
  ExpectFails(RunMoe({"upcycle", "--model", dir_ / "none", "--out", moe()}), 1, dir_ / "none", "no such file or folder");
  ExpectFails(RunMoe({"upcycle", "--model", dense(), "--out", dense()}), 1, dense(), "already holds something");
  EXPECT_EQ(RunMoe({"upcycle", "--model", dense()}).exit_code, 2);
  EXPECT_FALSE(std::filesystem::exists(moe()));
  ASSERT_EQ(Run({}).exit_code, 0);
  ExpectFails(RunMoe({"upcycle", "--model", moe(), "--out", dir_ / "again"}), 1, moe(), "got a model with experts");
}

}  // namespace
}  // namespace moe::test
