#include <filesystem>
#include <nlohmann/json.hpp>

#include "moe/base/version.h"
#include "moe/cli/common.h"
#include "testing/temp_dir.h"
#include "tests/cli/run_moe.h"

namespace moe::test {
namespace {

TEST(Frame, HelpListsEveryCommand) {
  for (const auto& arguments : std::vector<std::vector<std::string>>{{}, {"--help"}, {"-h"}, {"help"}}) {
    const RunResult result = RunMoe(arguments);
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_EQ(result.err, "");
    EXPECT_NE(result.out.find("Usage: moe COMMAND"), std::string::npos);
    EXPECT_NE(result.out.find("--version"), std::string::npos);
  }
}

TEST(Frame, VersionNamesTheTables) {
  const RunResult result = RunMoe({"--version"}, {.environment = {{"MOE_ISA", "scalar"}}});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_TRUE(result.out.starts_with(std::string("moe ") + Version() + "\n"));
  EXPECT_NE(result.out.find("scalar\nin use: scalar\n"), std::string::npos);
}

TEST(Frame, AnUnusableInstructionSetIsWrongUsage) {
  ExpectFails(RunMoe({"--version"}, {.environment = {{"MOE_ISA", "mmx"}}}), 2, "MOE_ISA", "got 'mmx', expected");
}

TEST(Frame, UnknownCommand) {
  ExpectFails(RunMoe({"frobnicate"}), 2, "command", "got 'frobnicate', expected one of ");
  ExpectFails(RunMoe({"two\nlines"}), 2, "command", "got 'two\\nlines', expected one of ");
  ExpectFails(RunMoe({""}), 2, "command", "got '', expected one of ");
  ExpectFails(RunMoe({"help", "frobnicate"}), 2, "command", "got 'frobnicate', expected one of ");
}

TEST(Frame, MemoryThatRunsOutIsOneLine) {
  if (kSanitized) GTEST_SKIP() << "sanitizers take memory of their own";
  const RunResult result = RunMoe({"trace", "--hidden", "2048", "--width", "2048", "--experts", "64", "--threads", "1"},
                                  {.max_memory_bytes = 400 << 20});
  ExpectFails(result, 1, "memory", "got none left, expected more free memory or a smaller model");
}

TEST(WriteJsonResult, ReadsBackAsItWasAndListsStayOnOneLine) {
  TempDir dir;
  const nlohmann::json result = {{"a", {1, 2.5, -3}},
                                 {"empty", nlohmann::json::array()},
                                 {"nothing", nlohmann::json::object()},
                                 {"text", "two\nlines, \"quoted\"\x01"},
                                 {"list", {"x\ny", nullptr, true}},
                                 {"nested", {{{"b", 1}}, {{"c", {1, 2}}}}}};
  CommonFlags flags{.json = dir / "result.json"};
  ASSERT_TRUE(WriteJsonResult(flags, result));
  const std::string text = ReadFile(dir / "result.json");
  EXPECT_EQ(nlohmann::json::parse(text), result);
  EXPECT_NE(text.find("\"a\": [1, 2.5, -3],\n"), std::string::npos) << text;
  EXPECT_NE(text.find("\"c\": [1, 2]\n"), std::string::npos) << text;
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
}

TEST(WriteJsonResult, BytesThatAreNoTextAreReplaced) {
  TempDir dir;
  CommonFlags flags{.json = dir / "result.json"};
  ASSERT_TRUE(WriteJsonResult(flags, {{"a\xff", "b\xff"}}));
  EXPECT_EQ(ReadFile(dir / "result.json"), "{\n  \"a\uFFFD\": \"b\uFFFD\"\n}\n");
}

TEST(Nearest, FindsTypingErrors) {
  const std::vector<std::string> names = {"train", "eval", "generate", "inspect", "trace"};
  EXPECT_EQ(Nearest("evla", names), "eval");
  EXPECT_EQ(Nearest("evals", names), "eval");
  EXPECT_EQ(Nearest("generat", names), "generate");
  EXPECT_EQ(Nearest("genarete", names), "generate");
  EXPECT_EQ(Nearest("trane", names), "trace");
  EXPECT_EQ(Nearest("", names), "");
  EXPECT_EQ(Nearest("quantize", names), "");
  EXPECT_EQ(Nearest("x", {}), "");
}

}  // namespace
}  // namespace moe::test
