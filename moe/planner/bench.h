#pragma once
// How fast our own parts are, as fractions of a ceiling that is measured beside every run of them, in the same round.

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "moe/planner/probe.h"

namespace moe {

// Another way to the same result, run in the same rounds.
struct BenchPeer {
  std::string name;  // "onednn"
  std::function<void()> run;
};

// At least work / ceiling seconds pass.
struct Bound {
  Ceiling ceiling;
  double work = 0;  // FLOP or bytes of one run, whatever the ceiling counts
};

// Something to measure, ready to run again and again.
struct BenchRun {
  std::function<void()> run;
  std::function<void()> reference = nullptr;  // where the case has one
  std::vector<BenchPeer> peers = {};
  std::vector<Bound> bounds = {};  // instead of the case's, where only preparing it tells them
  // Where the reference runs with other threads than the case: theirs. Each is then held against the ceiling of its own.
  std::shared_ptr<ThreadPool> reference_pool = nullptr;
};

// Another run of ours that the case is compared with.
struct BenchReference {
  std::string name;      // "dense"; empty: none
  double work = 0;       // of one run of it, in the unit of the case's first bound; 0: the same
  bool is_part = false;  // of the case's run: the ratio is then its share of the time
};

struct BenchCase {
  std::string group, name;    // "dense", "bf16/1024x2048x2048"
  std::string kind = {};      // cases of a group that are summarised together, such as "balanced"; empty: the rest
  std::vector<Bound> bounds;  // not empty; the slowest counts, the first gives rates their unit
  BenchReference reference = {};
  int64_t memory_bytes = 0;  // that it will take, roughly; 0: little
  // Made when its turn comes and dropped after it: cases together would not fit into memory.
  std::function<BenchRun(ExecContext& ctx)> prepare;
};

struct PeerResult {
  std::string name;
  Measured ratio;  // its time / ours, round by round
};

struct BoundResult {
  Ceiling ceiling;
  Measured s;  // seconds that one run takes at least
};

struct BenchResult {
  std::string group, name, kind;
  bool in_bytes = false;  // rates are bytes/s; otherwise FLOP/s
  int rounds = 0;         // 0: not run
  Measured run_s;         // seconds of one run
  Measured per_s;         // work of the first bound per second
  Measured ceiling;       // the same at the bound that counts
  Measured fraction;      // per_s / the ceiling beside it, round by round
  std::vector<BoundResult> bounds;
  Measured bounds_differ;  // of two and more: seconds of the slowest / of the one after it, round by round
  std::string reference;   // empty: none
  bool reference_is_part = false;
  Measured reference_ratio;       // our rate / its, round by round; of a part, its time / ours; scaled: our fraction / its
  bool scaled = false;            // the reference had other threads: speedup and ceiling_speedup are measured
  Measured speedup;               // our rate / its
  Measured ceiling_speedup;       // the ceiling with our threads / with its
  std::vector<PeerResult> peers;  // fastest first
};

inline bool InBytes(Ceiling c) {
  return c == Ceiling::kRead || c == Ceiling::kReadChunks || c == Ceiling::kWeights || c == Ceiling::kReadModifyWrite ||
         c == Ceiling::kOptimizerStream;
}

// Rounds of ceilings, case, ceilings, reference and every peer in turn until `seconds` are spent, three at least (on Ctrl-C
// one), so that slow phases of a shared machine hit all alike. A sample lasts 2 ms at least: short runs are repeated in it.
// Runs of less than 30 ms begin with one that does not count and brings their data back into the caches.
BenchResult RunBench(const BenchCase& bench, double seconds, CeilingProbe& probe, ExecContext& ctx);

}  // namespace moe
