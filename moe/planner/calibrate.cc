#include "moe/planner/calibrate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>

#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/base/interrupt.h"
#include "moe/base/version.h"
#include "moe/costs/op_time.h"
#include "moe/ops/attention.h"
#include "moe/ops/gemm.h"
#include "moe/planner/bench_operands.h"
#include "moe/planner/calibrate_points.h"
#include "moe/planner/probe.h"
#include "moe/planner/random_weights.h"

namespace moe {
namespace {

constexpr size_t kPointsPerPace = 16;

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

// Weights that come from memory while m rows are multiplied with them: large ones, and lists of small ones.
constexpr std::array<int64_t, 7> kStreamRows = {1, 2, 4, 8, 16, 32, 64};
constexpr int64_t kMostAtOnce = 8;

struct StreamShape {
  int64_t N, K, at_once;
  double bytes(DType format) const { return static_cast<double>(at_once * PackedWeight::Bytes(format, N, K)); }
};
constexpr StreamShape kOne{2048, 1024, 1}, kSetPart{1024, 1024, 1};
constexpr int64_t kStreamedSet = int64_t{8} << 20;
// Of one row, where memory decides.
constexpr std::array<StreamShape, 5> kStreamShapes = {
    {{2048, 1024, 8}, {512, 512, 8}, {512, 512, 1}, {1024, 1024, 2}, {512, 512, 2}}};

// One sample: seconds per list of so many rows, and the bandwidth beside it.
struct StreamSample {
  StreamShape shape;
  double rows, seconds, bytes_per_s;
};

struct StreamSamples {
  DType format;
  std::vector<StreamSample> products = {};
  std::vector<StreamSample> attention = {};
};

class Streams {
 public:
  Streams(AlignedBytes& buffer, int64_t bytes, ExecContext& ctx) : buffer_(buffer), bytes_(bytes), ctx_(ctx) {
    x_f32_ = operands_.Activations(kStreamRows.back(), kOne.K, DType::kF32, ctx);
    x_bf16_ = operands_.Activations(kStreamRows.back(), kOne.K, DType::kBf16, ctx);
    y_ = operands_.Outputs(kStreamRows.back() * kMostAtOnce, kOne.N / 2, DType::kF32);
  }

  // Seconds per list.
  double Run(DType format, const StreamShape& shape, int64_t rows, double sample_s) {
    return Run(format, shape, rows, sample_s, bytes_);
  }
  // Out of the first `bytes` of the buffer.
  double Run(DType format, const StreamShape& shape, int64_t rows, double sample_s, int64_t bytes) {
    const int64_t one = PackedWeight::Bytes(format, shape.N, shape.K), fit = bytes / one;
    const AnyMat x = format == DType::kF32 ? x_f32_ : x_bf16_;
    const AnyMat in(x.data, x.dtype, rows, shape.K, x.stride);
    const double start = NowSeconds();
    int64_t lists = 0;
    do {
      std::array<PackedWeight, kMostAtOnce> weights;
      std::array<GemmProblem, kMostAtOnce> problems;
      for (int64_t i = 0; i < shape.at_once; ++i) {
        const auto n = static_cast<size_t>(i);
        // Not in order: a prefetcher that runs past the end of one would find the next.
        at_ = (at_ + 7919) % fit;
        weights[n] = {.format = format, .N = shape.N, .K = shape.K, .data = buffer_.get() + at_ * one};
        const int64_t columns = shape.N / 2;
        const AnyMat out(static_cast<std::byte*>(y_.data) + i * rows * columns * SizeOf(format), format, rows, columns,
                         columns);
        problems[n] = {.a = in, .weight = &weights[n], .epilogue = Epilogue::kSwiglu, .c = out};
      }
      GroupedGemm(std::span(problems).first(static_cast<size_t>(shape.at_once)), ctx_);
      ++lists;
    } while (NowSeconds() - start < sample_s);
    return (NowSeconds() - start) / static_cast<double>(lists);
  }

 private:
  AlignedBytes& buffer_;
  int64_t bytes_, at_ = 0;
  ExecContext& ctx_;
  BenchOperands operands_;
  AnyMat x_f32_, x_bf16_, y_;
};

double ComputeS(const MachineProfile& machine, DType format, const StreamShape& shape, double rows) {
  const ProductCost& cost = machine.product(format, ProductKind::kGateUp);
  const double panels = static_cast<double>(shape.at_once * shape.N) / kPanel;
  return panels * (static_cast<double>(shape.K) * cost.step_s.TimeAt(rows) + cost.panel_s.TimeAt(rows));
}

// What comes with a byte, a matrix and a list, and how far computing overlaps: the least mean logarithm of predicted over
// measured, either way.
StreamCost FitStream(const StreamSamples& samples, const MachineProfile& machine) {
  StreamCost best{.format = samples.format};
  std::vector<double> compute_s;
  for (const StreamSample& s : samples.products) compute_s.push_back(ComputeS(machine, samples.format, s.shape, s.rows));
  double least = 1e300;
  for (const double overlap : {1.0, 1.5, 2.0, 3.0, 4.0, 8.0}) {
    for (double efficiency = 0.8; efficiency < 1.21; efficiency += 0.02) {
      for (double matrix_s = 0; matrix_s < 5e-6; matrix_s += 1e-6) {
        for (double list_s = 0; list_s < 13e-6; list_s += 2e-6) {
          double sum = 0;
          for (size_t i = 0; i < compute_s.size(); ++i) {
            const StreamSample& s = samples.products[i];
            const double memory_s = s.shape.bytes(samples.format) / (s.bytes_per_s * efficiency);
            const double time = Overlapped(compute_s[i], memory_s, overlap) + machine.barrier_s + list_s +
                                static_cast<double>(s.shape.at_once) * matrix_s;
            sum += std::abs(std::log(time / s.seconds));
          }
          if (sum < least) least = sum, best = {samples.format, efficiency, overlap, matrix_s, list_s};
        }
      }
    }
  }
  return best;
}

// Keys and values from memory, one row of each sequence.
struct ColdAttention {
  static constexpr int64_t kSequences = 8, kKeys = 128, kHeads = 8, kHeadWidth = 64;
  static constexpr int64_t kValues = kKeys * kHeads * kHeadWidth;  // of the keys of a sequence
  BenchOperands own;
  MatView<float> q, out;
  int64_t at = 0;

  explicit ColdAttention(ExecContext& ctx)
      : q(own.Matrix(kSequences, kHeads * kHeadWidth, ctx)), out(own.Zeros(kSequences, kHeads * kHeadWidth)) {}
  static double bytes() { return static_cast<double>(kSequences * 2 * kValues * 4); }

  double Run(DType format, const float* buffer, int64_t bytes, double sample_s, ExecContext& ctx) {
    const AttentionShape shape{
        .num_heads = kHeads, .num_kv_heads = kHeads, .head_width = kHeadWidth, .scale = 0.125f, .format = format};
    const int64_t fit = bytes / 4 / (2 * kValues);
    const double start = NowSeconds();
    int64_t runs = 0;
    do {
      std::array<AttentionSegment, kSequences> segments;
      for (int64_t i = 0; i < kSequences; ++i) {
        at = (at + 1) % fit;
        const float* k = buffer + at * 2 * kValues;
        segments[static_cast<size_t>(i)] = {.row_begin = i,
                                            .num_rows = 1,
                                            .first_position = kKeys - 1,
                                            .k = k,
                                            .v = k + kValues,
                                            .kv_stride = kHeads * kHeadWidth};
      }
      AttentionForward(shape, q, segments, out, {}, ctx);
      ++runs;
    } while (NowSeconds() - start < sample_s);
    return (NowSeconds() - start) / static_cast<double>(runs);
  }
};

void FitAttention(const StreamSamples& samples, AttentionCost& cost, const MachineProfile& machine) {
  const AttentionOp op{.format = samples.format,
                       .heads = ColdAttention::kHeads,
                       .kv_heads = ColdAttention::kHeads,
                       .head_width = ColdAttention::kHeadWidth,
                       .segments = ColdAttention::kSequences,
                       .rows = 1,
                       .first_position = ColdAttention::kKeys - 1,
                       .kv_working_set = 1e12};
  double least = 1e300;
  for (const double overlap : {1.0, 1.5, 2.0, 4.0}) {
    for (double efficiency = 0.5; efficiency < 1.21; efficiency += 0.02) {
      AttentionCost tried = cost;
      tried.overlap = overlap, tried.efficiency = efficiency;
      double sum = 0;
      for (const StreamSample& s : samples.attention)
        sum += std::abs(std::log(TimeOf(op, tried, {machine, s.bytes_per_s / machine.memory_bytes_per_s()}).s / s.seconds));
      sum += 1e-3 * std::abs(1 - efficiency);  // of equals the one nearest to full efficiency
      if (sum < least) least = sum, cost.overlap = overlap, cost.efficiency = efficiency;
    }
  }
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
       .threads = ctx.pool.num_threads(),
       .l2_bytes = cpu.l2_bytes,
       .l3_bytes = cpu.l3_bytes};

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
  std::vector<StreamSamples> streams = {{.format = DType::kF32}, {.format = DType::kBf16}};
  Streams stream(buffer, buffer_bytes, ctx);
  ColdAttention cold_attention(ctx);
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
    // Sets of weights as products of one row read them; small ones, where those compute, as they are.
    for (WorkingSet& set : sets) {
      if (set.bytes < kStreamedSet) {
        set.samples.push_back(ReadAgain(floats, set.bytes, 2 * options.sample_s, ctx));
        continue;
      }
      const auto rate = [&](int64_t bytes, double spend) {
        return kSetPart.bytes(DType::kBf16) / stream.Run(DType::kBf16, kSetPart, 1, spend, bytes);
      };
      rate(set.bytes, static_cast<double>(set.bytes) / 30e9);  // into the caches, what has room there
      set.samples.push_back(rate(set.bytes, 5 * options.sample_s) / rate(buffer_bytes, 5 * options.sample_s) *
                            ceilings.Sample(Ceiling::kWeights, ctx.pool));
    }
    for (StreamSamples& s : streams) {
      if (!go_on(round, 0.3)) return out;
      const auto sample = [&](std::vector<StreamSample>& to, const StreamShape& shape, int64_t rows, auto&& run) {
        const double bytes_per_s = ceilings.Sample(Ceiling::kWeights, ctx.pool);
        to.push_back({shape, static_cast<double>(rows), run(8 * options.sample_s), bytes_per_s});
      };
      const auto sample_product = [&](const StreamShape& shape, int64_t rows) {
        sample(s.products, shape, rows, [&](double spend) { return stream.Run(s.format, shape, rows, spend); });
      };
      for (const int64_t rows : kStreamRows) sample_product(kOne, rows);
      for (const StreamShape& shape : kStreamShapes) sample_product(shape, 1);
      sample(s.attention, kOne, 1,
             [&](double spend) { return cold_attention.Run(s.format, floats, buffer_bytes, spend, ctx); });
    }
    for (size_t i = 0; i < points.size(); ++i) {
      if (!go_on(round, 0.5 + 0.5 * static_cast<double>(i) / static_cast<double>(points.size()))) return out;
      // Shared machines: how fast the cores are just now, over what they were at first.
      if (i % kPointsPerPace == 0) pace = ceilings.Pace(ctx.pool), paces.push_back(pace);
      CalibrationPoint& p = points[i];
      p.run();
      const double start = NowSeconds();
      int64_t runs = 0;
      do p.run(), ++runs;
      while (NowSeconds() - start < options.sample_s);
      p.samples.push_back((NowSeconds() - start) / static_cast<double>(runs) * pace / paces.front());
      ctx.arena.Reset();
    }
  }

  const auto ceiling = [&](Ceiling c) { return Median(ceiling_samples[static_cast<size_t>(c)]); };
  m.rmw_bytes_per_s = ceiling(Ceiling::kReadModifyWrite), m.optimizer_bytes_per_s = ceiling(Ceiling::kOptimizerStream);
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
  for (size_t i = 0; i < streams.size(); ++i) {
    m.streams.push_back(FitStream(streams[i], m));
    FitAttention(streams[i], m.attention[i], m);
  }
  return out;
}

}  // namespace moe
