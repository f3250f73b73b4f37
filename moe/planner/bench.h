#pragma once
// How fast our own parts are, as fractions of a ceiling that is measured beside every run of them, in the same round.

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "moe/planner/probe.h"

namespace moe {

// Something to measure, ready to run again and again.
struct BenchRun {
  std::function<void()> run;
  std::function<void()> peer = nullptr;  // another way to the same result, run in the same rounds; may be empty
};

struct BenchCase {
  std::string group, name;  // "dense", "bf16/1024x2048x2048"
  Ceiling ceiling;          // what it is a fraction of
  double work = 0;          // FLOP, or bytes, of one run
  std::string peer;         // what the ratio is against
  // Made when its turn comes and dropped after it: cases together would not fit into memory.
  std::function<BenchRun(ExecContext& ctx)> prepare;
};

struct BenchResult {
  int rounds = 0;
  Measured per_s;       // work per second
  Measured ceiling;     // of the same unit
  Measured fraction;    // of the ceiling beside it, round by round
  Measured peer_ratio;  // the peer's time / ours, round by round; zeros without a peer
};

// Rounds of ceiling, case and peer until `seconds` are spent, three at least. Short runs are repeated within a round.
BenchResult RunBench(const BenchCase& bench, double seconds, CeilingProbe& probe, ExecContext& ctx);

}  // namespace moe
