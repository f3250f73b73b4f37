#include <csignal>
#include <nlohmann/json.hpp>

#include "moe/files/utf8.h"
#include "tests/cli/model_folder.h"

namespace moe::test {
namespace {

using nlohmann::json;

class GenerateCommand : public WithModel {
 protected:
  static std::vector<std::string> Arguments(const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"generate", "--model", model()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  static RunResult Run(const std::vector<std::string>& more, const RunOptions& options = {}) {
    return RunMoe(Arguments(more), options);
  }
  static json RunJson(std::vector<std::string> more, const RunOptions& options = {}) {
    more.insert(more.end(), {"--json", "-"});
    const RunResult result = Run(more, options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json::parse(result.out, nullptr, false);
  }
};

TEST_F(GenerateCommand, StreamsThePromptAndItsContinuation) {
  const json result = RunJson({"--prompt", "Hello", "-n", "8", "--seed", "3"});
  ASSERT_TRUE(result.is_object());
  EXPECT_EQ(result["prompt"], "Hello");
  EXPECT_EQ(result["tokens"].size(), 8u);
  EXPECT_EQ(result["stop_reason"], "max_tokens");
  EXPECT_EQ(result["prompt_tokens"], 6);
  EXPECT_EQ(result["decode_tokens"], 7);
  const auto text = result["text"].get<std::string>();
  const auto line = [](std::string s) { return s.ends_with('\n') ? s : s + "\n"; };
  const RunResult shown = Run({"--prompt", "Hello", "-n", "8", "--seed", "3"});
  EXPECT_EQ(shown.out, line("Hello" + text));
  EXPECT_NE(shown.err.find("prompt 6 tokens"), std::string::npos) << shown.err;
  EXPECT_NE(shown.err.find("decode 7 tokens"), std::string::npos) << shown.err;
  EXPECT_NE(shown.err.find("tokens/s"), std::string::npos) << shown.err;
  EXPECT_EQ(Run({"--prompt", "Hello", "-n", "8", "--seed", "3", "--no-echo"}).out, line(text));
}

TEST_F(GenerateCommand, PromptFromFlagFileOrStdinIsTheSame) {
  WriteFile(dir_ / "prompt.txt", "Once upon\n");
  const auto want = RunJson({"--prompt", "Once upon", "-n", "6"})["tokens"];
  EXPECT_EQ(RunJson({"-f", dir_ / "prompt.txt", "-n", "6"})["tokens"], want);
  EXPECT_EQ(RunJson({"-n", "6"}, {.input = "Once upon\n"})["tokens"], want);
  EXPECT_EQ(RunJson({"-n", "6"}, {.input = "Once upon"})["tokens"], want);
  EXPECT_EQ(RunJson({"--prompt", "", "-n", "6"})["prompt_tokens"], 1);
}

TEST_F(GenerateCommand, TheSeedDecidesAndThreadsDoNot) {
  const std::vector<std::string> wild = {"--prompt", "x", "-n", "20", "--temp", "2", "--top-k", "0", "--min-p", "0"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), wild.begin(), wild.end());
    return RunJson(more)["tokens"];
  };
  const auto first = with({"--seed", "1", "--threads", "1"});
  EXPECT_EQ(with({"--seed", "1", "--threads", "2"}), first);
  EXPECT_NE(with({"--seed", "2"}), first);
  EXPECT_EQ(RunJson({"--prompt", "x", "-n", "5", "--temp", "0", "--seed", "1"})["tokens"],
            RunJson({"--prompt", "x", "-n", "5", "--top-k", "1", "--seed", "2"})["tokens"]);
}

TEST_F(GenerateCommand, SaysWhenTheContextIsFull) {
  const RunResult result = Run({"--prompt", "12345678901234567890123456789012"});
  ExpectFails(result, 1, "prompt", "got 32 tokens, expected at most 31");
  const RunResult full = Run({"--prompt", "1234567890", "-n", "-1", "--temp", "0"});
  EXPECT_EQ(full.exit_code, 0);
  EXPECT_NE(full.err.find("stopped: the context of 32 tokens is full"), std::string::npos) << full.err;
  EXPECT_EQ(RunJson({"--prompt", "1234567890", "-n", "-1", "--temp", "0"})["stop_reason"], "context");
}

TEST_F(GenerateCommand, StopsAtAStopString) {
  const json all = RunJson({"--prompt", "ab", "-n", "12", "--seed", "5"});
  const auto text = all["text"].get<std::string>();
  // Some code point after the second that is a text of its own.
  std::string stop;
  size_t at = 0;
  for (int i = 0; at < text.size(); ++i) {
    const std::string here = text.substr(at, static_cast<size_t>(NextUtf8(std::string_view(text).substr(at)).bytes));
    if (i >= 2 && here != "\uFFFD" && stop.empty()) stop = here;
    at += here.size();
  }
  ASSERT_FALSE(stop.empty()) << text;
  const json cut = RunJson({"--prompt", "ab", "-n", "12", "--seed", "5", "--stop", "never said", "--stop", stop});
  EXPECT_EQ(cut["stop_reason"], "stop");
  EXPECT_EQ(cut["text"], text.substr(0, text.find(stop)));
}

TEST_F(GenerateCommand, PromptsThatAreNoText) {
  WriteFile(dir_ / "binary", std::string("a\0b", 3));
  WriteFile(dir_ / "latin1", "caf\xe9");
  WriteFile(dir_ / "empty", "");
  ExpectFails(Run({"-f", dir_ / "binary"}), 1, dir_ / "binary", "got a NUL byte at byte 1");
  ExpectFails(Run({"-f", dir_ / "latin1"}), 1, dir_ / "latin1", "not UTF-8 at byte 3");
  ExpectFails(Run({"-f", dir_ / "empty"}), 1, dir_ / "empty", "got no text");
  ExpectFails(Run({"-f", dir_ / "missing"}), 1, dir_ / "missing", "");
  ExpectFails(Run({}, {.input = ""}), 1, "stdin", "got no text");
  ExpectFails(Run({}, {.input = "\xff"}), 1, "stdin", "not UTF-8 at byte 0");
  ExpectFails(Run({"--prompt", "\xff"}), 1, "--prompt", "not UTF-8 at byte 0");
}

TEST_F(GenerateCommand, WrongUsage) {
  ExpectFails(RunMoe({"generate", "--prompt", "a"}), 2, "--model", "got nothing, expected");
  ExpectFails(Run({"--prompt", "a", "--temperature", "-1"}), 2, "--temperature", "got -1, expected");
  ExpectFails(Run({"--prompt", "a", "--temperature", "nan"}), 2, "--temperature", "got nan, expected");
  ExpectFails(Run({"--prompt", "a", "--temperature", "hot"}), 2, "--temperature", "got 'hot', expected a number");
  ExpectFails(Run({"--prompt", "a", "--top-k", "-1"}), 2, "--top-k", "got -1, expected");
  ExpectFails(Run({"--prompt", "a", "--top-k", "1.5"}), 2, "--top-k", "got '1.5', expected an integer");
  ExpectFails(Run({"--prompt", "a", "--top-p", "1.5"}), 2, "--top-p", "got 1.5, expected 0..1");
  ExpectFails(Run({"--prompt", "a", "--min-p", "-1"}), 2, "--min-p", "got -1, expected 0..1");
  ExpectFails(Run({"--prompt", "a", "--repeat-penalty", "0"}), 2, "--repeat-penalty", "got 0, expected");
  ExpectFails(Run({"--prompt", "a", "--seed", "-1"}), 2, "--seed", "got '-1', expected");
  ExpectFails(Run({"--prompt", "a", "--stop", ""}), 2, "--stop", "got '', expected text");
  ExpectFails(Run({"--prompt", "a", "-n", "-2"}), 2, "--max-tokens", "got -2, expected");
  ExpectFails(Run({"--prompt", "a", "-f", "b"}), 2, "--prompt", "got --file too");
  ExpectFails(Run({"--prompt", "a", "--no-ecko"}), 2, "flags", "got '--no-ecko', expected '--no-echo'?");
  ExpectFails(Run({"a prompt without a flag"}), 2, "arguments", "got 'a prompt without a flag', expected only flags");
}

TEST_F(GenerateCommand, CtrlCEndsTheText) {
  MakeModelFolder(dir_ / "long", 1 << 17);
  Subprocess process({MOE_BINARY, "generate", "--model", dir_ / "long", "--prompt", "Begin", "-n", "-1", "--temp", "0"});
  ASSERT_TRUE(process.WaitForOutput("Begin"));
  process.Signal(SIGINT);
  const RunResult result = process.Wait();
  EXPECT_FALSE(result.timed_out);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(result.out.starts_with("Begin"));
  EXPECT_TRUE(result.out.ends_with("\n"));
  EXPECT_NE(result.err.find("stopped early"), std::string::npos) << result.err;
}

TEST_F(GenerateCommand, AReaderThatLeavesIsNoError) {
  const RunResult result = RunProgram(
      {"/bin/sh", "-c", std::string(MOE_BINARY) + " generate --model '" + model() + "' --prompt a -n 20 | true; exit 0"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err.find("moe: ["), std::string::npos) << result.err;
}

TEST_F(GenerateCommand, AFullDiskIsAnError) {
  const RunResult result = RunProgram(
      {"/bin/sh", "-c", std::string(MOE_BINARY) + " generate --model '" + model() + "' --prompt a -n 20 > /dev/full"});
  ExpectFails(result, 1, "stdout", "No space left");
}

TEST_F(GenerateCommand, HelpTeaches) {
  for (const char* command : {"generate", "eval", "inspect"}) {
    const RunResult result = RunMoe({command, "--help"});
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_EQ(result.err, "");
    for (const std::string& part : {std::string("Usage: moe ") + command, std::string("--model"), std::string("--threads"),
                                    std::string("--json"), std::string("Examples:\n  moe ") + command}) {
      EXPECT_NE(result.out.find(part), std::string::npos) << part;
    }
    EXPECT_EQ(RunMoe({"help", command}).out, result.out);
  }
}

}  // namespace
}  // namespace moe::test
