// What training takes beside what `moe inspect` said it would.

#include <nlohmann/json.hpp>

#include "tests/cli/run_moe.h"
#include "tests/train/tiny_run.h"

namespace moe::test {
namespace {

void ExpectNeedsWhatInspectSays(const std::string& ffn, const std::string& dtype, const std::string& width) {
  SCOPED_TRACE(ffn + " " + dtype + " " + width);
  const TempDir dir;
  WriteTinyRun(dir);
  WriteFile(dir / "train.txt", TinyText(1, 100'000));
  std::vector<std::string> arguments = {"train", dir / "r.toml", "--out", dir / "run", "--dtype", dtype, "--json", "-"};
  for (const char* set : {"model.heads=4", "model.context=256", "model.experts=16", "train.batch_tokens=2048",
                          "train.micro_batch_tokens=2048", "train.steps=3"})
    arguments.insert(arguments.end(), {"--set", set});
  arguments.insert(arguments.end(), {"--set", "model.ffn=" + ffn, "model.hidden=" + width, "model.expert_width=" + width});
  if (ffn != "moe") arguments.insert(arguments.end(), {"--set", "router.capacity_factor="});
  const RunResult trained = RunMoe(arguments);
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  const RunResult inspected = RunMoe({"inspect", "--model", dir / "run", "--rows", "2048", "--json", "-"});
  ASSERT_EQ(inspected.exit_code, 0) << inspected.err;

  const auto needed = nlohmann::json::parse(inspected.out)["training"][dtype]["total"].get<int64_t>();
  const auto summary = nlohmann::json::parse(trained.out);
  EXPECT_EQ(summary["needed_bytes"], needed);
  EXPECT_EQ(summary["peak_resident_bytes"], trained.peak_resident_bytes);
  const double ratio = static_cast<double>(trained.peak_resident_bytes) / static_cast<double>(needed);
  EXPECT_GT(ratio, 0.8);
  EXPECT_LT(ratio, 1.3);
}

TEST(TrainMemory, IsWhatInspectSays) {
  if (kSanitized) GTEST_SKIP() << "sanitizers take memory of their own";
  for (const char* dtype : {"f32", "bf16"}) {
    for (const char* width : {"128", "256"}) {
      ExpectNeedsWhatInspectSays("moe", dtype, width);
      ExpectNeedsWhatInspectSays("dense-total", dtype, width);
    }
  }
}

}  // namespace
}  // namespace moe::test
