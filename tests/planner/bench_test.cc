#include "moe/planner/bench.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "moe/base/clock.h"
#include "moe/planner/bench_operands.h"
#include "moe/planner/bench_report.h"
#include "moe/planner/bench_subjects.h"

namespace moe {
namespace {

struct Bench {
  ThreadPool pool{2};
  Arena arena;
  ExecContext ctx{pool, arena, **SelectKernelTable()};
  CeilingProbe probe{int64_t{4} << 20, ctx.kernels};
};

void ExpectOrdered(const Measured& m) {
  EXPECT_GT(m.min, 0);
  EXPECT_LE(m.min, m.median);
  EXPECT_LE(m.median, m.max);
}

// Runs that spin for so many microseconds.
std::function<void()> Spin(double us, int* calls) {
  return [=] {
    ++*calls;
    for (const double end = NowSeconds() + us * 1e-6; NowSeconds() < end;) {
    }
  };
}

TEST(RunBench, RunsEverythingInEveryRoundAndNamesTheFastestPeerFirst) {
  Bench b;
  int own = 0, reference = 0, slow = 0, fast = 0;
  const BenchCase c{.group = "dense",
                    .name = "x",
                    .bounds = {{Ceiling::kPeakF32, 1e6}},
                    .reference = {.name = "half", .work = 5e5},
                    .prepare = [&](ExecContext&) {
                      return BenchRun{.run = Spin(500, &own),
                                      .reference = Spin(500, &reference),
                                      .peers = {{"slow", Spin(40000, &slow)}, {"fast", Spin(100, &fast)}}};
                    }};
  const BenchResult r = RunBench(c, 0, b.probe, b.ctx);
  EXPECT_EQ(r.group, "dense");
  EXPECT_EQ(r.name, "x");
  EXPECT_FALSE(r.in_bytes);
  EXPECT_EQ(r.rounds, 3);
  EXPECT_GE(own, 2 + 3);
  EXPECT_GE(reference, 2 + 3);
  EXPECT_EQ(slow, 2 + 3);  // long enough alone, too long to be warmed
  EXPECT_GE(fast, 2 + 3);
  for (const Measured* m : {&r.run_s, &r.per_s, &r.ceiling, &r.fraction, &r.reference_ratio}) ExpectOrdered(*m);
  EXPECT_GE(r.run_s.min, 500e-6);
  EXPECT_LE(r.per_s.max, 1e6 / 500e-6);
  EXPECT_EQ(r.reference, "half");
  ASSERT_EQ(r.peers.size(), 2u);
  EXPECT_EQ(r.peers[0].name, "fast");
  EXPECT_EQ(r.peers[1].name, "slow");
  EXPECT_LT(r.peers[0].ratio.median, r.peers[1].ratio.median);
}

TEST(RunBench, TheSlowestBoundCounts) {
  Bench b;
  int calls = 0;
  BenchCase c{.group = "decode",
              .name = "x",
              .bounds = {{Ceiling::kReadChunks, 1e3}, {Ceiling::kPeakF32, 1e15}},
              .prepare = [&](ExecContext&) { return BenchRun{.run = Spin(1, &calls)}; }};
  const BenchResult flop = RunBench(c, 0, b.probe, b.ctx);
  EXPECT_TRUE(flop.in_bytes);
  EXPECT_LT(flop.ceiling.max, 1e6);  // 1e3 bytes in the time of 1e15 FLOP
  c.bounds[1].work = 1;
  EXPECT_GT(RunBench(c, 0, b.probe, b.ctx).ceiling.min, 1e6);
  EXPECT_TRUE(flop.reference.empty());
  EXPECT_TRUE(flop.peers.empty());
  ASSERT_EQ(flop.bounds.size(), 2u);
  EXPECT_EQ(flop.bounds[0].ceiling, Ceiling::kReadChunks);
  EXPECT_EQ(flop.bounds[1].ceiling, Ceiling::kPeakF32);
  for (const BoundResult& bound : flop.bounds) ExpectOrdered(bound.s);
  EXPECT_GT(flop.bounds[1].s.min, flop.bounds[0].s.max);
  EXPECT_GE(flop.bounds_differ.min, flop.bounds[1].s.min / flop.bounds[0].s.max);
  EXPECT_LE(flop.bounds_differ.max, flop.bounds[1].s.max / flop.bounds[0].s.min);
}

TEST(RunBench, AReferenceWithOtherThreadsIsHeldAgainstItsOwnCeiling) {
  Bench b;
  int calls = 0, other_calls = 0;
  const auto one = std::make_shared<ThreadPool>(1);
  BenchCase c{.group = "grouped",
              .name = "x",
              .bounds = {{Ceiling::kPeakF32, 1e6}},
              .reference = {.name = "one thread"},
              .prepare = [&](ExecContext&) {
                return BenchRun{.run = Spin(500, &calls), .reference = Spin(1000, &other_calls), .reference_pool = one};
              }};
  const BenchResult r = RunBench(c, 0, b.probe, b.ctx);
  EXPECT_GE(other_calls, r.rounds);
  ASSERT_TRUE(r.scaled);
  for (const Measured* m : {&r.speedup, &r.ceiling_speedup, &r.reference_ratio}) ExpectOrdered(*m);
  EXPECT_GE(r.reference_ratio.min, r.speedup.min / r.ceiling_speedup.max);
  EXPECT_LE(r.reference_ratio.max, r.speedup.max / r.ceiling_speedup.min);
  c.prepare = [&](ExecContext&) { return BenchRun{.run = Spin(1, &calls), .reference = Spin(1, &other_calls)}; };
  EXPECT_FALSE(RunBench(c, 0, b.probe, b.ctx).scaled);
}

TEST(ColdCount, GoesThroughMoreThanTheCachesHold) {
  const int64_t bytes = int64_t{1} << 20, most = CeilingProbe::DefaultBytes();
  EXPECT_GT(ColdCount(bytes) * bytes, most);
  EXPECT_LE((ColdCount(bytes) - 1) * bytes, most);
  EXPECT_EQ(ColdCount(1), 4096);
  EXPECT_EQ(ColdCount(most + 1), 2);
  EXPECT_EQ(ColdCount(100, 1000), 11);
}

// Every case of every subject, at sizes around nothing.
TEST(BenchSubjects, EveryCaseRunsOnTinyShapes) {
  Bench b;
  auto shapes = ParseBenchShapes(
      "gemm 3 33 5\ngemm 17 40 18\ngemm 65 40 18\nmoe 64 32 16 4 2\nmoe 5 16 32 3 3\nmoe 48 16 16 3 1\nmoe 256 16 16 3 2\n"
      "moe 4096 16 16 2 2\nsparse 512 256 24\nattention 70 4 2 16\nadamw 1000\n",
      "tiny");
  ASSERT_TRUE(shapes.has_value()) << shapes.error().Message();
  shapes->cold_bytes = 1 << 16;  // a few in turn will do: nothing is timed
  int prompts = 0;               // 256 tokens
  for (const BenchSubject& subject : BenchSubjects()) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      const auto cases = subject.cases(*shapes, format, nullptr);
      EXPECT_FALSE(cases.empty()) << subject.name;
      for (const BenchCase& c : cases) {
        SCOPED_TRACE(c.group + "/" + c.name);
        EXPECT_NE(c.name.find(Name(format)), std::string::npos);
        prompts += c.name.find("/prompt/") != std::string::npos ? 1 : 0;
        BenchRun run = c.prepare(b.ctx);
        ASSERT_TRUE(run.run != nullptr);
        run.run(), run.run();
        EXPECT_EQ(run.reference != nullptr, !c.reference.name.empty());
        if (run.reference) run.reference();
        EXPECT_FALSE(c.bounds.empty());
        for (const Bound& bound : c.bounds) EXPECT_GT(bound.work, 0);
      }
    }
  }
  EXPECT_EQ(prompts, 2);
}

TEST(BenchSubjects, PeersAreGivenOurResult) {
  Bench b;
  int made = 0;
  const GemmPeers peers = [&](const PeerProduct& p) {
    ++made;
    const MatView<const float> w = p.weight(0);
    double sum = 0;
    for (int64_t k = 0; k < p.shape.K; ++k) sum += static_cast<double>(p.x(2, k)) * w(1, k);
    EXPECT_NEAR(p.y(2, 1), sum, 1e-5);  // 40 products of 0.02 in float32
    EXPECT_EQ(p.threads, 2);
    return std::vector<BenchPeer>{{"twin", [] {}}};
  };
  const BenchRun run = DenseCase({20, 32, 40}, DType::kF32, peers).prepare(b.ctx);
  EXPECT_EQ(made, 1);
  ASSERT_EQ(run.peers.size(), 1u);
  EXPECT_EQ(run.peers[0].name, "twin");
}

TEST(BenchReport, TextAndJsonHaveEveryFigure) {
  const Measured m{.median = 0.5, .min = 0.25, .max = 1};
  BenchResult r{.group = "dense",
                .name = "bf16/1x2x3",
                .rounds = 3,
                .run_s = m,
                .per_s = {.median = 2e9, .min = 1e9, .max = 3e9},
                .ceiling = {.median = 4e9, .min = 4e9, .max = 4e9},
                .fraction = m,
                .reference = "forward",
                .reference_ratio = m,
                .peers = {{"onednn", {.median = 1.25, .min = 1, .max = 1.5}}, {"other", m}}};
  const std::string row = BenchRow(r, 20);
  for (const char* part : {"dense/bf16/1x2x3", "2.00 GFLOP/s", "4.00 GFLOP/s", "0.500 (0.250 to 1.000)", "of forward",
                           "onednn 1.250x (1.000 to 1.500)", "other 0.500x"}) {
    EXPECT_NE(row.find(part), std::string::npos) << part << " in " << row;
  }
  BenchResult other = r;
  other.name = "b", other.fraction.median = 0.125, other.peers.clear();
  const BenchResult both[] = {r, other};
  EXPECT_NE(BenchSummary(both).find("geometric mean 0.250, least 0.125 at b"), std::string::npos) << BenchSummary(both);
  EXPECT_EQ(BenchSummary(std::span(both).first(1)), "");
  EXPECT_EQ(row.find("bounds"), std::string::npos) << row;  // one bound is the ceiling

  MachineProbe machine{.cpu = "c", .isa = "i", .by_threads = {CeilingsOf{.threads = 2}}, .rounds = 3};
  other.in_bytes = true;
  const BenchResult two[] = {r, other};
  const nlohmann::json j = BenchJson(machine, two, false);
  EXPECT_EQ(j["ceilings"]["threads"], 2);
  EXPECT_TRUE(j["ceilings"]["peak_flop_per_s"].contains("bf16"));
  ASSERT_EQ(j["cases"].size(), 2u);
  const nlohmann::json& c = j["cases"][0];
  EXPECT_EQ(c["group"], "dense");
  EXPECT_EQ(c["name"], "bf16/1x2x3");
  EXPECT_EQ(c["flop_per_s"], 2e9);
  EXPECT_EQ(c["fraction"], 0.5);
  EXPECT_EQ(c["fraction_min"], 0.25);
  EXPECT_EQ(c["reference"], "forward");
  EXPECT_EQ(c["peer"], "onednn");
  EXPECT_EQ(c["peer_ratio"], 1.25);
  EXPECT_EQ(c["peers"].size(), 2u);
  EXPECT_EQ(j["cases"][1]["bytes_per_s"], 2e9);
  EXPECT_FALSE(j["cases"][1].contains("peer"));
  EXPECT_FALSE(j["cases"][1].contains("flop_per_s"));
  EXPECT_FALSE(c.contains("kind"));
  EXPECT_FALSE(c.contains("bounds_differ"));
  EXPECT_FALSE(c.contains("speedup"));
}

Measured Always(double x) {
  return {.median = x, .min = x, .max = x};
}

void ExpectHas(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
}

TEST(BenchReport, BothBoundsAreShownAndTheRidgeIsSummarisedApart) {
  const auto decode = [](const char* name, double read_s, double peak_s, double fraction) {
    return BenchResult{.group = "decode",
                       .name = name,
                       .kind = "2 tokens and more",
                       .in_bytes = true,
                       .rounds = 3,
                       .run_s = Always(1),
                       .per_s = Always(1e9),
                       .ceiling = Always(2e9),
                       .fraction = Always(fraction),
                       .bounds = {{Ceiling::kReadChunks, Always(read_s)}, {Ceiling::kPeakBf16, Always(peak_s)}},
                       .bounds_differ = Always(std::max(read_s, peak_s) / std::min(read_s, peak_s))};
  };
  const std::vector<BenchResult> rows = {decode("a", 4e-3, 1e-3, 0.9), decode("b", 2e-3, 1e-3, 0.4),
                                         decode("c", 1e-3, 1.5e-3, 0.7)};
  ExpectHas(BenchRow(rows[0], 20), {"bounds chunk_read 4000.0 us, peak 1000.0 us: 4.00x"});
  ExpectHas(BenchSummary(rows), {"  2 tokens and more\n", "bounds differ by 2x:      geometric mean 0.600, least 0.400 at b",
                                 "at the ridge:             geometric mean 0.700, least 0.700 at c"});
  const nlohmann::json c = BenchJson({.by_threads = {CeilingsOf{}}}, rows, false)["cases"][2];
  EXPECT_EQ(c["bounds_s"], (nlohmann::json{{"chunk_read", 1e-3}, {"peak", 1.5e-3}}));
  EXPECT_EQ(c["bounds_differ"], 1.5e-3 / 1e-3);
  EXPECT_EQ(c["kind"], "2 tokens and more");
}

TEST(BenchReport, KindsReferencesAndPeersAreNeverPooled) {
  const auto row = [](const char* name, const char* kind, const char* reference, double ratio, double onednn, double libxsmm) {
    BenchResult r{.group = "grouped", .name = name, .kind = kind, .rounds = 3, .fraction = Always(0.5)};
    r.reference = reference, r.reference_ratio = Always(ratio);
    r.peers = {{"libxsmm", Always(libxsmm)}, {"onednn", Always(onednn)}};
    return r;
  };
  const std::vector<BenchResult> rows = {row("a", "balanced", "dense", 0.9, 2, 1),  row("b", "balanced", "grouped", 0.2, 4, 1),
                                         row("c", "balanced", "dense", 0.4, 8, 1),  row("d", "balanced", "grouped", 0.8, 1, 1),
                                         row("e", "zipf", "dense", 0.01, 0.1, 0.1), row("f", "alone", "dense", 0.001, 1, 1)};
  const std::string text = BenchSummary(rows);
  ExpectHas(text, {"of dense:                   geometric mean 0.600, least 0.400 at c",
                   "of grouped:                 geometric mean 0.400, least 0.200 at b",
                   "onednn's time/ours:         geometric mean 2.828, least 1.000 at d",
                   "libxsmm's time/ours:        geometric mean 1.000, least 1.000", "best peer's time/ours:"});
  EXPECT_EQ(text.find("zipf"), std::string::npos) << text;  // of one row there is no mean
  EXPECT_EQ(text.find("alone"), std::string::npos) << text;
}

TEST(BenchReport, ScalingNamesBothSpeedUps) {
  BenchResult r{.group = "grouped", .name = "x", .rounds = 3, .fraction = Always(0.5), .reference = "one thread"};
  r.reference_ratio = Always(0.95), r.scaled = true, r.speedup = Always(1.9), r.ceiling_speedup = Always(2);
  ExpectHas(BenchRow(r, 10), {"0.950 (0.950 to 0.950) of one thread: 1.900x, ceiling 2.000x"});
  const nlohmann::json c = BenchJson({.by_threads = {CeilingsOf{}}}, {&r, 1}, false)["cases"][0];
  EXPECT_EQ(c["reference_ratio"], 0.95);
  EXPECT_EQ(c["speedup"], 1.9);
  EXPECT_EQ(c["ceiling_speedup"], 2);
}

}  // namespace
}  // namespace moe
