// moe sweep in every phase, and beside what was predicted.

#include <nlohmann/json.hpp>

#include "testing/temp_dir.h"
#include "tests/cli/model_folder.h"

namespace moe::test {
namespace {

using nlohmann::json;

struct SweepVerify : testing::Test {
  TempDir folder;

  std::string Config() {
    const json config = {{"model_type", "mixtral"},        {"hidden_size", 32},          {"num_hidden_layers", 2},
                         {"num_attention_heads", 2},       {"num_key_value_heads", 1},   {"intermediate_size", 16},
                         {"num_local_experts", 8},         {"num_experts_per_tok", 2},   {"vocab_size", 64},
                         {"max_position_embeddings", 128}, {"tie_word_embeddings", true}};
    WriteFile(folder.path() / "config.json", config.dump());
    return folder / "config.json";
  }
  // A profile by hand: verifying must not measure the machine here.
  std::string Machine() {
    const json machine = {{"name", "mine"}, {"read_bytes_per_s", 3e10}, {"peak_flop_per_s", {{"f32", 2e11}, {"bf16", 4e11}}}};
    WriteFile(folder.path() / "machine.json", machine.dump());
    return folder / "machine.json";
  }
  static RunResult Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "sweep");
    return RunMoe(std::move(arguments), {.environment = {{"TERM", "dumb"}}});
  }
  RunResult Sweep(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"--config", Config(), "--batches", "1,8", "--seconds", "0"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Run(std::move(arguments));
  }
};

TEST_F(SweepVerify, EveryPhaseHasItsPrediction) {
  for (const std::string phase : {"decode", "prefill", "train"}) {
    SCOPED_TRACE(phase);
    const RunResult result =
        Sweep({"--phase", phase, "--verify", "--machine", Machine(), "--routing", "uniform", "--json", folder / "out.json"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("Predicted beside measured"), std::string::npos) << result.out;
    const json report = json::parse(ReadFile(folder.path() / "out.json"));
    EXPECT_EQ(report["phase"], phase);
    EXPECT_EQ(report["routing"], "uniform");
    EXPECT_EQ(report["context"], phase == "decode" ? 64 : 128);
    ASSERT_EQ(report["rows"].size(), 2);
    for (const json& row : report["rows"]) {
      EXPECT_GT(row["weights_bytes_per_s"].get<double>(), 0);
      for (const char* model : {"moe", "dense_active", "dense_total"}) {
        const json& cell = row[model];
        EXPECT_GT(cell["predicted"]["s_per_step"].get<double>(), 0);
        EXPECT_GT(cell["predicted"]["s_per_step_cached"].get<double>(), 0);
        EXPECT_EQ(cell["s_by_part"]["optimizer"].get<double>() > 0, phase == "train");
      }
    }
    for (const char* key : {"mape", "mape_cached"}) EXPECT_TRUE(report[key]["all"].is_number()) << key;
    EXPECT_GE(report["stated_error"].get<double>(), 0.1);
  }
}

TEST_F(SweepVerify, SaysWhoSendsTokensToExperts) {
  const RunResult result = Sweep({"--routing", "zipf:1.5"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out.find("tokens forced to experts, Zipf(1.5)"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("where the step's time goes"), std::string::npos);
  EXPECT_EQ(result.out.find("Predicted"), std::string::npos);
}

TEST_F(SweepVerify, RefusesWhatMakesNoSense) {
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{"--phase", "training"}, "moe: [--phase] got 'training', expected decode, prefill or train\n"},
      {{"--routing", "zipf"}, "moe: [--routing] got 'zipf', expected model, uniform, or zipf:S with S from 0 to 10\n"},
      {{"--routing", "zipf:-1"}, "moe: [--routing] got 'zipf:-1', expected model, uniform, or zipf:S with S from 0 to 10\n"},
      {{"--routing", "zipf:nan"}, "moe: [--routing] got 'zipf:nan', expected model, uniform, or zipf:S with S from 0 to 10\n"},
      {{"--machine", "a100-80g"},
       "moe: [--machine] got it without --verify, which is what compares with a machine's profile\n"},
      {{"--verify", "--machine", "a100-80g"},
       "moe: [--machine] got a100-80g, expected the profile of this machine, on which steps are measured\n"},
      {{"--phase", "train", "--context", "0"}, "moe: [--context] got 0, expected 1 to 128, the model's context\n"}};
  for (const auto& [flags, message] : cases) {
    SCOPED_TRACE(message);
    const RunResult result = Sweep(flags);
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(result.err, message);
    EXPECT_EQ(result.out, "");
  }
  WriteFile(folder.path() / "dense.json",
            R"({"model_type":"llama","hidden_size":32,"num_hidden_layers":1,"num_attention_heads":2,
    "num_key_value_heads":1,"intermediate_size":32,"vocab_size":64,"max_position_embeddings":128,"tie_word_embeddings":true})");
  const RunResult dense = Run({"--config", folder / "dense.json", "--routing", "zipf:1"});
  EXPECT_EQ(dense.err, "moe: [--routing] got zipf:1 for a dense model, expected one with experts\n");
  EXPECT_EQ(dense.exit_code, 2);
  const RunResult unknown = Sweep({"--verify", "--machine", "a100-80"});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_NE(unknown.err.find("expected a file or one of a100-80g"), std::string::npos) << unknown.err;
  EXPECT_EQ(unknown.out, "");
}

}  // namespace
}  // namespace moe::test
