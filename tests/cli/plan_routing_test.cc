#include <csignal>
#include <nlohmann/json.hpp>

#include "tests/cli/model_folder.h"

namespace moe::test {
namespace {

using nlohmann::json;

class PlanRoutingCommand : public WithModel {
 protected:
  RunResult Run(std::vector<std::string> more, const RunOptions& options = {}) const {
    std::vector<std::string> arguments = {"plan", "--machine", "a100-80g", "--batches", "1,4,16", "--context", "16"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunMoe(arguments, options);
  }
  RunResult RunModel(std::vector<std::string> more, const RunOptions& options = {}) const {
    more.insert(more.begin(), {"--model", model()});
    return Run(std::move(more), options);
  }
};

// The same routing as `moe route` counts.
TEST_F(PlanRoutingCommand, TakesTheModelsOwn) {
  const std::string data = File("a.txt", Text());
  const RunResult result = RunModel({"--data", data, "--tokens", "300", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json plan = json::parse(result.out);
  EXPECT_EQ(plan["routing"], (json{{"kind", "measured"}, {"tokens", 300}, {"files", {data}}}));
  const RunResult routed =
      RunMoe({"route", "--model", model(), "--data", data, "--tokens", "300", "--seconds", "0", "--json", "-"});
  const json route = json::parse(routed.out);
  for (const json& row : plan["rows"]) {
    double expected = 0;
    for (const json& layer : route["layers"]) {
      for (const double count : layer["tokens_per_expert"])
        expected += 1 - std::pow(1 - count / 300, row["batch"].get<double>());
    }
    EXPECT_NEAR(row["moe"]["distinct_experts"].get<double>(), expected / 2, 1e-5);
    EXPECT_NEAR(row["moe"]["distinct_experts_uniform"].get<double>(), 4 * (1 - std::pow(0.5, row["batch"].get<double>())),
                1e-9);
  }
}

TEST_F(PlanRoutingCommand, RunsOfATextChooseAlike) {
  // Each file is one letter again and again: its tokens choose alike but for their positions.
  const std::string a = File("a", std::string(96, 'a')), b = File("b", std::string(96, '~'));
  const RunResult result = RunModel({"--data", a, b, "--phase", "prefill", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json plan = json::parse(result.out);
  EXPECT_EQ(plan["routing"]["tokens"], 192);
  const json& sixteen = plan["rows"][2]["moe"];
  EXPECT_LT(sixteen["distinct_experts"].get<double>(), sixteen["distinct_experts_by_frequency"].get<double>());
}

TEST_F(PlanRoutingCommand, PrintsForPeopleAndReadsStdin) {
  const std::string page = dir_ / "plan.html";
  const RunResult result = RunModel({"--data", "-", "--out", page}, {.input = Text()});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* part :
       {"routing measured on 564 tokens of stdin", "distinct experts of a layer at", "as often as the text has them"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << "\n" << result.out;
  }
  EXPECT_NE(ReadFile(page).find("routing measured on 564 tokens of stdin"), std::string::npos);
}

TEST_F(PlanRoutingCommand, WithoutATextNoWeightsAreRead) {
  const std::string copy = CopyOfModel();
  std::filesystem::remove(copy + "/model.safetensors");
  std::filesystem::remove(copy + "/tokenizer.json");
  const RunResult result = Run({"--model", copy});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out.find("uniform routing"), std::string::npos);
}

TEST_F(PlanRoutingCommand, WrongUsage) {
  const std::string data = File("a.txt", "text");
  ExpectFails(Run({"--config", "olmoe-1b-7b", "--data", data}), 2, "--data", "got it with --config, expected --model");
  ExpectFails(Run({"--config", "olmoe-1b-7b", "--model", model(), "--data", data}), 2, "--model", "got both this and --config");
  for (const char* routing : {"uniform", "zipf:1"}) {
    ExpectFails(RunModel({"--data", data, "--routing", routing}), 2, "--routing",
                "got it with --data, expected one of the two");
  }
  ExpectFails(RunModel({"--tokens", "5"}), 2, "--tokens", "got it without --data");
  ExpectFails(RunModel({"--data", data, "--tokens", "0"}), 2, "--tokens", "got 0, expected 1..");
  ExpectFails(RunMoe({"plan", "--flops", "1e12", "--flops-per-token", "1e9", "--data", data}), 2, "--data",
              "expected one form");
}

TEST_F(PlanRoutingCommand, BadInputIsOneLine) {
  ExpectFails(RunModel({"--data", dir_ / "none"}), 1, dir_ / "none", "No such file");
  ExpectFails(RunModel({"--data", File("empty", "")}), 1, dir_ / "empty", "is empty");
  ExpectFails(RunModel({"--data", "-"}, {.input = "caf\xe9 noir"}), 1, "stdin", "UTF-8");
  const std::string data = File("a.txt", "text");
  const std::string copy = CopyOfModel();
  std::filesystem::remove(copy + "/model.safetensors");
  const RunResult weights = Run({"--model", copy, "--data", data});
  EXPECT_EQ(weights.exit_code, 1);
  EXPECT_NE(weights.err.find("model.safetensors"), std::string::npos) << weights.err;
  ModelConfig config = TinyDense();
  config.vocab_size = 259, config.bos_id = 256, config.eos_id = 257;
  TestContext t;
  Model dense(config, DType::kF32, false);
  FillParameters(dense, 1, t.ctx);
  std::filesystem::create_directories(dir_ / "dense");
  ASSERT_TRUE(SaveModel(dense, dir_ / "dense", DType::kF32));
  ASSERT_TRUE(Tokenizer::Bytes().Save(dir_ / "dense"));
  ExpectFails(Run({"--model", dir_ / "dense", "--data", data}), 1, dir_ / "dense", "is dense: it has no experts to choose");
}

TEST_F(PlanRoutingCommand, CtrlCEndsItInOneLine) {
  std::string text;
  for (int i = 0; i < 3000000; ++i) text += static_cast<char>('a' + i % 26);
  Subprocess process({MOE_BINARY, "plan", "--machine", "a100-80g", "--model", model(), "--context", "16", "--tokens", "3000000",
                      "--data", File("long.txt", text)});
  ASSERT_TRUE(process.WaitForOutput("routing "));  // progress
  process.Signal(SIGINT);
  const RunResult result = process.Wait();
  EXPECT_FALSE(result.timed_out);
  EXPECT_EQ(result.exit_code, 130);
  EXPECT_EQ(result.out, "");
  EXPECT_TRUE(result.err.ends_with("; there is no result\n")) << result.err;
}

}  // namespace
}  // namespace moe::test
