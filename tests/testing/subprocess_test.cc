#include "testing/subprocess.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <string>
#include <system_error>

#include "testing/temp_dir.h"

namespace moe::test {
namespace {

TEST(Subprocess, ReturnsOutputErrorAndExitCode) {
  const RunResult result = RunProgram({"sh", "-c", "echo out; echo $NAME >&2; exit 3"}, {.environment = {{"NAME", "value"}}});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(result.signal, 0);
  EXPECT_EQ(result.out, "out\n");
  EXPECT_EQ(result.err, "value\n");
  EXPECT_GT(result.peak_resident_bytes, 0);
}

TEST(Subprocess, MovesMoreThanAPipeHolds) {
  const std::string text(1 << 20, 'x');
  const RunResult result = RunProgram({"cat"}, {.input = text});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_TRUE(result.out == text) << result.out.size();
}

TEST(Subprocess, AProgramThatDoesNotReadItsInputIsNoFailure) {
  EXPECT_EQ(RunProgram({"true"}, {.input = std::string(1 << 20, 'x')}).exit_code, 0);
}

TEST(Subprocess, EndsByTimeOrBySignal) {
  const RunResult late = RunProgram({"sleep", "60"}, {.timeout_s = 0.05});
  EXPECT_TRUE(late.timed_out);
  EXPECT_EQ(late.signal, SIGKILL);
  Subprocess running({"sh", "-c", "echo ready; exec sleep 60"});
  ASSERT_TRUE(running.WaitForOutput("ready"));
  running.Signal(SIGTERM);
  const RunResult result = running.Wait();
  EXPECT_EQ(result.signal, SIGTERM);
  EXPECT_EQ(result.exit_code, -1);
  EXPECT_FALSE(result.timed_out);
}

TEST(Subprocess, WaitForOutputIsFalseWhenTheProgramEndsWithout) {
  Subprocess running({"echo", "other"});
  EXPECT_FALSE(running.WaitForOutput("ready"));
  EXPECT_EQ(running.Wait().out, "other\n");
}

TEST(Subprocess, AMissingProgramThrows) {
  EXPECT_THROW(RunProgram({"/no/such/program"}), std::system_error);
}

TEST(Subprocess, RunsInAFolderWithALimitOnFiles) {
  const TempDir folder;
  const RunResult result =
      RunProgram({"sh", "-c", "pwd; head -c 100000 /dev/zero > big"}, {.folder = folder.path(), .max_file_bytes = 4096});
  EXPECT_EQ(result.out, folder.path().string() + "\n");
  EXPECT_NE(result.exit_code, 0);
  EXPECT_EQ(ReadFile(folder / "big").size(), 4096u);
}

TEST(TempDir, IsRemovedWithAllItHolds) {
  std::filesystem::path path;
  {
    const TempDir folder;
    path = folder.path();
    std::filesystem::create_directories(path / "a/b");
    WriteFile(path / "a/b/c", std::string("x\0y", 3));
    EXPECT_EQ(ReadFile(path / "a/b/c"), std::string("x\0y", 3));
    EXPECT_THROW(ReadFile(path / "none"), std::runtime_error);
    std::filesystem::permissions(path / "a/b", std::filesystem::perms::none);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace moe::test
