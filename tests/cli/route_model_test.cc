#include <nlohmann/json.hpp>

#include "testing/text.h"
#include "tests/cli/model_folder.h"

namespace moe::test {
namespace {

using nlohmann::json;

class RouteModelCommand : public WithModel {
 protected:
  RunResult Run(std::vector<std::string> more, const RunOptions& options = {}) const {
    std::vector<std::string> arguments = {"route", "--model", model()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    if (std::ranges::find(more, "--seconds") == more.end()) arguments.insert(arguments.end(), {"--seconds", "0.01"});
    return RunMoe(arguments, options);
  }
  json RunJson(std::vector<std::string> more, const RunOptions& options = {}) const {
    more.insert(more.end(), {"--json", "-"});
    const RunResult result = Run(more, options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json::parse(result.out, nullptr, false);
  }
};

TEST_F(RouteModelCommand, GivesTheDocumentedJson) {
  const std::string data = File("a.txt", Text());
  const json result = RunJson({"--data", data});
  ASSERT_TRUE(result.is_object());
  const auto tokens = std::ssize(Text());
  EXPECT_EQ(result["tokens"], tokens);
  EXPECT_EQ(result["bytes"], tokens);
  EXPECT_EQ(result["files"], json({data}));
  const RunResult evaluated = RunMoe({"eval", "--model", model(), "--data", data, "--json", "-"});
  const json eval = json::parse(evaluated.out);
  EXPECT_EQ(result["loss"], eval["loss"]);
  ASSERT_EQ(result["layers"].size(), 2u);
  for (size_t l = 0; l < 2; ++l) {
    const json& layer = result["layers"][l];
    EXPECT_EQ(layer["layer"], l);
    EXPECT_EQ(layer["experts"], 4);
    EXPECT_EQ(layer["top_k"], 2);
    for (const auto& [key, value] : eval["layers"][l].items()) EXPECT_EQ(layer[key], value) << key;
    const json& information = layer["mutual_information"];
    EXPECT_GT(information["bits"], information["shuffled_bits"]);
    EXPECT_DOUBLE_EQ(information["excess_bits"].get<double>(),
                     information["bits"].get<double>() - information["shuffled_bits"].get<double>());
    EXPECT_LE(information["expert_bits"], 2);
    ASSERT_EQ(layer["likes"].size(), 4u);
    for (const json& likes : layer["likes"]) {
      for (const json& liked : likes) {
        EXPECT_GT(liked["lift"], 1);
        EXPECT_GE(liked["count"], 8);
        EXPECT_TRUE(liked["id"].is_number_integer() && liked["token"].is_string());
      }
    }
  }
  const json& policies = result["policies"];
  ASSERT_GE(policies.size(), 10u);
  EXPECT_EQ(policies[0]["policy"], "model");
  EXPECT_EQ(policies[0]["drop_rate"], 0);
  EXPECT_EQ(policies[0]["experts_per_token"], 2);
  for (const json& policy : policies) {
    ASSERT_FALSE(policy.contains("why_not")) << policy;
    EXPECT_EQ(policy["layers"].size(), 2u);
    for (const char* key : {"drop_rate", "padded_share", "max_violation", "mean_max_violation"}) {
      EXPECT_TRUE(policy[key].is_number()) << key;
    }
    for (const char* executor : {"grouped", "padded", "loop", "block-sparse"}) {
      EXPECT_GT(policy["times"][executor]["s"].get<double>(), 0) << policy["policy"] << executor;
    }
  }
  EXPECT_EQ(result["timed"]["repetitions"], 5);
  EXPECT_EQ(result["as"], "training");
}

TEST_F(RouteModelCommand, PoliciesAreThoseThatAreAskedFor) {
  const std::string data = File("a.txt", Text());
  const json result =
      RunJson({"--data", data, "--policy", "top_k=1,normalize=false,capacity_factor=0.5", "model", "--seconds", "0"});
  ASSERT_EQ(result["policies"].size(), 2u);
  const json& half = result["policies"][0];
  EXPECT_EQ(half["experts_per_token"], 1);
  EXPECT_GE(half["drop_rate"], 0.5 - 4.0 / static_cast<double>(Text().size()));  // capacities are rounded up
  EXPECT_FALSE(half.contains("times"));
  EXPECT_FALSE(result.contains("timed"));
  const json evaluated = RunJson({"--data", data, "--policy", "capacity_factor=0.5", "--eval", "--seconds", "0"});
  EXPECT_EQ(evaluated["policies"][0]["drop_rate"], 0);
  EXPECT_EQ(evaluated["as"], "evaluation");
}

TEST_F(RouteModelCommand, ReadsStdinAndNoMoreTokensThanAsked) {
  const json result = RunJson({"--tokens", "40", "--seconds", "0"}, {.input = Text()});
  EXPECT_EQ(result["tokens"], 40);
  EXPECT_EQ(result["bytes"], 40);
  EXPECT_EQ(result["files"], json({"stdin"}));
  EXPECT_EQ(RunJson({"--data", "-", "--tokens", "40", "--seconds", "0"}, {.input = Text()})["loss"], result["loss"]);
  // A short file leaves its share to the next.
  const std::string a = File("short", "abc"), b = File("long", Text());
  EXPECT_EQ(RunJson({"--data", a, b, "--tokens", "40", "--seconds", "0"})["tokens"], 40);
  EXPECT_EQ(RunJson({"--data", b, a, "--tokens", "40", "--seconds", "0"})["tokens"], 23);
}

TEST_F(RouteModelCommand, PrintsForPeople) {
  const RunResult result = Run({"--data", File("a.txt", Text()), "--layer", "1", "--layer", "0", "--least-count", "2"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  for (const char* part : {"max/mean", "load of each expert", "layer 1: an expert tells", "layer 0: an expert tells", "###",
                           "what other policies", "as-megablocks", "block-sparse", "medians of 5 runs"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << "\n" << result.out;
  }
  EXPECT_LT(result.out.find("layer 1: an"), result.out.find("layer 0: an"));
  EXPECT_EQ(result.out.find('\x1b'), std::string::npos);
  EXPECT_EQ(result.out.find("█ "), std::string::npos) << "bars of a terminal in a file";
}

TEST_F(RouteModelCommand, WritesAPageThatNeedsNothing) {
  const std::string page = dir_ / "routes.html";
  const RunResult result =
      Run({"--data", File("a.txt", Text()), "--least-count", "1", "--likes", "300", "--out", page, "--json", "-"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const std::string html = ReadFile(page);
  EXPECT_TRUE(html.starts_with("<!DOCTYPE html>"));
  for (const char* part : {"<svg class=\"heat\"", "layer 0, expert 0:", "layer 1, expert 3:", "How this was measured",
                           "as-switch", "<code>&lt;</code>", "block-sparse"}) {
    EXPECT_NE(html.find(part), std::string::npos) << part;
  }
  for (const char* part : {"<script", "http:", "https:", "src=", "href=", "@import", "url("}) {
    EXPECT_EQ(html.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(Count(html, "<rect"), 8u);
}

TEST_F(RouteModelCommand, WrongUsage) {
  const std::string data = File("a.txt", "text");
  ExpectFails(RunMoe({"route", "--data", data}), 2, "--logits", "got nothing, expected it or --model");
  ExpectFails(Run({"--data", data, "--logits", data}), 2, "--model", "got it with --logits");
  ExpectFails(RunMoe({"route", "--logits", data, "--layer", "1"}), 2, "--layer", "got it with --logits, expected --model");
  ExpectFails(RunMoe({"route", "--logits", data, "--data", data}), 2, "--data", "got it with --logits, expected --model");
  ExpectFails(Run({"--data", data, "--policy", "as-swich"}), 2, "--policy", "the nearest policy is as-switch");
  ExpectFails(Run({"--data", data, "--policy", "top_k=9"}), 2, "--policy: top_k", "got 9, expected 1..4");
  ExpectFails(Run({"--data", data, "--layer", "2"}), 2, "--layer", "got 2, expected 0..1");
  ExpectFails(Run({"--data", data, "--tokens", "0"}), 2, "--tokens", "got 0, expected 1..");
  ExpectFails(Run({"--data", data, "--likes", "-1"}), 2, "--likes", "got -1, expected 0..1000");
  ExpectFails(Run({"--data", data, "--least-count", "0"}), 2, "--least-count", "got 0, expected at least 1");
  ExpectFails(Run({"--data", data, "--seconds", "-1"}), 2, "--seconds", "got -1");
  ExpectFails(Run({"--data", data, "--batch", "0"}), 2, "--batch", "got 0, expected 1");
  ExpectFails(Run({"--data", data, "--context", "33"}), 2, "--context", "got 33, expected 1..32");
  ExpectFails(Run({"--data", data, "--dtype", "f64"}), 2, "--dtype", "got 'f64'");
}

TEST_F(RouteModelCommand, BadInputIsOneLine) {
  const std::string data = File("a.txt", "text");
  ExpectFails(Run({"--data", data, "--out", dir_ / "r.html", "--json", dir_ / "r.html"}), 2, "--out", "expected two files");
  ExpectFails(Run({"--data", dir_ / "none"}), 1, dir_ / "none", "No such file");
  ExpectFails(Run({"--data", File("empty", "")}), 1, dir_ / "empty", "is empty");
  ExpectFails(Run({}, {.input = ""}), 1, "stdin", "is empty");
  ExpectFails(Run({}, {.input = "caf\xe9 noir"}), 1, "stdin", "UTF-8");
  ExpectFails(RunMoe({"route", "--model", dir_ / "none", "--data", data}), 1, dir_ / "none", "got no such folder");
  ExpectFails(Run({"--data", data, "--out", dir_ / "no/such/page.html"}), 1, dir_ / "no/such/page.html", "No such file");
  ModelConfig config = TinyDense();
  config.vocab_size = 259, config.bos_id = 256, config.eos_id = 257;
  TestContext t;
  Model dense(config, DType::kF32, false);
  FillParameters(dense, 1, t.ctx);
  std::filesystem::create_directories(dir_ / "dense");
  ASSERT_TRUE(SaveModel(dense, dir_ / "dense", DType::kF32));
  ASSERT_TRUE(Tokenizer::Bytes().Save(dir_ / "dense"));
  ExpectFails(RunMoe({"route", "--model", dir_ / "dense", "--data", data}), 1, dir_ / "dense", "has no experts");
}

TEST_F(RouteModelCommand, CtrlCEndsItInOneLine) {
  std::string text;
  for (int i = 0; i < 3000000; ++i) text += static_cast<char>('a' + i % 26);
  Subprocess process({MOE_BINARY, "route", "--model", model(), "--tokens", "3000000", "--data", File("long.txt", text)});
  ASSERT_TRUE(process.WaitForOutput("route "));  // progress
  process.Signal(SIGINT);
  const RunResult result = process.Wait();
  EXPECT_FALSE(result.timed_out);
  EXPECT_EQ(result.exit_code, 130);
  EXPECT_EQ(result.out, "");
  EXPECT_TRUE(result.err.ends_with("; there is no result\n")) << result.err;
}

}  // namespace
}  // namespace moe::test
