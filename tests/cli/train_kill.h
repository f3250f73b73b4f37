#pragma once
// Killing training at random moments, and what must be left.

#include <signal.h>

#include "moe/train/checkpoint.h"
#include "tests/cli/run_moe.h"
#include "tests/train/tiny_run.h"

namespace moe::test {

// Kills `moe train` num_kills times with SIGKILL, each after a random part of max_wait_s, resuming it each time, and lets it
// end. Runs that end before all kills are done begin anew. Every one must end like the run that nobody killed.
inline void KillAndResume(int num_kills, double max_wait_s, int threads, const std::vector<std::string>& settings,
                          uint64_t seed) {
  const TempDir dir;
  WriteTinyRun(dir);
  const auto command = [&](const std::string& folder) {
    std::vector<std::string> all = {"train", dir / "r.toml", "--out", dir / folder, "--threads", std::to_string(threads)};
    if (HoldsTrainState(dir / folder)) all.push_back("--resume");
    all.push_back("--set");
    all.insert(all.end(), settings.begin(), settings.end());
    return all;
  };
  const RunResult whole = RunMoe(command("whole"));
  ASSERT_EQ(whole.exit_code, 0) << whole.err;

  Rng rng(seed);
  for (int kills = 0, run = 0; kills < num_kills; ++run) {
    const std::string folder = "killed" + std::to_string(run);
    for (;;) {
      std::vector<std::string> all = command(folder);
      all.insert(all.begin(), MOE_BINARY);
      Subprocess process(all);
      const bool alive = kills >= num_kills || process.WaitFor(rng.Uniform() * max_wait_s);
      if (alive && kills < num_kills) process.Signal(SIGKILL);
      const RunResult result = process.Wait();
      if (result.signal == SIGKILL) {  // it hit: the run had not ended by itself
        ++kills;
        continue;
      }
      ASSERT_EQ(result.exit_code, 0) << result.err;
      break;
    }
    ExpectSameRun(dir / folder, dir / "whole");
  }
}

}  // namespace moe::test
