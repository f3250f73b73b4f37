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
#include "moe/planner/probe.h"
#include "moe/planner/random_weights.h"

namespace moe {
namespace {

constexpr size_t kPointsPerPace = 16;
// Sets of weights from here on are read as products of one row read them; smaller ones, where those compute, as they are.
constexpr int64_t kStreamedSet = int64_t{8} << 20;

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
  std::vector<double> samples = {};
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

Calibration Calibrate(const CalibrateOptions& options, const std::function<void(double)>& progress, ExecContext& ctx) {
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
  std::array<std::vector<double>, kNumCeilings> ceiling_samples;
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

  const auto go_on = [&](int round, double share) {
    if (progress) progress((round + share) / options.rounds);
    if (InterruptRequested()) out.interrupted = true;
    return !out.interrupted;
  };
  std::vector<double> paces;
  double pace = 1;
  for (int round = 0; round < options.rounds; ++round) {
    for (size_t c = 0; c < kNumCeilings; ++c) {
      if (!go_on(round, 0.2 * static_cast<double>(c) / kNumCeilings)) return out;
      ceiling_samples[c].push_back(ceilings.Sample(static_cast<Ceiling>(c), ctx.pool));
    }
    for (WorkingSet& set : sets) {
      if (set.bytes < kStreamedSet) {
        set.samples.push_back(ReadAgain(floats, set.bytes, 2 * options.sample_s, ctx));
        continue;
      }
      streams.WeightsOfOneRow(set.bytes, static_cast<double>(set.bytes) / 30e9);  // into the caches, what has room there
      set.samples.push_back(streams.WeightsOfOneRow(set.bytes, 5 * options.sample_s) /
                            streams.WeightsOfOneRow(buffer_bytes, 5 * options.sample_s) *
                            ceilings.Sample(Ceiling::kWeights, ctx.pool));
    }
    if (!go_on(round, 0.3)) return out;
    streams.Round(ceilings, 8 * options.sample_s);
    step.Round(options.sample_s);
    for (size_t i = 0; i < points.size(); ++i) {
      if (!go_on(round, 0.5 + 0.5 * static_cast<double>(i) / static_cast<double>(points.size()))) return out;
      // Shared machines: how fast the cores are just now, over what they were at first.
      if (i % kPointsPerPace == 0) pace = ceilings.Pace(ctx.pool), paces.push_back(pace);
      CalibrationPoint& p = points[i];
      if (options.sample_s > 0) p.run();  // for once, rough will do
      const double start = NowSeconds();
      int64_t runs = 0;
      do p.run(), ++runs;
      while (NowSeconds() - start < options.sample_s);
      p.samples.push_back((NowSeconds() - start) / static_cast<double>(runs) * pace / paces.front());
      ctx.arena.Reset();
    }
  }

  const auto ceiling = [&](Ceiling c) { return Median(ceiling_samples[static_cast<size_t>(c)]); };
  m.rmw_bytes_per_s = ceiling(Ceiling::kReadModifyWrite);
  m.peak_f32 = ceiling(Ceiling::kPeakF32), m.peak_bf16 = ceiling(Ceiling::kPeakBf16), m.peak_int8 = ceiling(Ceiling::kPeakInt8);
  m.barrier_s = ceiling(Ceiling::kBarrier);
  for (const WorkingSet& set : sets) {
    m.weights_bytes_per_s.points.push_back({static_cast<double>(set.bytes), Median(set.samples)});
  }
  m.weights_bytes_per_s.points.push_back({static_cast<double>(ceilings.buffer_bytes()), ceiling(Ceiling::kWeights)});
  m.read_bytes_per_s = ceiling(Ceiling::kRead);
  m.weights_bytes_per_s = NeverRising(std::move(m.weights_bytes_per_s));
  const double typical = Median(paces) / paces.front();
  for (CalibrationPoint& p : points) p.use(Median(p.samples) / typical);
  m.pace_flop_per_s = Median(paces);
  streams.Fit(m);
  step.Fit(m);
  return out;
}

}  // namespace moe
