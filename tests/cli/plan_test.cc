#include <nlohmann/json.hpp>

#include "moe/model/presets.h"
#include "testing/temp_dir.h"
#include "tests/cli/run_moe.h"

namespace moe::test {
namespace {

using nlohmann::json;

RunResult RunPlan(std::vector<std::string> arguments, const std::string& locale = "C") {
  arguments.insert(arguments.begin(), "plan");
  return RunMoe(std::move(arguments), {.environment = {{"TERM", "dumb"}, {"LC_ALL", locale}}});
}

RunResult PlanOlmoe(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"--config", "olmoe-1b-7b", "--machine", "a100-80g"});
  return RunPlan(std::move(arguments));
}

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(PlanCommand, PrintsAPlan) {
  const RunResult plain = PlanOlmoe({"--max-ms", "20", "--memory", "24GiB"});
  ASSERT_EQ(plain.exit_code, 0) << plain.err;
  for (const char* part : {"Plan of one decode step", "a100-80g", "B_sat", "best batch", "At batch 1 the MoE reads 8 of 64"}) {
    EXPECT_TRUE(Has(plain.out, part)) << part << plain.out;
  }
  EXPECT_FALSE(Has(plain.out, "●"));
  const RunResult rich = RunPlan({"--config", "olmoe-1b-7b", "--machine", "a100-80g"}, "C.UTF-8");
  EXPECT_TRUE(Has(rich.out, "●"));
}

TEST(PlanCommand, WritesTheStableJson) {
  const RunResult result = PlanOlmoe({"--batches", "64, 1,64", "--phase", "prefill", "--context", "128", "--dtype", "f32",
                                      "--routing", "zipf:0.5", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json plan = json::parse(result.out);
  EXPECT_EQ(plan["model"], "olmoe-1b-7b");
  EXPECT_EQ(plan["phase"], "prefill");
  EXPECT_EQ(plan["dtype"], "f32");
  EXPECT_EQ(plan["context"], 128);
  EXPECT_EQ(plan["routing"], "zipf:0.5");
  ASSERT_EQ(plan["rows"].size(), 2);  // sorted, each once
  EXPECT_EQ(plan["rows"][0]["batch"], 1);
  EXPECT_GT(plan["rows"][1]["moe"]["s_per_step"].get<double>(), 0);
  EXPECT_FALSE(plan["plateau"].get<bool>());
  EXPECT_TRUE(plan["plateau_from"].is_number()) << plan["plateau_from"];  // of the flattest octave, a plateau or not
  EXPECT_GT(plan["seconds"].get<double>(), 0);
}

TEST(PlanCommand, ExpertParallelism) {
  const RunResult result =
      PlanOlmoe({"--batches", "1,16", "--ranks", "4", "--link-bandwidth", "50GB/s", "--link-latency", "5us", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json plan = json::parse(result.out);
  EXPECT_EQ(plan["parallel"]["ranks"], 4);
  EXPECT_EQ(plan["parallel"]["experts_per_rank"], 16);
  EXPECT_EQ(plan["parallel"]["link_bytes_per_s"], 50e9);
  EXPECT_DOUBLE_EQ(plan["parallel"]["link_latency_s"], 5e-6);
  EXPECT_GT(plan["rows"][1]["moe"]["s_by_part"]["all_to_all"].get<double>(), 16 * 2 * 5e-6);
}

TEST(PlanCommand, TheTextbooksSum) {
  const RunResult sum = RunPlan({"--flops", "100e12", "--flops-per-token", "10e9,4e9"});
  ASSERT_EQ(sum.exit_code, 0) << sum.err;
  for (const char* part : {"10,000 tokens/s", "25,000 tokens/s", "2.5 times"}) EXPECT_TRUE(Has(sum.out, part)) << sum.out;
  const RunResult result =
      RunPlan({"--flops", "100T", "--bandwidth", "2TB/s", "--parameters", "70B,235e9", "--active", "70G,22B", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json toy = json::parse(result.out);
  EXPECT_EQ(toy["textbook"], true);
  EXPECT_EQ(toy["bytes_per_s"], 2e12);
  EXPECT_DOUBLE_EQ(toy["models"][0]["b_d"], 50);
  EXPECT_DOUBLE_EQ(toy["models"][1]["read_all_s"], 0.235);
  EXPECT_EQ(toy["rows"].size(), 13);
}

TEST(PlanCommand, ADenseConfigIsPlannedAsOne) {
  TempDir folder;
  const json config = {
      {"model_type", "llama"},    {"hidden_size", 64},        {"num_hidden_layers", 2}, {"num_attention_heads", 4},
      {"num_key_value_heads", 2}, {"intermediate_size", 128}, {"vocab_size", 96},       {"max_position_embeddings", 16}};
  WriteFile(folder.path() / "config.json", config.dump());
  const RunResult result = RunPlan({"--config", folder / "config.json", "--machine", "h100-sxm"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(Has(result.out, "This model is dense"));
  ExpectFails(RunPlan({"--config", folder / "config.json", "--machine", "h100-sxm", "--routing", "zipf:1"}), 2, "--routing",
              "got zipf:1 for a dense model");
}

TEST(PlanCommand, AModelThatDoesNotFitHasNoBestBatch) {
  const RunResult text = RunPlan({"--config", "qwen3-235b-a22b", "--machine", "a100-80g"});
  ASSERT_EQ(text.exit_code, 0) << text.err;
  EXPECT_TRUE(Has(text.out, "best batch  none: batch 1 takes 4")) << text.out;
  EXPECT_FALSE(Has(text.out, "4096 or more")) << text.out;
  const RunResult result =
      RunPlan({"--config", "qwen3-235b-a22b", "--machine", "a100-80g", "--kv-dtype", "f16", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json plan = json::parse(result.out);
  EXPECT_TRUE(plan["best_batch"].is_null());
  EXPECT_EQ(plan["kv_dtype"], "f16");
}

TEST(PlanCommand, TextbookSaysWhenAModelReadsMore) {
  const RunResult result = RunPlan(
      {"--flops", "100e12", "--bandwidth", "2e12", "--parameters", "7B,47B", "--active", "7B,13B", "--batches", "1,64"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(Has(result.out, "0.538 times as fast at batch 1, it reads 1.86 times as much.")) << result.out;
  EXPECT_FALSE(Has(result.out, "that much less")) << result.out;
}

TEST(PlanCommand, BadInputIsOneLine) {
  const auto fails = [](std::vector<std::string> arguments, int code, const std::string& where, const std::string& part) {
    ExpectFails(PlanOlmoe(std::move(arguments)), code, where, part);
  };
  fails({"--batches", "0"}, 2, "--batches", "got '0', expected numbers from 1");
  fails({"--batches", "1,,2"}, 2, "--batches", "got ''");
  fails({"--context", "4096"}, 2, "--context", "got 4096, expected 0 to 4095");
  fails({"--phase", "sleep"}, 2, "--phase", "expected decode, prefill or train");
  fails({"--dtype", "int3"}, 2, "--dtype", "expected one of f32, bf16, q8_0, q4_0, mxfp4");
  fails({"--dtype", "q4_0", "--phase", "train"}, 2, "--dtype", "expected f32 or bf16");
  fails({"--routing", "zipf:x"}, 2, "--routing", "got 'zipf:x'");
  fails({"--routing", "zipf:-1"}, 2, "--routing", "got 'zipf:-1'");
  fails({"--max-ms", "0"}, 2, "--max-ms", "got 0, expected a number above 0");
  fails({"--max-ms", ""}, 2, "--max-ms", "got '', expected a value");
  fails({"--out", ""}, 2, "--out", "got '', expected a value");
  fails({"--memory", ""}, 2, "--memory", "got '', expected a value");
  fails({"--memory", "1e30"}, 2, "--memory", "got '1e30', expected a number above 0 and below 1e+24");
  fails({"--memory", "1e999"}, 2, "--memory", "below 1e+24");
  fails({"--kv-dtype", "int8"}, 2, "--kv-dtype", "got 'int8', expected f32, f16 or bf16");
  fails({"--kv-dtype", "f16", "--phase", "train"}, 2, "--kv-dtype", "got f16 to train with");
  fails({"--memory", "lots"}, 2, "--memory", "got 'lots'");
  fails({"--memory", "-3GB"}, 2, "--memory", "got '-3GB'");
  fails({"--memory", "1GB"}, 1, "--memory", "mxfp4 takes");
  fails({"--memory", "140GB", "--phase", "train", "--dtype", "f32"}, 1, "--memory", "--dtype bf16 takes");
  fails({"--memory", "1GB", "--phase", "train", "--dtype", "f32"}, 1, "--memory",
        "the least of all, which does not fit either");
  fails({"--memory", "1GB", "--phase", "train"}, 1, "--memory", "to train with bf16 weights at batch 1");
  fails({"--ranks", "0"}, 2, "--ranks", "got 0");
  fails({"--ranks", "4"}, 2, "--link-bandwidth", "got none");
  fails({"--ranks", "65", "--link-bandwidth", "1e9"}, 2, "--ranks", "got 65, expected 1 to 64");
  fails({"--link-latency", "1us"}, 2, "--ranks", "got 1 and figures of a link");
  fails({"--ranks", "2", "--link-bandwidth", "1e9", "--link-latency", "5m"}, 2, "--link-latency", "got '5m'");
  fails({"--model", "x"}, 2, "--model", "got both this and --config");
  fails({"--flops", "1e12", "--flops-per-token", "1e9"}, 2, "--config", "expected one form");
  ExpectFails(RunPlan({}), 2, "--model", "got neither this nor --config");
  ExpectFails(RunPlan({"--config", "olmoe-1b-7b", "--machine", "a100-80gb"}), 2, "--machine", "one of a100-80g,");
  const RunResult preset = RunPlan({"--config", "olmoe-1b", "--machine", "a100-80g"});
  EXPECT_EQ(preset.exit_code, 2) << preset.err;
  EXPECT_TRUE(Has(preset.err, "olmoe-1b-7b")) << preset.err;
  ExpectFails(RunPlan({"--flops", "fast", "--flops-per-token", "1e9"}), 2, "--flops", "got 'fast'");
  ExpectFails(RunPlan({"--bandwidth", "1e12", "--parameters", "1e9"}), 2, "--flops", "got none");
  ExpectFails(RunPlan({"--flops", "1e12", "--flops-per-token", "1e9,x"}), 2, "--flops-per-token", "got 'x'");
  ExpectFails(RunPlan({"--flops", "1e12", "--parameters", "1e9", "--active", "2e9"}), 2, "--active", "expected at most");
}

}  // namespace
}  // namespace moe::test
