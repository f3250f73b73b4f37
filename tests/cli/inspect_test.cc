#include <nlohmann/json.hpp>

#include "moe/model/config.h"
#include "tests/cli/model_folder.h"

namespace moe::test {
namespace {

using nlohmann::json;

json InspectJson(const std::string& model, std::vector<std::string> more = {}) {
  more.insert(more.begin(), {"inspect", "--model", model, "--json", "-"});
  const RunResult result = RunMoe(more);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return json::parse(result.out, nullptr, false);
}

class Inspect : public WithModel {};

TEST_F(Inspect, GivesTheDocumentedJson) {
  const json result = InspectJson(model());
  ASSERT_TRUE(result.is_object());
  EXPECT_TRUE(result["architecture"].is_string());
  EXPECT_EQ(result["experts"], 4);
  EXPECT_EQ(result["top_k"], 2);
  const int64_t total = result["parameters_total"], active = result["parameters_active"];
  // Two layers: of four experts of three 16x24 matrices a token uses two.
  EXPECT_EQ(total - active, 2 * 2 * 3 * 16 * 24);
  int64_t sum = 0;
  for (const json& part : result["parameters"]) sum += part.get<int64_t>();
  EXPECT_EQ(sum, total);
  EXPECT_EQ(result["bytes"]["f32"], 4 * total);
  EXPECT_EQ(result["bytes"]["bf16"], 2 * total);
  EXPECT_EQ(result["routing"]["score"], "softmax");
  EXPECT_EQ(result["routing"]["top_k"], 2);
  EXPECT_EQ(result["layers"].size(), 2u);
  EXPECT_EQ(result["context"], kTinyContext);
  for (const char* use : {"inference", "training"}) {
    for (const char* dtype : {"f32", "bf16"}) EXPECT_GT(result[use][dtype]["total"].get<int64_t>(), 0);
  }
  EXPECT_GT(result["training"]["f32"]["total"].get<int64_t>(), 4 * 4 * total);  // weights, gradients, two moments
  EXPECT_LT(result["inference"]["bf16"]["total"].get<int64_t>(), result["inference"]["f32"]["total"].get<int64_t>());
}

TEST_F(Inspect, ConfigAloneIsEnough) {
  json from_folder = InspectJson(model()), from_config = InspectJson(model() + "/config.json");
  from_folder.erase("model"), from_config.erase("model");
  EXPECT_EQ(from_config, from_folder);
}

TEST_F(Inspect, MemoryGrowsWithWhatIsRun) {
  const json small = InspectJson(model(), {"--rows", "32", "--sequences", "1"});
  const json large = InspectJson(model(), {"--rows", "64", "--sequences", "5"});
  EXPECT_EQ(large["inference"]["f32"]["kv_cache"], 5 * small["inference"]["f32"]["kv_cache"].get<int64_t>());
  EXPECT_GT(large["training"]["f32"]["activations"], small["training"]["f32"]["activations"]);
  EXPECT_EQ(large["training"]["f32"]["masters"], small["training"]["f32"]["masters"]);
  const json half = InspectJson(model(), {"--context", "16"});
  EXPECT_EQ(2 * half["inference"]["f32"]["kv_cache"].get<int64_t>(), small["inference"]["f32"]["kv_cache"]);
}

// Published figures of public models, from the shape alone.
TEST(InspectPreset, CountsPublicModels) {
  struct Case {
    const char* name;
    double total, active;
    int experts, top_k;
  };
  for (const Case& c : {Case{"olmoe-1b-7b", 6.92e9, 1.28e9, 64, 8},
                        {"mixtral-8x7b", 46.7e9, 12.9e9, 8, 2},
                        {"qwen3-30b-a3b", 30.5e9, 3.3e9, 128, 8}}) {
    SCOPED_TRACE(c.name);
    const json result = InspectJson(c.name);
    EXPECT_NEAR(result["parameters_total"].get<double>(), c.total, 0.005 * c.total);
    // Published figures count the embedding, of which a token reads one row.
    const double active = result["parameters_active"].get<double>() + result["parameters"]["embedding"].get<double>();
    EXPECT_NEAR(active, c.active, 0.02 * c.active);
    EXPECT_EQ(result["experts"], c.experts);
    EXPECT_EQ(result["top_k"], c.top_k);
    const RunResult shown = RunMoe({"inspect", "--model", c.name});
    EXPECT_EQ(shown.exit_code, 0);
    for (const char* part : {"parameters", "experts", "router", "memory", "to run", "to train", "routing"}) {
      EXPECT_NE(shown.out.find(part), std::string::npos) << part;
    }
  }
}

TEST_F(Inspect, BadInput) {
  const auto one_line = [](const RunResult& result, int exit_code) {
    EXPECT_EQ(result.exit_code, exit_code);
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(result.err.starts_with("moe: [")) << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  };
  one_line(RunMoe({"inspect", "--model", dir_ / "missing"}), 1);
  one_line(RunMoe({"inspect", "--model", "no-such-preset"}), 2);
  const RunResult recipe = RunMoe({"inspect", "--model", std::string(MOE_SOURCE_DIR) + "/recipes/demo.toml"});
  one_line(recipe, 1);
  EXPECT_NE(recipe.err.find("got a recipe, expected a model"), std::string::npos) << recipe.err;
  WriteFile(dir_ / "config.json", "{\"model_type\": ");
  one_line(RunMoe({"inspect", "--model", dir_ / "config.json"}), 1);
  one_line(RunMoe({"inspect", "--model", dir_.path().string()}), 1);
  WriteFile(dir_ / "config.json", "[]");
  one_line(RunMoe({"inspect", "--model", dir_ / "config.json"}), 1);
  WriteFile(dir_ / "config.json", "{}");
  one_line(RunMoe({"inspect", "--model", dir_ / "config.json"}), 1);
  WriteFile(dir_ / "config.json", std::string(1000, '\xff'));
  one_line(RunMoe({"inspect", "--model", dir_ / "config.json"}), 1);
  json config = json::parse(ReadFile(model() + "/config.json"));
  for (const auto& [key, value] : std::vector<std::pair<std::string, json>>{{"hidden_size", -1},
                                                                            {"hidden_size", "wide"},
                                                                            {"hidden_size", 1e300},
                                                                            {"num_attention_heads", 0},
                                                                            {"num_experts_per_tok", 5},
                                                                            {"vocab_size", nullptr}}) {
    json damaged = config;
    damaged[key] = value;
    WriteFile(dir_ / "config.json", damaged.dump());
    SCOPED_TRACE(key);
    one_line(RunMoe({"inspect", "--model", dir_ / "config.json"}), 1);
  }
  ExpectFails(RunMoe({"inspect"}), 2, "--model", "got nothing, expected");
  ExpectFails(RunMoe({"inspect", "--model", model(), "--rows", "0"}), 2, "--rows", "got 0, expected 1..");
  ExpectFails(RunMoe({"inspect", "--model", model(), "--sequences", "-1"}), 2, "--sequences", "got -1, expected 1..");
  ExpectFails(RunMoe({"inspect", "--model", model(), "--context", "33"}), 2, "--context", "got 33, expected 1..32");
}

}  // namespace
}  // namespace moe::test
