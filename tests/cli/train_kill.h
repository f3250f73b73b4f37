#pragma once
// Killing training at random moments, and what must be left.

#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "moe/train/checkpoint.h"
#include "tests/cli/run_moe.h"
#include "tests/train/tiny_run.h"

namespace moe::test {

inline int64_t CountLines(const std::string& path) {
  if (!std::filesystem::exists(path)) return 0;
  const std::string text = ReadFile(path);
  return std::count(text.begin(), text.end(), '\n');
}

// Kills one run of `moe train` num_kills times with SIGKILL, at random moments, resuming it each time, and lets it end: it must
// end like the run that nobody killed. Moments are drawn so that the kills are used up before its steps are; a machine that
// grows much faster meanwhile makes it begin anew.
inline void KillAndResume(int num_kills, int threads, int64_t steps, const std::vector<std::string>& settings, uint64_t seed) {
  const TempDir dir;
  WriteTinyRun(dir);
  const auto command = [&](const std::string& folder, int64_t num_steps) {
    std::vector<std::string> all = {"train", dir / "r.toml", "--out", dir / folder, "--threads", std::to_string(threads)};
    if (HoldsTrainState(dir / folder)) all.push_back("--resume");
    all.insert(all.end(), {"--set", "train.steps=" + std::to_string(num_steps)});
    all.insert(all.end(), settings.begin(), settings.end());
    return all;
  };
  const RunResult start = RunMoe(command("start", 1)), whole = RunMoe(command("whole", steps));
  ASSERT_EQ(start.exit_code, 0) << start.err;
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  const double max_wait_s = start.seconds + 1.5 * std::max(0.0, whole.seconds - start.seconds) / num_kills;

  Rng rng(seed);
  int kills = 0, in_steps = 0, runs = 0;
  for (; kills < num_kills; ++runs) {
    const std::string folder = "killed" + std::to_string(runs);
    for (int64_t steps_before = 0;;) {
      std::vector<std::string> all = command(folder, steps);
      all.insert(all.begin(), MOE_BINARY);
      Subprocess process(all);
      if (kills < num_kills && process.WaitFor(rng.Uniform() * max_wait_s)) process.Signal(SIGKILL);
      const RunResult result = process.Wait();
      if (result.signal != SIGKILL) {  // it had ended by itself
        ASSERT_EQ(result.exit_code, 0) << result.err;
        break;
      }
      ++kills;
      const int64_t steps_now = CountLines(dir / folder + "/metrics.jsonl");
      in_steps += steps_now != steps_before;  // steps were done, whole or taken back
      steps_before = steps_now;
    }
    ExpectSameRun(dir / folder, dir / "whole");
  }
  EXPECT_GE(in_steps, num_kills / 4) << "the others came before the first step, after " << runs << " runs";
}

}  // namespace moe::test
