#include "moe/planner/calibrate.h"

#include <algorithm>
#include <array>
#include <ctime>

#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/base/interrupt.h"
#include "moe/base/version.h"
#include "moe/planner/calibrate_points.h"
#include "moe/planner/calibrate_step.h"
#include "moe/planner/calibrate_streams.h"
#include "moe/planner/placement.h"
#include "moe/planner/probe.h"
#include "moe/planner/random_weights.h"

namespace moe {
namespace {

constexpr double kPaceShare = 0.25;  // of a sample, before and after it
// Sets of weights from here on are read as products of one row read them; smaller ones, where those compute, as they are.
constexpr int64_t kStreamedSet = int64_t{8} << 20;

constexpr int kMaxRounds = 25;
constexpr double kTimeShare = 0.97;      // of the time: rounds do not all take the same
constexpr double kPatienceShare = 0.25;  // of it, for cores to lie again as they did

double Median(std::vector<double> samples) {
  return Summarize(std::move(samples)).median;
}

std::string Today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", &utc);
  return text;
}

// Rates of reading a set again and again, by its size.
struct WorkingSet {
  int64_t bytes;
  PlacedSamples samples = {};
};

double ReadAgain(const float* from, int64_t bytes, double sample_s, ExecContext& ctx) {
  constexpr int64_t kPiece = int64_t{64} << 10;
  const int64_t pieces = bytes / kPiece;
  const auto pass = [&] {
    ctx.pool.ParallelFor(
        pieces, [&](int64_t i, int) { static_cast<void>(ctx.kernels.sum_squares(from + i * kPiece / 4, kPiece / 4)); });
  };
  pass();
  const double start = NowSeconds();
  int64_t passes = 0;
  do pass(), ++passes;
  while (NowSeconds() - start < sample_s);
  return static_cast<double>(passes * bytes) / (NowSeconds() - start);
}

}  // namespace

bool FitsAnotherRound(int rounds, double left_s, double round_s) {
  return rounds < kMaxRounds && round_s <= kTimeShare * left_s;
}

Calibration Calibrate(const CalibrateOptions& options, const std::function<void(double)>& progress, ExecContext& ctx) {
  const double began = NowSeconds();
  Calibration out;
  MachineProfile& m = out.machine;
  const CpuInfo& cpu = GetCpuInfo();
  m = {.name = "this machine",
       .cpu = cpu.name,
       .isa = ctx.kernels.name,
       .version = Version(),
       .date = Today(),
       .source = "measured by moe probe",
       .revision = kProfileRevision,
       .threads = ctx.pool.num_threads(),
       .l2_bytes = cpu.l2_bytes,
       .l3_bytes = cpu.l3_bytes,
       .memory_bytes = TotalMemoryBytes()};

  const int64_t buffer_bytes = options.buffer_bytes > 0 ? options.buffer_bytes : CeilingProbe::DefaultBytes();
  AlignedBytes buffer = AllocateAligned(static_cast<size_t>(buffer_bytes));
  FillRandomWeights({buffer.get(), static_cast<size_t>(buffer_bytes)}, 1, ctx);
  const float* floats = reinterpret_cast<const float*>(buffer.get());
  CeilingProbe ceilings(options.buffer_bytes, ctx.kernels);
  std::array<PlacedSamples, kNumCeilings> ceiling_samples;
  std::vector<WorkingSet> sets;
  for (int64_t bytes = int64_t{256} << 10; bytes < buffer_bytes; bytes *= 2) {
    sets.push_back({bytes});
    if (bytes >= kStreamedSet && bytes + bytes / 2 < buffer_bytes) sets.push_back({bytes + bytes / 2});
  }
  StreamCalibration streams({buffer.get(), static_cast<size_t>(buffer_bytes)}, ctx);
  StepCalibration step(ctx);
  CalibrationPoints points;
  for (auto make : {ProductPoints, RowOpPoints, RoutingPoints, AttentionPoints, SwitchPoints}) {
    for (CalibrationPoint& p : make(m, ctx)) points.push_back(std::move(p));
  }

  const auto go_on = [&](double share_of_round) {
    const double of_time = (NowSeconds() - began) / std::max(options.seconds, 1e-9);
    if (progress) progress(std::min({1.0, of_time, out.rounds + share_of_round}));
    if (InterruptRequested()) out.interrupted = true;
    return !out.interrupted;
  };
  Placement placement(0, kPatienceShare * options.seconds);
  // In another placement than the wanted one no samples are taken but the first.
  double longest = 0;  // of the rounds: the last one has no time for waiting
  const auto may_wait = [&] { return !InterruptRequested() && NowSeconds() - began < options.seconds - longest; };
  const auto here = [&] { return placement.Await(ctx.pool, may_wait) || out.rounds == 0; };
  PlacedSamples paces;
  // Shared machines: how fast the cores are just now.
  const auto pace = [&] {
    paces.Add(ceilings.Pace(ctx.pool, kPaceShare * options.sample_s), placement);
    return paces.values.back();
  };
  const auto round = [&] {
    for (size_t c = 0; c < kNumCeilings; ++c) {
      if (!go_on(0.2 * static_cast<double>(c) / kNumCeilings)) return;
      if (here()) ceiling_samples[c].Add(ceilings.Sample(static_cast<Ceiling>(c), ctx.pool), placement);
    }
    for (WorkingSet& set : sets) {
      if (!here()) continue;
      if (set.bytes < kStreamedSet) {
        set.samples.Add(ReadAgain(floats, set.bytes, 2 * options.sample_s, ctx), placement);
        continue;
      }
      streams.WeightsOfOneRow(set.bytes, static_cast<double>(set.bytes) / 30e9);  // into the caches, what has room there
      set.samples.Add(streams.WeightsOfOneRow(set.bytes, 5 * options.sample_s) /
                          streams.WeightsOfOneRow(buffer_bytes, 5 * options.sample_s),
                      placement);
    }
    if (!go_on(0.3)) return;
    streams.Round(ceilings, 8 * options.sample_s, here, placement);
    if (here()) step.Round(options.sample_s, placement);
    for (size_t i = 0; i < points.size(); ++i) {
      if (!go_on(0.5 + 0.5 * static_cast<double>(i) / static_cast<double>(points.size()))) return;
      CalibrationPoint& p = points[i];
      if (!here()) continue;
      if (options.sample_s > 0) p.run();  // for once, rough will do
      const double pace_before = pace();
      const double start = NowSeconds();
      int64_t runs = 0;
      do p.run(), ++runs;
      while (NowSeconds() - start < options.sample_s);
      const double run_s = (NowSeconds() - start) / static_cast<double>(runs);
      p.samples.Add(run_s * (pace_before + pace()) / 2, placement);
      ctx.arena.Reset();
    }
  };
  do {
    const double start = NowSeconds();
    round();
    if (out.interrupted) return out;
    longest = std::max(longest, NowSeconds() - start);
    ++out.rounds, placement.Want(BestPlacement(paces));
  } while (FitsAnotherRound(out.rounds, options.seconds - (NowSeconds() - began), longest));

  m.handover_s = placement.wanted_s();
  const auto median = [&m](const PlacedSamples& samples) { return Median(samples.Of(m.handover_s)); };
  const auto ceiling = [&](Ceiling c) { return median(ceiling_samples[static_cast<size_t>(c)]); };
  m.rmw_bytes_per_s = ceiling(Ceiling::kReadModifyWrite);
  m.peak_f32 = ceiling(Ceiling::kPeakF32), m.peak_bf16 = ceiling(Ceiling::kPeakBf16), m.peak_int8 = ceiling(Ceiling::kPeakInt8);
  m.barrier_s = ceiling(Ceiling::kBarrier);
  const double memory_bytes_per_s = Median(streams.MemorySamples(m.handover_s));
  for (const WorkingSet& set : sets) {
    const double unit = set.bytes < kStreamedSet ? 1 : memory_bytes_per_s;
    m.weights_bytes_per_s.points.push_back({static_cast<double>(set.bytes), unit * median(set.samples)});
  }
  m.weights_bytes_per_s.points.push_back({static_cast<double>(ceilings.buffer_bytes()), memory_bytes_per_s});
  m.read_bytes_per_s = ceiling(Ceiling::kRead);
  m.weights_bytes_per_s = NeverRising(std::move(m.weights_bytes_per_s));
  m.pace_flop_per_s = median(paces);
  for (CalibrationPoint& p : points) p.use(median(p.samples) / m.pace_flop_per_s);
  streams.Fit(m);
  step.Fit(m);
  return out;
}

}  // namespace moe
