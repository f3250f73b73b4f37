// moe generate --prompts, --parallel, --explain.

#include <nlohmann/json.hpp>

#include "moe/base/cpu_info.h"
#include "moe/base/version.h"
#include "moe/planner/machine_cache.h"
#include "tests/cli/model_folder.h"

namespace moe::test {
namespace {

using nlohmann::json;

class GeneratePrompts : public WithModel {
 protected:
  RunResult Run(std::vector<std::string> more, const std::string& cache = "none.json") {
    more.insert(more.begin(), {"generate", "--model", model(), "-n", "6", "--temp", "1.5", "--threads", "2"});
    return RunMoe(more, {.environment = {{"MOE_MACHINE_CACHE", dir_ / cache}}});
  }
  json RunJson(std::vector<std::string> more, const std::string& cache = "none.json") {
    more.insert(more.end(), {"--json", "-"});
    const RunResult result = Run(more, cache);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json::parse(result.out, nullptr, false);
  }
  // Prompts of many lengths.
  std::string Lines(int count) {
    std::string text;
    for (int i = 0; i < count; ++i)
      text += "line " + std::string(static_cast<size_t>(i * 5 % 17), 'x') + std::to_string(i) + "\n";
    WriteFile(dir_ / "prompts.txt", text);
    return dir_ / "prompts.txt";
  }
  // As if this machine had been measured.
  std::string Profile() {
    MachineProfile m = BuiltInMachine("m2-ultra").value();
    m.name = "kept", m.cpu = GetCpuInfo().name, m.isa = (*SelectKernelTable())->name, m.version = Version(), m.threads = 2;
    m.revision = kProfileRevision, m.date = "2026-01-02", m.barrier_s = 1e-4;
    m.switches.interleave.points = {{1, 0.8}, {2, 1.25}, {4, 1.5}};
    EXPECT_TRUE(WriteMachine(dir_ / "machine.json", m));
    return "machine.json";
  }
};

TEST_F(GeneratePrompts, EachIsTheSameAloneAndBesideOthers) {
  const std::string file = Lines(12);
  const json one = RunJson({"--prompts", file, "--parallel", "1"}), eight = RunJson({"--prompts", file, "--parallel", "8"});
  ASSERT_EQ(one["prompts"].size(), 12u);
  EXPECT_EQ(one["prompts"], eight["prompts"]);
  EXPECT_EQ(one["parallel"], 1);
  EXPECT_EQ(eight["parallel"], 8);
  EXPECT_EQ(RunJson({"--prompts", file, "--parallel", "100"})["parallel"], 12);
  for (const size_t i : {0u, 5u, 11u}) {
    const json& entry = one["prompts"][i];
    const json alone = RunJson({"--prompt", entry["prompt"].get<std::string>()});
    for (const char* key : {"prompt", "text", "tokens", "stop_reason"}) EXPECT_EQ(alone[key], entry[key]) << key;
  }
  EXPECT_EQ(Run({"--prompts", file, "--parallel", "1"}).out, Run({"--prompts", file, "--parallel", "8"}).out);
  // A profile changes what is computed together and how, and no bit.
  EXPECT_EQ(RunJson({"--prompts", file}, Profile())["prompts"], one["prompts"]);
}

TEST_F(GeneratePrompts, TextsComeInOrderUnderAHeading) {
  WriteFile(dir_ / "two.txt", "ab\n\n  \ncd\r\n");
  const json result = RunJson({"--prompts", dir_ / "two.txt"});
  ASSERT_EQ(result["prompts"].size(), 2u);
  EXPECT_EQ(result["prompts"][1]["prompt"], "cd");
  const auto text = [&](size_t i) { return result["prompts"][i]["text"].get<std::string>(); };
  const auto line = [](const std::string& s) { return s.ends_with('\n') ? s : s + "\n"; };
  const RunResult shown = Run({"--prompts", dir_ / "two.txt"});
  EXPECT_EQ(shown.out, "=== 1/2\n" + line("ab" + text(0)) + "\n=== 2/2\n" + line("cd" + text(1)));
  EXPECT_NE(shown.err.find("2 prompts, 2 at once"), std::string::npos) << shown.err;
  EXPECT_EQ(Run({"--prompts", dir_ / "two.txt", "--no-echo"}).out, "=== 1/2\n" + line(text(0)) + "\n=== 2/2\n" + line(text(1)));
}

TEST_F(GeneratePrompts, LinesOfJson) {
  WriteFile(dir_ / "a.jsonl", "{\"prompt\": \"one\\ntwo\", \"id\": 3}\n{\"prompt\": \"three\"}\n");
  const json result = RunJson({"--prompts", dir_ / "a.jsonl"});
  ASSERT_EQ(result["prompts"].size(), 2u);
  EXPECT_EQ(result["prompts"][0]["prompt"], "one\ntwo");
  WriteFile(dir_ / "b.jsonl", "{\"prompt\": \"one\"}\n{\"text\": \"two\"}\n");
  ExpectFails(Run({"--prompts", dir_ / "b.jsonl"}), 1, dir_ / "b.jsonl:2", "expected one per line");
}

TEST_F(GeneratePrompts, BadInput) {
  const std::string file = Lines(2);
  ExpectFails(Run({"--prompts", file, "--prompt", "a"}), 2, "--prompts", "got --prompt too");
  ExpectFails(Run({"--prompts", file, "-f", file}), 2, "--prompts", "got --file too");
  ExpectFails(Run({"--prompts", file, "--parallel", "0"}), 2, "--parallel", "got 0, expected 1 to");
  ExpectFails(Run({"--prompts", file, "--parallel", "-3"}), 2, "--parallel", "got -3, expected 1 to");
  ExpectFails(Run({"--prompts", dir_ / "missing"}), 1, dir_ / "missing", "");
  WriteFile(dir_ / "empty", "\n\n");
  ExpectFails(Run({"--prompts", dir_ / "empty"}), 1, dir_ / "empty", "got no prompt");
  WriteFile(dir_ / "binary", std::string("fine\na\0b\n", 9));
  ExpectFails(Run({"--prompts", dir_ / "binary"}), 1, dir_ / "binary:2", "got a NUL byte at byte 1");
  WriteFile(dir_ / "long", "short\n" + std::string(40, 'x') + "\n");
  ExpectFails(Run({"--prompts", dir_ / "long"}), 1, "prompt 2", "got 40 tokens, expected at most 31");
}

TEST_F(GeneratePrompts, ExplainSaysWhatRestsOnWhat) {
  const std::string file = Lines(12);
  const RunResult usual = Run({"--prompts", file, "--explain"});
  EXPECT_EQ(usual.exit_code, 0);
  EXPECT_NE(usual.err.find("kernels switch as usual: there is no profile of this machine at"), std::string::npos) << usual.err;
  EXPECT_NE(usual.err.find("8 prompts at once: as usual: there is no profile of this machine (moe probe makes one)"),
            std::string::npos)
      << usual.err;
  const RunResult known = Run({"--prompts", file, "--explain"}, Profile());
  EXPECT_NE(
      known.err.find("rows are interleaved from 2 panels on: 25 % faster at 2 panels, 20 % slower at 1 panel (measured)\n"),
      std::string::npos)
      << known.err;
  EXPECT_NE(known.err.find("12 prompts at once: all there are"), std::string::npos) << known.err;
  EXPECT_EQ(known.out, usual.out);
  EXPECT_EQ(Run({"--prompts", file}, Profile()).err.find("interleaved"), std::string::npos);
  // More prompts than the knee.
  const RunResult many = Run({"--prompts", Lines(2000), "--explain", "--json", "-"}, Profile());
  EXPECT_NE(many.err.find("throughput"), std::string::npos) << many.err;
  EXPECT_NE(many.err.find("profile of 2026-01-02, 2 threads\n"), std::string::npos) << many.err;
  EXPECT_NE(Run({"--prompt", "a", "--explain"}, Profile()).err.find("rows are interleaved"), std::string::npos);
}

}  // namespace
}  // namespace moe::test
