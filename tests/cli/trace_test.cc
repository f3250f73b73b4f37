#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <numeric>

#include "testing/temp_dir.h"
#include "tests/cli/run_moe.h"

namespace moe::test {
namespace {

using nlohmann::json;

json TraceJson(std::vector<std::string> flags, const RunOptions& options = {}) {
  flags.insert(flags.begin(), {"trace", "--json", "-"});
  const RunResult result = RunMoe(std::move(flags), options);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  return json::parse(result.out);
}

// What holds for any trace, from its own numbers.
void ExpectConsistent(const json& j, int64_t slots) {
  const auto before = j["tokens_per_expert"].get<std::vector<int64_t>>();
  const auto after = j["rows_per_expert"].get<std::vector<int64_t>>();
  const int64_t capacity = j["capacity"];
  EXPECT_EQ(std::accumulate(before.begin(), before.end(), int64_t{0}), slots);
  ASSERT_EQ(before.size(), after.size());
  int64_t dropped = 0, padded = 0;
  for (size_t e = 0; e < before.size(); ++e) {
    EXPECT_EQ(after[e], std::min(before[e], capacity));
    dropped += before[e] - after[e], padded += capacity - after[e];
  }
  EXPECT_EQ(j["dropped"], dropped);
  EXPECT_EQ(j["padded"], padded);
  std::vector<int64_t> counted(before.size());
  for (const size_t e : j["top_k_experts"].get<std::vector<size_t>>()) ++counted.at(e);
  EXPECT_EQ(counted, before);
}

TEST(TraceCommand, DefaultIsTheTextbookPicture) {
  const json j = TraceJson({});
  const auto shape = [&](size_t i) { return j["steps"][i]["shape"].get<std::vector<int64_t>>(); };
  using Shape = std::vector<int64_t>;
  ASSERT_EQ(j["steps"].size(), 6u);
  const std::vector<std::pair<std::string, Shape>> want = {{"input", {2, 5, 128}},       {"router weights", {2, 5, 4}},
                                                           {"top-2 indices", {2, 5, 2}}, {"bucket and pad", {6, 128}},
                                                           {"expert outputs", {6, 128}}, {"combine", {2, 5, 128}}};
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(j["steps"][i]["name"], want[i].first);
    EXPECT_EQ(shape(i), want[i].second);
    EXPECT_FALSE(j["steps"][i]["operation"].get<std::string>().empty());
  }
  EXPECT_EQ(j["capacity"], 6);
  ExpectConsistent(j, 20);
  EXPECT_GT(j["dropped"], 0);
  EXPECT_GT(j["padded"], 0);
  const auto gates = j["gates"].get<std::vector<double>>();
  ASSERT_EQ(gates.size(), 20u);
  for (size_t s = 0; s < gates.size(); s += 2) {
    EXPECT_NEAR(gates[s] + gates[s + 1], 1, 1e-6);
    EXPECT_GE(gates[s], gates[s + 1]);
  }
}

TEST(TraceCommand, TableShowsShapesLoadsAndBothFormulas) {
  const RunResult result = RunMoe({"trace"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  for (const char* part : {"step", "operation", "tensor shape", "[2,5,128]", "[2,5,4]", "[2,5,2]", "[6,128] per expert",
                           "tokens per expert", "padded", "dropped",
                           "ceil(capacity_factor * tokens * top_k / experts) = ceil(1.2 * 10 * 2 / 4) = 6", "2*5/4*2.4 = 6"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << "\n" << result.out;
  }
}

TEST(TraceCommand, CapacityZeroIsDropless) {
  const json j = TraceJson({"--capacity", "0"});
  EXPECT_EQ(j["dropped"], 0);
  const auto n = j["tokens_per_expert"].get<std::vector<int64_t>>();
  EXPECT_EQ(j["capacity"], *std::max_element(n.begin(), n.end()));
  EXPECT_EQ(j["capacity_factor"], 0);
  ExpectConsistent(j, 20);
}

TEST(TraceCommand, CapacityFactorGivesTheCapacity) {
  const json j = TraceJson({"--batch", "3", "--seq", "7", "--experts", "5", "--top-k", "3", "--hidden", "33", "--width", "48",
                            "--capacity-factor", "0.8"});
  EXPECT_EQ(j["capacity"], 11);  // 0.8 * 21 * 3 / 5 = 10.08
  EXPECT_EQ(j["steps"][3]["shape"], (std::vector<int64_t>{11, 33}));
  EXPECT_EQ(j["steps"][2]["name"], "top-3 indices");
  ExpectConsistent(j, 63);
}

TEST(TraceCommand, AnyFixedCapacityIsMet) {
  for (const int64_t capacity : {1, 2, 3, 7, 10, 11, 19, 40}) {
    const json j = TraceJson({"--capacity", std::to_string(capacity), "--experts", "3", "--hidden", "8", "--width", "16"});
    EXPECT_EQ(j["capacity"], capacity);
    ExpectConsistent(j, 20);
  }
}

TEST(TraceCommand, TopOneAndASingleExpert) {
  const json one = TraceJson({"--top-k", "1"});
  ExpectConsistent(one, 10);
  for (const double g : one["gates"].get<std::vector<double>>()) EXPECT_LT(g, 1);  // a probability: the router could learn
  const json single = TraceJson({"--experts", "1", "--top-k", "1", "--capacity", "0"});
  EXPECT_EQ(single["tokens_per_expert"], (std::vector<int64_t>{10}));
}

TEST(TraceCommand, SameSeedSameBytesForAnyNumberOfThreads) {
  const std::vector<std::string> flags = {"trace", "--json", "-", "--seed", "9", "--threads"};
  auto one = flags, two = flags, other = flags;
  one.push_back("1"), two.push_back("2");
  other[4] = "10", other.push_back("1");
  EXPECT_EQ(RunMoe(one).out, RunMoe(two).out);
  EXPECT_NE(RunMoe(one).out, RunMoe(other).out);
}

TEST(TraceCommand, JsonFileLeavesTheTableOnStdout) {
  TempDir dir;
  const RunResult result = RunMoe({"trace", "--json", dir / "t.json"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_NE(result.out.find("what happened"), std::string::npos);
  EXPECT_EQ(json::parse(ReadFile(dir / "t.json"))["capacity"], 6);
}

TEST(TraceCommand, BadFlagsAreWrongUsageInOneLine) {
  ExpectFails(RunMoe({"trace", "--top-k", "5"}), 2, "--top-k", "got 5, expected 1..4, the number of experts");
  ExpectFails(RunMoe({"trace", "--top-k", "0"}), 2, "--top-k", "got 0");
  ExpectFails(RunMoe({"trace", "--experts", "0"}), 2, "--experts", "got 0, expected 1..");
  ExpectFails(RunMoe({"trace", "--batch", "0"}), 2, "--batch", "got 0, expected 1..");
  ExpectFails(RunMoe({"trace", "--seq", "-4"}), 2, "--seq", "got -4, expected 1..");
  ExpectFails(RunMoe({"trace", "--hidden", "0"}), 2, "--hidden", "got 0, expected 1..");
  ExpectFails(RunMoe({"trace", "--width", "40"}), 2, "--width", "got 40, expected a multiple of 16");
  ExpectFails(RunMoe({"trace", "--capacity", "-1"}), 2, "--capacity", "got -1, expected 0..");
  ExpectFails(RunMoe({"trace", "--capacity-factor", "0"}), 2, "--capacity-factor", "got 0, expected a positive number");
  ExpectFails(RunMoe({"trace", "--capacity-factor", "nan"}), 2, "--capacity-factor", "got nan, expected a positive number");
  ExpectFails(RunMoe({"trace", "--capacity-factor", "1", "--capacity", "3"}), 2, "--capacity-factor",
              "expected one of the two");
  ExpectFails(RunMoe({"trace", "--experts", "four"}), 2, "--experts", "got 'four', expected an integer");
  ExpectFails(RunMoe({"trace", "--expert", "4"}), 2, "flags", "got '--expert', expected '--experts'?");
  ExpectFails(RunMoe({"trace", "--seed", "-1"}), 2, "--seed", "got -1, expected 0 or more");
  ExpectFails(RunMoe({"trace", "--json", "/no/such/folder/t.json"}), 1, "/no/such/folder/t.json", "got");
}

TEST(TraceCommand, WhatDoesNotFitIsRefusedWithTheFigures) {
  ExpectFails(RunMoe({"trace", "--batch", "1048576", "--seq", "1048576"}), 2, "--batch", "GB");
  ExpectFails(RunMoe({"trace", "--experts", "1048576", "--hidden", "1048576"}), 2, "--batch", "GB");
  ExpectFails(RunMoe({"trace", "--capacity-factor", "1000000", "--batch", "1000"}), 2, "--batch", "GB");
}

}  // namespace
}  // namespace moe::test
