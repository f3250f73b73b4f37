#include "benches/bench_main.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "benches/peers/peers.h"
#include "moe/base/cpu_info.h"
#include "moe/base/interrupt.h"
#include "moe/cli/common.h"
#include "moe/files/text_file.h"
#include "moe/planner/bench_report.h"
#include "moe/planner/bench_subjects.h"

namespace moe {
namespace {

struct Flags {
  CommonFlags common;
  std::string shapes;
  double seconds = 0.5;
};

struct Bench {
  Flags flags;
  std::map<int, std::unique_ptr<RunContext>> contexts;  // by threads
  std::unique_ptr<CeilingProbe> probe;
  std::vector<BenchResult> results;
};

// "of_dense", "share_of_router": the first word names it.
std::string CounterOf(const BenchResult& r) {
  return (r.reference_is_part ? "share_of_" : "of_") + r.reference.substr(0, r.reference.find_first_of(" ,"));
}

void Run(benchmark::State& state, const BenchCase& c, RunContext& context, Bench& bench) {
  if (InterruptRequested()) return state.SkipWithError("interrupted");
  if (c.memory_bytes > AvailableMemoryBytes()) {
    return state.SkipWithError(fmt::format("needs {} bytes of memory", c.memory_bytes).c_str());
  }
  BenchResult r = RunBench(c, bench.flags.seconds, *bench.probe, context.exec);
  for (auto _ : state) state.SetIterationTime(r.run_s.median);
  using benchmark::Counter;
  state.counters[r.in_bytes ? "bytes_per_s" : "flop_per_s"] = Counter(r.per_s.median, Counter::kDefaults, Counter::kIs1000);
  state.counters["ceiling"] = Counter(r.ceiling.median, Counter::kDefaults, Counter::kIs1000);
  state.counters["fraction"] = r.fraction.median;
  if (!r.reference.empty()) state.counters[CounterOf(r)] = r.reference_ratio.median;
  for (const BoundResult& b : r.bounds) {
    if (r.bounds.size() > 1) state.counters[InBytes(b.ceiling) ? "bytes_s" : "flop_s"] = b.s.median;
  }
  if (r.bounds.size() > 1) state.counters["bounds_differ"] = r.bounds_differ.median;
  if (r.scaled) state.counters["speedup"] = r.speedup.median, state.counters["ceiling_speedup"] = r.ceiling_speedup.median;
  for (const PeerResult& p : r.peers) state.counters["x_" + p.name] = p.ratio.median;
  r.name += fmt::format("/threads:{}", context.pool.num_threads());
  bench.results.push_back(std::move(r));
}

Status Register(const BenchSubject& subject, Bench& bench) {
  BenchShapes shapes = DefaultBenchShapes();
  if (!bench.flags.shapes.empty()) {
    MOE_TRY(const std::string text, ReadTextFile(bench.flags.shapes));
    MOE_TRY(shapes, ParseBenchShapes(text, bench.flags.shapes));
  }
  std::set<int> threads = {bench.flags.common.threads};
  if (bench.flags.common.threads == 0) threads = {1, GetCpuInfo().num_threads};
  for (const int n : threads) {
    MOE_TRY(bench.contexts[n], MakeRunContext({.threads = n}));
    RunContext& context = *bench.contexts[n];
    for (const DType format : {DType::kBf16, DType::kF32}) {
      for (const BenchCase& c : subject.cases(shapes, format, InstalledPeers)) {
        const std::string name = fmt::format("{}/{}/threads:{}", c.group, c.name, n);
        benchmark::RegisterBenchmark(name.c_str(), [=, &context, &bench](benchmark::State& s) { Run(s, c, context, bench); })
            ->UseManualTime()
            ->Iterations(1)  // rounds are its repetitions
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
  return {};
}

// Means per group and number of threads.
void PrintSummaries(std::vector<BenchResult> results) {
  std::map<std::string, std::vector<BenchResult>> groups;
  for (BenchResult& r : results) {
    const std::string format =
        r.name.find("f32") != std::string::npos && r.name.find("bf16") == std::string::npos ? "f32" : "bf16";
    groups[fmt::format("{}, {}, {}", r.group, format, r.name.substr(r.name.rfind('/') + 1))].push_back(std::move(r));
  }
  for (const auto& [name, group] : groups) {
    if (const std::string text = BenchSummary(group); !text.empty()) fmt::print(stderr, "\n{}\n{}", name, text);
  }
}

Status Main(const BenchSubject& subject, Bench& bench) {
  MOE_TRY(CheckJsonTarget(bench.flags.common));
  MOE_TRY(Register(subject, bench));
  InstallInterruptHandler();
  const RunContext& widest = *bench.contexts.rbegin()->second;
  benchmark::AddCustomContext("isa", widest.kernels.name);
  benchmark::AddCustomContext("peers", InstalledPeerNames());
  const MachineProbe machine = ProbeMachine(
      {.max_threads = widest.pool.num_threads(), .seconds = std::min(1.0, bench.flags.seconds)}, widest.kernels, {});
  bench.probe = std::make_unique<CeilingProbe>(-1, widest.kernels);
  benchmark::RunSpecifiedBenchmarks();
  PrintSummaries(bench.results);
  return WriteJsonResult(bench.flags.common, BenchJson(machine, bench.results, InterruptRequested()));
}

}  // namespace

int BenchMain(int argc, char** argv, std::string_view subject_name) {
  PreparePeers(argv);
  const auto subjects = BenchSubjects();
  const auto subject = std::ranges::find(subjects, subject_name, &BenchSubject::name);
  MOE_CHECK(subject != subjects.end(), "no subject '{}'", subject_name);
  Bench bench;
  const bool help = std::any_of(argv, argv + argc, [](const char* a) { return std::string_view(a) == "--help"; });
  if (!help) benchmark::Initialize(&argc, argv);  // takes its own flags out
  CLI::App app(fmt::format("Measures {}, beside {}.", subject->summary, InstalledPeerNames()),
               std::string(subject_name) + "_bench");
  app.add_option("--seconds", bench.flags.seconds, "To spend on each case (default 0.5); three rounds even so")->type_name("X");
  app.add_option("--shapes", bench.flags.shapes, "Shapes to measure (default: a few)")->type_name("FILE");
  AddCommonFlags(app, bench.flags.common);
  SetExamples(app, {{fmt::format("{}_bench --benchmark_filter=bf16/.*/threads:2", subject_name),
                     "Google Benchmark's own flags work too"}});
  if (const auto code = ParseFlags(app, argc, argv)) return *code;
  const Status status = Main(*subject, bench);
  benchmark::Shutdown();
  if (!status) return Fail(status.error());
  return InterruptRequested() ? kExitInterrupted : 0;
}

}  // namespace moe
