#include <nlohmann/json.hpp>

#include "moe/files/safetensors.h"
#include "testing/temp_dir.h"
#include "tests/cli/run_moe.h"

namespace moe::test {
namespace {

using nlohmann::json;

class RouteCommand : public testing::Test {
 protected:
  // 4 tokens, 2 experts: three prefer expert 0, by less and less; the last expert 1.
  void SetUp() override { Write({3, 0, 2, 0, 1, 0, 0, 1}, 2); }
  void Write(const std::vector<float>& logits, int64_t E, const std::vector<float>& bias = {}) {
    std::vector<TensorInfo> tensors = {{.name = "logits", .shape = {std::ssize(logits) / E, E}}};
    if (!bias.empty()) tensors.push_back({.name = "bias", .shape = {std::ssize(bias)}});
    auto writer = SafetensorsWriter::Create(file_, tensors).value();
    ASSERT_TRUE(writer.AppendFloats("logits", logits));
    if (!bias.empty()) {
      ASSERT_TRUE(writer.AppendFloats("bias", bias));
    }
    ASSERT_TRUE(writer.Commit());
  }
  RunResult Route(std::vector<std::string> more) {
    more.insert(more.begin(), {"route", "--logits", file_});
    return RunMoe(more);
  }
  json RouteJson(const std::string& policy, std::vector<std::string> more = {}) {
    more.insert(more.end(), {"--policy", policy, "--json", "-"});
    const RunResult result = Route(more);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json::parse(result.out);
  }

  TempDir dir_;
  std::string file_ = dir_ / "l.safetensors";
};

TEST_F(RouteCommand, SaysWhoGoesWhereAndWhoIsDropped) {
  const std::string policy = "top_k=1,normalize=false,capacity_factor=1";  // two rows an expert
  const json j = RouteJson(policy);
  EXPECT_EQ(j["slot_begin"], (json{0, 1, 2, 3, 4}));
  EXPECT_EQ(j["expert"], (json{0, 0, 0, 1}));
  EXPECT_EQ(j["tokens_per_expert"], (json{3, 1}));
  EXPECT_EQ(j["kept"], (json{true, true, false, true}));
  EXPECT_EQ(j["dropped"], 1);
  EXPECT_EQ(j["gate"][2], 0);
  EXPECT_EQ(j["bucket_rows"], 2);
  EXPECT_EQ(j["padded_rows"], 1);
  EXPECT_DOUBLE_EQ(j["max_violation"], 0.5);
  EXPECT_NEAR(j["gate"][0], 1 / (1 + std::exp(-3.0)), 1e-6);
  // The largest gates stay; in evaluation all do.
  EXPECT_EQ(RouteJson(policy + ",drop=score")["kept"], (json{true, true, false, true}));
  EXPECT_EQ(RouteJson(policy + ",drop=score,capacity_factor=0.5")["kept"], (json{true, false, false, true}));
  EXPECT_EQ(RouteJson(policy, {"--eval"})["dropped"], 0);
}

TEST_F(RouteCommand, ABiasSelectsOrIsOfTheLogits) {
  Write({3, 0, 2, 0, 1, 0, 0, 1}, 2, {0, 10});
  const json selects = RouteJson("score=sigmoid,top_k=1,normalize=false,balance_bias=kept");
  EXPECT_EQ(selects["expert"], (json{1, 1, 1, 1}));
  EXPECT_NEAR(selects["gate"][0], 0.5, 1e-6);  // of the logit alone
  const json learned = RouteJson("score=sigmoid,top_k=1,normalize=false,bias=true");
  EXPECT_EQ(learned["expert"], (json{1, 1, 1, 1}));
  EXPECT_NEAR(learned["gate"][0], 1 / (1 + std::exp(-10.0)), 1e-6);
}

TEST_F(RouteCommand, Llama4IsTheSigmoidOfTheLargestLogit) {
  const json j = RouteJson("llama-4");
  EXPECT_EQ(j["expert"], (json{0, 0, 0, 1}));
  for (const auto& [token, z] : {std::pair{0, 3.0}, std::pair{2, 1.0}, std::pair{3, 1.0}}) {
    EXPECT_NEAR(j["gate"][token], 1 / (1 + std::exp(-z)), 1e-6);
  }
}

TEST_F(RouteCommand, ComparesSeveralPolicies) {
  const RunResult result = Route({"--policy", "top_k=2", "as-switch"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  for (const char* part : {"4 tokens, 2 experts", "policy", "as-switch", "tokens per expert", "expert    1"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part;
  }
  const RunResult both = Route({"--policy", "top_k=2", "as-switch", "--json", "-"});
  EXPECT_EQ(json::parse(both.out)["policies"].size(), 2u);
}

TEST_F(RouteCommand, BadInputIsOneLine) {
  ExpectFails(RunMoe({"route"}), 2, "--logits", "got nothing");
  ExpectFails(RunMoe({"route", "--logits", dir_ / "none"}), 1, dir_ / "none", "No such file");
  ExpectFails(Route({"--policy", "mixtrl"}), 2, "--policy", "the nearest policy is mixtral");
  ExpectFails(Route({"--policy", "skore=softmax"}), 2, "--policy", "the nearest is score");
  ExpectFails(Route({"--policy", "top_k=2,mixtral"}), 2, "--policy", "expected it first");
  ExpectFails(Route({"--policy", "model"}), 2, "--policy", "only --model has a policy of its own");
  ExpectFails(Route({"--policy", "top_k=2", "mixtral,top_k=9"}), 2, "--policy mixtral,top_k=9: top_k", "got 9, expected 1..2");
  EXPECT_EQ(Route({"--policy", "as-switch,noise=none"}).exit_code, 0);
  ExpectFails(Route({"--policy", "score=sine"}), 2, "--policy: score", "got 'sine', expected one of softmax");
  ExpectFails(Route({"--policy", "top_k=two"}), 2, "--policy: top_k", "got 'two', expected a whole number");
  ExpectFails(Route({"--policy", "top_k=3"}), 2, "--policy: top_k", "got 3, expected 1..2");
  ExpectFails(Route({"--policy", "capacity_factor=-1"}), 2, "--policy: capacity_factor", "got -1");
  Write({1, 2, 3}, 1);  // one expert: the default takes it
  EXPECT_EQ(Route({}).exit_code, 0);
  Write({0, 1, NAN, 0}, 2);
  ExpectFails(Route({}), 1, "router", "token 1: got logit nan for expert 0");
  Write({0, 1, 1, 0}, 2, {0, 0, 0});
  ExpectFails(Route({}), 1, file_, "tensor 'bias': got the shape [3], expected [2]");
  Write({0, 1, 1, 0}, 2, {0, 1});
  for (const char* policy : {"score=relu,normalize=false", "phi-3.5-moe", "selection=hash,balance_loss=0", "selection=sinkhorn",
                             "selection=expert_choice,normalize=false,allow_noncausal=true"}) {
    ExpectFails(Route({"--policy", policy}), 1, "bias", "has no selection score to add it to");
    EXPECT_EQ(Route({"--policy", fmt::format("{},bias=true", policy)}).exit_code, 0) << policy;
  }
  Write({0, 1, 1, 0}, 2, {0, INFINITY});
  ExpectFails(Route({}), 1, file_, "tensor 'bias': got inf");
  auto writer = SafetensorsWriter::Create(file_, {{.name = "other", .shape = {1}}}).value();
  ASSERT_TRUE(writer.AppendFloats("other", std::vector<float>{1}));
  ASSERT_TRUE(writer.Commit());
  ExpectFails(Route({}), 1, file_, "got no tensor 'logits'");
}

}  // namespace
}  // namespace moe::test
