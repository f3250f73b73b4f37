#include <signal.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "testing/temp_dir.h"
#include "tests/cli/model_folder.h"

namespace moe::test {
namespace {

using nlohmann::json;

// 8 experts, top-2, small enough for a sweep in a blink.
std::string TinyConfig(TempDir& folder) {
  const json config = {{"model_type", "mixtral"},        {"hidden_size", 32},          {"num_hidden_layers", 3},
                       {"num_attention_heads", 2},       {"num_key_value_heads", 1},   {"intermediate_size", 16},
                       {"num_local_experts", 8},         {"num_experts_per_tok", 2},   {"vocab_size", 64},
                       {"max_position_embeddings", 128}, {"tie_word_embeddings", true}};
  WriteFile(folder.path() / "config.json", config.dump());
  return folder / "config.json";
}

RunResult RunSweep(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "sweep");
  return RunMoe(std::move(arguments), {.environment = {{"TERM", "dumb"}}});
}

TEST(Sweep, WritesTheStableJson) {
  TempDir folder;
  const RunResult result =
      RunSweep({"--config", TinyConfig(folder), "--batches", "1,2,16", "--seconds", "0", "--threads", "2", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);  // nothing else on stdout
  EXPECT_EQ(report["phase"], "decode");
  EXPECT_EQ(report["dtype"], "bf16");
  EXPECT_EQ(report["context"], 64);
  EXPECT_EQ(report["machine"]["threads"], 2);
  EXPECT_FALSE(report["machine"]["isa"].get<std::string>().empty());
  EXPECT_NEAR(report["b_sat"].get<double>(), 4 * std::log(20.0), 0.01);
  EXPECT_TRUE(report["crossover_total"].is_array());
  EXPECT_TRUE(report["crossover_active"].is_array());
  ASSERT_EQ(report["rows"].size(), 3);
  for (size_t r = 0; r < 3; ++r) {
    const json& row = report["rows"][r];
    const double batch = std::vector{1, 2, 16}[r];
    EXPECT_EQ(row["batch"], batch);
    for (const char* model : {"moe", "dense_active", "dense_total"}) {
      const json& cell = row[model];
      const double s = cell["s_per_step"].get<double>();
      EXPECT_GT(s, 0);
      EXPECT_GT(cell["bytes"].get<double>(), 0);
      EXPECT_GT(cell["flop"].get<double>(), 0);
      EXPECT_NEAR(cell["tokens_per_s"].get<double>() * s, batch, 1e-9 * batch);
      EXPECT_NEAR(cell["bytes_per_s"].get<double>() * s, cell["bytes"].get<double>(), 1e-6 * cell["bytes"].get<double>());
    }
    const double distinct = row["moe"]["distinct_experts"].get<double>();
    EXPECT_GE(distinct, 2);
    EXPECT_LE(distinct, std::min(8.0, 2 * batch));
    EXPECT_NEAR(row["speedup_total"].get<double>(),
                row["dense_total"]["s_per_step"].get<double>() / row["moe"]["s_per_step"].get<double>(), 1e-9);
    EXPECT_NEAR(row["speedup_active"].get<double>(),
                row["dense_active"]["s_per_step"].get<double>() / row["moe"]["s_per_step"].get<double>(), 1e-9);
    EXPECT_LT(row["moe"]["bytes"].get<double>(), row["dense_total"]["bytes"].get<double>() + 3 * 4 * 8 * 32 * 4);
    EXPECT_LT(row["dense_active"]["flop"].get<double>(), row["dense_total"]["flop"].get<double>());
  }
}

TEST(Sweep, PrintsATable) {
  TempDir folder;
  const std::string file = folder / "sweep.json";
  const RunResult result = RunSweep({"--config", TinyConfig(folder), "--batches", "4, 1,4", "--seconds", "0", "--dtype", "f32",
                                     "--layers", "2", "--against", "dense-total", "--json", file});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* part : {"machine ", "2 layers, 8 experts of", "equal total", "speed-up of the MoE over", "GFLOP/s", "2.0/8",
                           "of f32 weights"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << "\n" << result.out;
  }
  EXPECT_EQ(result.out.find("equal active"), std::string::npos);
  const json report = json::parse(ReadFile(file));
  ASSERT_EQ(report["rows"].size(), 2);  // sorted, each once
  EXPECT_EQ(report["rows"][0]["batch"], 1);
  EXPECT_EQ(report["dtype"], "f32");
  EXPECT_EQ(report["models"]["moe"]["layers"], 2);
  EXPECT_FALSE(report["rows"][0].contains("dense_active"));
  EXPECT_FALSE(report.contains("crossover_active"));
}

TEST(Sweep, MeasuresATrainedModelWithItsOwnRouting) {
  TempDir folder;
  MakeModelFolder(folder.path().string());
  const RunResult result = RunSweep({"--model", folder.path().string(), "--batches", "1,4", "--seconds", "0", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_EQ(report["model"], folder.path().string());
  EXPECT_EQ(report["models"]["moe"]["random_weights"], false);
  EXPECT_EQ(report["models"]["dense_total"]["random_weights"], true);
  EXPECT_GT(report["rows"][1]["moe"]["distinct_experts"].get<double>(), 0);
}

TEST(Sweep, RefusesWhatDoesNotFitBeforeItStarts) {
  TempDir folder;
  const RunResult result = RunSweep({"--config", TinyConfig(folder), "--memory", "1MB"});
  ExpectFails(result, 1, "memory", "expected at most the 1.00 MB allowed");
  for (const char* part : {"weights", "KV cache", "activations", "bandwidth probe"}) {
    EXPECT_NE(result.err.find(part), std::string::npos) << part;
  }
  // A shape that fits few machines, refused without trying.
  ExpectFails(RunSweep({"--config", "qwen3-235b-a22b", "--memory", "24GiB"}), 1, "memory",
              "expected at most the 25.8 GB allowed");
}

TEST(Sweep, BadInputIsOneLine) {
  TempDir folder;
  const std::string config = TinyConfig(folder);
  const auto fails = [&](std::vector<std::string> arguments, const std::string& where, const std::string& part) {
    arguments.insert(arguments.begin(), {"--config", config});
    ExpectFails(RunSweep(std::move(arguments)), 2, where, part);
  };
  fails({"--batches", "0"}, "--batches", "got '0', expected numbers from 1 to 65536");
  fails({"--batches", "1,two"}, "--batches", "got 'two'");
  fails({"--batches", "1,,2"}, "--batches", "got ''");
  fails({"--batches", "1 2"}, "--batches", "got '1 2'");
  fails({"--batches", "70000"}, "--batches", "got '70000'");
  fails({"--context", "128"}, "--context", "got 128, expected 0 to 127");
  fails({"--context=-1"}, "--context", "got -1, expected 0 to 127");
  fails({"--dtype", "int3"}, "--dtype", "got 'int3', expected f32 or bf16");
  fails({"--against", "dense-active,mixtral"}, "--against", "got 'mixtral', expected dense-active, dense-total");
  fails({"--phase", "chat"}, "--phase", "got 'chat', expected decode");
  fails({"--layers", "0"}, "--layers", "got 0, expected 1 to 3");
  fails({"--layers", "4"}, "--layers", "got 4, expected 1 to 3");
  fails({"--memory", "0.5"}, "--memory", "got '0.5', expected 1 byte or more and less than 9e18");
  fails({"--memory", "9e18"}, "--memory", "got '9e18', expected 1 byte or more and less than 9e18");
  fails({"--memory", ""}, "--memory", "got '', expected a value");
  fails({"--out", ""}, "--out", "got '', expected a value");
  fails({"--memory", "lots"}, "--memory", "got 'lots', expected a number above 0, as in 24e9");
  fails({"--memory", "3XB"}, "--memory", "got '3XB', expected a number above 0");
  fails({"--seconds=-1"}, "--seconds", "got -1, expected a number");
  fails({"--seconds", "nan"}, "--seconds", "expected a number");
  fails({"--threads", "0.5"}, "--threads", "got '0.5', expected an integer");
  fails({"--batch", "1"}, "flags", "got '--batch', expected '--batches'?");
  fails({"--model", folder.path().string()}, "--model", "got both this and --config, expected one of the two");
  ExpectFails(RunSweep({}), 2, "--model", "got neither this nor --config");
  ExpectFails(RunSweep({"--model", folder.path().string(), "--layers", "1"}), 2, "--layers", "expected --config");
}

TEST(Sweep, FilesThatAreNotThere) {
  TempDir folder;
  const RunResult config = RunSweep({"--config", folder / "none.json"});
  EXPECT_NE(config.exit_code, 0);
  EXPECT_EQ(std::count(config.err.begin(), config.err.end(), '\n'), 1) << config.err;
  TinyConfig(folder);  // a config without weights
  const RunResult model = RunSweep({"--model", folder.path().string()});
  EXPECT_EQ(model.exit_code, 1);
  EXPECT_EQ(std::count(model.err.begin(), model.err.end(), '\n'), 1) << model.err;
}

TEST(Sweep, StopsOnCtrlCAndKeepsWhatItHas) {
  TempDir folder;
  const std::string file = folder / "sweep.json";
  Subprocess sweep({MOE_BINARY, "sweep", "--config", TinyConfig(folder), "--seconds", "600", "--json", file});
  ASSERT_TRUE(sweep.WaitForOutput("sweep  batch"));
  sweep.Signal(SIGINT);
  const RunResult result = sweep.Wait();
  EXPECT_EQ(result.exit_code, 130);
  EXPECT_EQ(result.signal, 0);
  EXPECT_NE(result.out.find("Stopped before"), std::string::npos) << result.out << result.err;
  const json report = json::parse(ReadFile(file));
  EXPECT_EQ(report["interrupted"], true);
  EXPECT_LT(report["rows"].size(), 9);
}

}  // namespace
}  // namespace moe::test
