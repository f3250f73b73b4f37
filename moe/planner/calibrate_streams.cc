#include "moe/planner/calibrate_streams.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "moe/base/clock.h"
#include "moe/costs/op_time.h"
#include "moe/ops/attention.h"
#include "moe/ops/gemm.h"
#include "moe/ops/optimizer_step.h"
#include "moe/planner/bench_operands.h"
#include "moe/planner/bench_optimizer.h"
#include "moe/planner/probe.h"

namespace moe {
namespace {

struct StreamShape {
  int64_t N, K, at_once;
};
struct StreamPoint {
  StreamShape shape;
  int64_t rows;
};
constexpr int64_t kMostAtOnce = 8, kMostSide = 2048, kMostWeightRows = 64, kMostGradRows = 256;
// Large matrices and lists of small ones; of one row, where memory decides, more of them.
constexpr StreamPoint kWeightPoints[] = {{{2048, 1024, 1}, 1},  {{2048, 1024, 1}, 2},  {{2048, 1024, 1}, 4},
                                         {{2048, 1024, 1}, 8},  {{2048, 1024, 1}, 16}, {{2048, 1024, 1}, 32},
                                         {{2048, 1024, 1}, 64}, {{2048, 1024, 8}, 1},  {{512, 512, 8}, 1},
                                         {{512, 512, 1}, 1},    {{1024, 1024, 2}, 1},  {{512, 512, 2}, 1}};
// Lists of gradients lie side by side, as those of a model do.
constexpr StreamPoint kGradPoints[] = {{{1024, 1024, 8}, 1},   {{1024, 1024, 8}, 16}, {{1024, 1024, 8}, 64},
                                       {{1024, 1024, 8}, 256}, {{512, 512, 8}, 1},    {{512, 512, 8}, 4},
                                       {{512, 512, 8}, 16},    {{512, 512, 8}, 64}};
constexpr StreamShape kSetPart{1024, 1024, 1};

// What a list of products brings from memory, and takes back.
double BytesOf(DType format, bool gradients, const StreamShape& s) {
  return static_cast<double>(s.at_once * (gradients ? 2 * 4 * s.N * s.K : PackedWeight::Bytes(format, s.N, s.K)));
}

// One sample: seconds of a run, and the bandwidth beside it.
struct Sample {
  StreamPoint point;
  double seconds, bytes_per_s, handover_s;
};

// Runs for sample_s at least: seconds per run.
template <class F>
double SecondsPerRun(double sample_s, F&& run) {
  const double start = NowSeconds();
  int64_t runs = 0;
  do run(), ++runs;
  while (NowSeconds() - start < sample_s);
  return (NowSeconds() - start) / static_cast<double>(runs);
}

// Products with weights out of a buffer, each of another place.
class ColdProducts {
 public:
  ColdProducts(std::span<std::byte> buffer, ExecContext& ctx) : buffer_(buffer), ctx_(ctx) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      const auto i = static_cast<size_t>(format == DType::kBf16);
      x_[i] = operands_.Activations(kMostGradRows, kMostSide, format, ctx);
      zeros_[i] = operands_.Outputs(kMostGradRows, kMostSide, format);
    }
    y_ = operands_.Outputs(kMostWeightRows * kMostAtOnce, kMostSide / 2, DType::kF32);
  }

  double Weights(DType format, const StreamPoint& p, double sample_s, int64_t bytes) {
    const auto& [N, K, at_once] = p.shape;
    const int64_t columns = N / 2;
    const AnyMat in = Part(x_, format, p.rows, K);
    return SecondsPerRun(sample_s, [&, N = N, K = K, at_once = at_once] {
      std::array<PackedWeight, kMostAtOnce> weights;
      std::array<GemmProblem, kMostAtOnce> problems;
      for (int64_t i = 0; i < at_once; ++i) {
        const auto n = static_cast<size_t>(i);
        weights[n] = {.format = format, .N = N, .K = K, .data = Next(PackedWeight::Bytes(format, N, K), bytes)};
        std::byte* out = static_cast<std::byte*>(y_.data) + i * p.rows * columns * SizeOf(format);
        problems[n] = {
            .a = in, .weight = &weights[n], .epilogue = Epilogue::kSwiglu, .c = AnyMat(out, format, p.rows, columns, columns)};
      }
      GroupedGemm(std::span(problems).first(static_cast<size_t>(at_once)), ctx_);
    });
  }

  // What is added is 0: the buffer keeps its values.
  double Gradients(DType format, const StreamPoint& p, double sample_s) {
    const auto& [N, K, at_once] = p.shape;
    const AnyMat x = Part(x_, format, p.rows, K), d_y = Part(zeros_, format, p.rows, N);
    return SecondsPerRun(sample_s, [&, N = N, K = K, at_once = at_once] {
      std::array<WeightGradProblem, kMostAtOnce> problems;
      for (int64_t i = 0; i < at_once; ++i) {
        at_ = (at_ + 1) % (std::ssize(buffer_) / (4 * N * K));
        auto* d_w = reinterpret_cast<float*>(buffer_.data() + at_ * 4 * N * K);
        problems[static_cast<size_t>(i)] = {.d_y = d_y, .x = x, .d_w = {d_w, N, K}, .format = format};
      }
      GroupedWeightGrad(std::span(problems).first(static_cast<size_t>(at_once)), ctx_);
    });
  }

 private:
  using OfFormats = std::array<AnyMat, 2>;
  static AnyMat Part(const OfFormats& of, DType format, int64_t rows, int64_t columns) {
    const AnyMat& whole = of[static_cast<size_t>(format == DType::kBf16)];
    return AnyMat(whole.data, format, rows, columns, whole.stride);
  }
  // Not in order: a prefetcher that runs past the end of one would find the next.
  std::byte* Next(int64_t one, int64_t bytes) {
    at_ = (at_ + 7919) % (bytes / one);
    return buffer_.data() + at_ * one;
  }

  std::span<std::byte> buffer_;
  ExecContext& ctx_;
  BenchOperands operands_;
  OfFormats x_, zeros_;
  AnyMat y_;
  int64_t at_ = 0;
};

// Keys and values from memory, one row of each sequence.
struct ColdAttention {
  static constexpr int64_t kSequences = 8, kKeys = 128, kHeads = 8, kHeadWidth = 64;
  static constexpr int64_t kValues = kKeys * kHeads * kHeadWidth;  // of the keys of a sequence
  std::span<const float> buffer;
  BenchOperands own;
  MatView<float> q, out;
  int64_t at = 0;

  ColdAttention(std::span<const float> from, ExecContext& ctx)
      : buffer(from), q(own.Matrix(kSequences, kHeads * kHeadWidth, ctx)), out(own.Zeros(kSequences, kHeads * kHeadWidth)) {}
  static AttentionOp Op(DType format) {
    return {.format = format,
            .heads = kHeads,
            .kv_heads = kHeads,
            .head_width = kHeadWidth,
            .segments = kSequences,
            .rows = 1,
            .first_position = kKeys - 1,
            .kv_working_set = 1e12};
  }

  double Run(DType format, double sample_s, ExecContext& ctx) {
    const AttentionShape shape{
        .num_heads = kHeads, .num_kv_heads = kHeads, .head_width = kHeadWidth, .scale = 0.125f, .format = format};
    const int64_t fit = std::ssize(buffer) / (2 * kValues);
    return SecondsPerRun(sample_s, [&] {
      std::array<AttentionSegment, kSequences> segments;
      for (int64_t i = 0; i < kSequences; ++i) {
        at = (at + 1) % fit;
        const float* k = buffer.data() + at * 2 * kValues;
        segments[static_cast<size_t>(i)] = {.row_begin = i,
                                            .num_rows = 1,
                                            .first_position = kKeys - 1,
                                            .k = k,
                                            .v = k + kValues,
                                            .kv_stride = kHeads * kHeadWidth};
      }
      AttentionForward(shape, q, segments, out, {}, ctx);
    });
  }
};

// Everything that is measured with weights of one format.
struct OfFormat {
  DType format;
  std::vector<Sample> weights = {}, gradients = {}, attention = {};
};

std::vector<Sample> InPlacement(std::vector<Sample> samples, double handover_s) {
  const auto elsewhere = [&](const Sample& s) { return !SamePlacement(s.handover_s, handover_s); };
  if (!std::ranges::all_of(samples, elsewhere)) std::erase_if(samples, elsewhere);
  return samples;
}

double ComputeS(const MachineProfile& machine, DType format, bool gradients, const StreamPoint& p) {
  const ProductCost& cost = machine.product(format, gradients ? ProductKind::kWeightGrad : ProductKind::kGateUp);
  const double panels = static_cast<double>(p.shape.at_once * p.shape.N) / kPanel, rows = static_cast<double>(p.rows);
  return panels * cost.PanelSeconds(rows, static_cast<double>(p.shape.K));
}

// What comes with a byte, a matrix and a list, and how far computing overlaps: the least mean logarithm of predicted over
// measured, either way.
StreamCost FitStream(DType format, bool gradients, const std::vector<Sample>& samples, const MachineProfile& machine) {
  StreamCost best{.format = format, .gradients = gradients};
  std::vector<double> compute_s;
  for (const Sample& s : samples) compute_s.push_back(ComputeS(machine, format, gradients, s.point));
  const double most = gradients ? 3 : 1.2;  // a read and its write back count twice, and cost less
  double least = 1e300;
  for (const double overlap : {1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0}) {
    for (double efficiency = 0.8; efficiency < most + 0.01; efficiency += 0.02) {
      for (double matrix_s = 0; matrix_s < 5e-6; matrix_s += 1e-6) {
        for (double list_s = 0; list_s < 13e-6; list_s += 2e-6) {
          double sum = 0;
          for (size_t i = 0; i < compute_s.size(); ++i) {
            const Sample& s = samples[i];
            const double memory_s = BytesOf(format, gradients, s.point.shape) / (s.bytes_per_s * efficiency);
            const double time = Overlapped(compute_s[i], memory_s, overlap) + machine.barrier_s + list_s +
                                static_cast<double>(s.point.shape.at_once) * matrix_s;
            sum += std::abs(std::log(time / s.seconds));
          }
          if (sum < least) {
            least = sum;
            best.efficiency = efficiency, best.overlap = overlap, best.matrix_s = matrix_s, best.list_s = list_s;
          }
          if (gradients) break;
        }
        if (gradients) break;  // what they cost besides is little of what they move
      }
    }
  }
  return best;
}

void FitAttention(DType format, const std::vector<Sample>& samples, AttentionCost& cost, const MachineProfile& machine) {
  const AttentionOp op = ColdAttention::Op(format);
  double least = 1e300;
  for (const double overlap : {1.0, 1.5, 2.0, 4.0}) {
    for (double efficiency = 0.5; efficiency < 1.21; efficiency += 0.02) {
      AttentionCost tried = cost;
      tried.overlap = overlap, tried.efficiency = efficiency;
      double sum = 0;
      for (const Sample& s : samples)
        sum += std::abs(std::log(TimeOf(op, tried, {machine, s.bytes_per_s / machine.memory_bytes_per_s()}).s / s.seconds));
      sum += 1e-3 * std::abs(1 - efficiency);  // of equals the one nearest to full efficiency
      if (sum < least) least = sum, cost.overlap = overlap, cost.efficiency = efficiency;
    }
  }
}

// AdamW over matrices with rows of so many values.
struct OptimizerRows {
  double bytes = 0;
  std::function<void()> step;
  PlacedSamples share = {};  // its bytes/s over those of weights beside it

  OptimizerRows(int64_t values, int64_t columns, ExecContext& ctx) {
    const int64_t rows = std::max(values / columns / kPanel * kPanel, kPanel);
    bytes = static_cast<double>(rows * columns) * AdamwBytes(DType::kBf16);
    step = AdamwOver({{rows, columns}}, DType::kBf16, ctx);
  }
};

// A function, as g++ 12 gives up on a default that has defaults of its own.
std::array<OfFormat, 2> BothFormats() {
  return {OfFormat{.format = DType::kF32}, OfFormat{.format = DType::kBf16}};
}

}  // namespace

struct StreamCalibration::Points {
  std::span<std::byte> buffer;
  ColdProducts products;
  ColdAttention attention;
  std::array<OptimizerRows, 2> adamw;  // usual and wide ones
  std::array<OfFormat, 2> formats = BothFormats();
};

StreamCalibration::StreamCalibration(std::span<std::byte> buffer, ExecContext& ctx) : ctx_(ctx) {
  // Value, gradient, two moments and both packs: as much as half of the buffer, all together.
  constexpr int64_t kBytesPerValue = 20, kUsual = kAdamwWholeRows / 2, kWide = 4 * kAdamwWholeRows;
  const int64_t values = std::ssize(buffer) / 2 / kBytesPerValue;
  const std::span<const float> floats(reinterpret_cast<const float*>(buffer.data()), buffer.size() / sizeof(float));
  points_ = std::make_unique<Points>(Points{.buffer = buffer,
                                            .products = ColdProducts(buffer, ctx),
                                            .attention = ColdAttention(floats, ctx),
                                            .adamw = {OptimizerRows(values, kUsual, ctx), OptimizerRows(values, kWide, ctx)}});
}

StreamCalibration::~StreamCalibration() = default;

double StreamCalibration::WeightsOfOneRow(int64_t bytes, double sample_s) {
  return BytesOf(DType::kBf16, false, kSetPart) / points_->products.Weights(DType::kBf16, {kSetPart, 1}, sample_s, bytes);
}

void StreamCalibration::Round(CeilingProbe& ceilings, double sample_s, const std::function<bool()>& here,
                              const Placement& placement) {
  Points& all = *points_;
  const auto sample = [&](std::vector<Sample>& to, const StreamPoint& point, auto&& seconds) {
    if (!here()) return;
    memory_.Add(ceilings.Sample(Ceiling::kWeights, ctx_.pool), placement);
    to.push_back({point, seconds(), memory_.values.back(), placement.now_s()});
  };
  for (OfFormat& f : all.formats) {
    for (const StreamPoint& p : kWeightPoints) {
      sample(f.weights, p, [&] { return all.products.Weights(f.format, p, sample_s, std::ssize(all.buffer)); });
    }
    for (const StreamPoint& p : kGradPoints) {
      sample(f.gradients, p, [&] { return all.products.Gradients(f.format, p, sample_s); });
    }
    sample(f.attention, {}, [&] { return all.attention.Run(f.format, sample_s, ctx_); });
  }
  for (OptimizerRows& rows : all.adamw) {
    if (!here()) continue;
    memory_.Add(ceilings.Sample(Ceiling::kWeights, ctx_.pool), placement);
    rows.share.Add(rows.bytes / SecondsPerRun(sample_s, rows.step) / memory_.values.back(), placement);
  }
}

void StreamCalibration::Fit(MachineProfile& m) const {
  const auto rate = [&](size_t i) {
    return Summarize(points_->adamw[i].share.Of(m.handover_s)).median * m.memory_bytes_per_s();
  };
  m.adamw_bytes_per_s = rate(0), m.adamw_wide_bytes_per_s = rate(1);
  for (const OfFormat& f : points_->formats) {
    m.streams.push_back(FitStream(f.format, false, InPlacement(f.weights, m.handover_s), m));
    m.streams.push_back(FitStream(f.format, true, InPlacement(f.gradients, m.handover_s), m));
    for (AttentionCost& cost : m.attention) {
      if (cost.format == f.format) FitAttention(f.format, InPlacement(f.attention, m.handover_s), cost, m);
    }
  }
}

}  // namespace moe
