#include "moe/mixture/gate.h"

#include <algorithm>
#include <cmath>

#include "moe/base/bf16.h"
#include "moe/base/rng.h"
#include "moe/mixture/experts.h"
#include "moe/ops/chunks.h"
#include "moe/ops/elementwise.h"

namespace moe {
namespace {

constexpr double kNoLength = 1e-12;  // as PyTorch's normalize

MatView<float> AllocMat(int64_t rows, int64_t cols, ExecContext& ctx) {
  return AllocMat(rows, cols, DType::kF32, ctx).as<float>();
}

// fn(row) of every row, by threads.
template <class F>
void ForEachRow(int64_t rows, int64_t width, ExecContext& ctx, F&& fn) {
  ForEachChunk(rows, RowsPerChunk(width), ctx, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) fn(t);
  });
}

// x [T,D] times U(1 - noise_scale, 1 + noise_scale), element by element; a function of key, row and column.
void Jitter(const RouterConfig& config, uint64_t key, MatView<float> x, ExecContext& ctx) {
  ForEachRow(x.rows, x.cols, ctx, [&](int64_t t) {
    Rng rng(key, static_cast<uint64_t>(t));
    for (float& v : x.row_span(t)) v *= static_cast<float>(1 + config.noise_scale * (2 * rng.Uniform() - 1));
  });
}

// To bf16 and back.
void RoundToBf16(MatView<float> x, ExecContext& ctx) {
  ForEachRow(x.rows, x.cols, ctx, [&](int64_t t) {
    for (float& v : x.row_span(t)) v = ToFloat(ToBf16(v));
  });
}

// 1 / (1 + exp(-x)).
void Sigmoid(const float* x, int64_t n, float* out, const ExecContext& ctx) {
  for (int64_t i = 0; i < n; ++i) out[i] = -x[i];
  ctx.kernels.exp_sum(out, 0, n, out);
  for (int64_t i = 0; i < n; ++i) out[i] = 1 / (1 + out[i]);
}

double InvLength(const float* x, int64_t n, const ExecContext& ctx) {
  const double length = std::sqrt(ctx.kernels.sum_squares(x, n));
  return length <= kNoLength ? 0 : 1 / length;  // NaN stays NaN, for Route to find
}

struct CosineScale {
  double scale;
  bool clamped;
  explicit CosineScale(const Parameter& log_scale) {
    const auto v = static_cast<double>(log_scale.value.data()[0]);
    clamped = v > std::log(kMostCosineScale);
    scale = clamped ? kMostCosineScale : std::exp(v);
  }
};

// 1 / |w_e| [E].
std::span<const double> InvLengths(const GateWeights& weights, ExecContext& ctx) {
  const MatView<const float> w = weights.last.parameter().value.mat();
  const auto out = ctx.arena.Alloc<double>(w.rows);
  for (int64_t e = 0; e < w.rows; ++e) out[static_cast<size_t>(e)] = InvLength(w.row(e), w.cols, ctx);
  return out;
}

// logits = <hidden, w_e>, to a cosine of length `scale`, and the bias.
void ScaleCosines(const GateWeights& weights, MatView<float> logits, ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  const int64_t E = logits.cols;
  const double scale = CosineScale(*weights.log_scale).scale;
  const auto inv_length = InvLengths(weights, ctx);
  const auto factor = ctx.arena.Alloc<float>(E), bias = ctx.arena.AllocZero<float>(E);
  for (size_t e = 0; e < factor.size(); ++e) factor[e] = static_cast<float>(scale * inv_length[e]);
  if (weights.bias != nullptr) std::ranges::copy(weights.bias->value.span(), bias.begin());
  ForEachRow(logits.rows, E, ctx, [&](int64_t t) {
    for (int64_t e = 0; e < E; ++e) {
      logits(t, e) = logits(t, e) * factor[static_cast<size_t>(e)] + bias[static_cast<size_t>(e)];
    }
  });
}

std::span<const float> ValuesOf(const Parameter* vector) {
  return vector == nullptr ? std::span<const float>() : vector->value.span();
}

// What W reads, from V x.
void Hide(const RouterConfig& config, GateSaved& saved, ExecContext& ctx) {
  const int64_t width = config.gate_width;
  ForEachRow(saved.product.rows, width, ctx, [&](int64_t t) {
    const float* u = saved.product.row(t);
    float* h = saved.hidden.row(t);
    if (config.gate == GateNetwork::kMlp) {
      Sigmoid(u, width, h, ctx);
      for (int64_t i = 0; i < width; ++i) h[i] *= u[i];
      return;
    }
    const auto inv_length = static_cast<float>(InvLength(u, width, ctx));
    for (int64_t i = 0; i < width; ++i) h[i] = u[i] * inv_length;
    if (!saved.inv_length.empty()) saved.inv_length[static_cast<size_t>(t)] = inv_length;
  });
}

// d [T,gate_width]: by what W reads -> by V x. Rows of padding, whose values may be anything, become 0.
void HideBackward(const RouterConfig& config, const GateSaved& saved, const ValidRows& valid, MatView<float> d,
                  ExecContext& ctx) {
  const int64_t width = config.gate_width;
  Arena::Scope scope(ctx.arena);
  const auto own = ctx.arena.Alloc<float>(width * ctx.pool.num_threads());
  ForEachChunk(d.rows, RowsPerChunk(width), ctx, [&](int64_t begin, int64_t end, int thread) {
    float* sigmoid = own.data() + width * thread;
    for (int64_t t = begin; t < end; ++t) {
      float* row = d.row(t);
      if (!valid.token_row.empty() && valid.token_row[static_cast<size_t>(t)] < 0) {
        std::fill_n(row, width, 0.0f);
      } else if (config.gate == GateNetwork::kMlp) {
        const float* u = saved.product.row(t);
        Sigmoid(u, width, sigmoid, ctx);
        for (int64_t i = 0; i < width; ++i) row[i] *= sigmoid[i] * (1 + u[i] * (1 - sigmoid[i]));
      } else {  // h = u / |u|: (d - h <h, d>) / |u|
        const float* h = saved.hidden.row(t);
        const float along = ctx.kernels.dot(h, row, width), inv_length = saved.inv_length[static_cast<size_t>(t)];
        for (int64_t i = 0; i < width; ++i) row[i] = (row[i] - h[i] * along) * inv_length;
      }
    }
  });
}

// From g = d_logits^T hidden [E,gate_width], the gradient by unit vectors w_e / |w_e| but for the scale: to w and the scale.
void CosineWeightsBackward(const GateWeights& weights, std::span<const double> inv_length, MatView<const float> g,
                           ExecContext& ctx) {
  const MatView<const float> w = weights.last.parameter().value.mat();
  const MatView<float> d_w = weights.last.grad();
  const CosineScale s(*weights.log_scale);
  double d_scale = 0;
  for (int64_t e = 0; e < w.rows; ++e) {
    const double inv = inv_length[static_cast<size_t>(e)];
    const double along = static_cast<double>(ctx.kernels.dot(g.row(e), w.row(e), w.cols)) * inv;
    const auto from_g = static_cast<float>(s.scale * inv), from_w = static_cast<float>(s.scale * inv * inv * along);
    for (int64_t i = 0; i < w.cols; ++i) d_w(e, i) += from_g * g(e, i) - from_w * w(e, i);
    d_scale += along;
  }
  if (!s.clamped) weights.log_scale->grad.data()[0] += static_cast<float>(s.scale * d_scale);
}

}  // namespace

GateWeights AddGateWeights(const RouterConfig& config, int64_t D, const std::string& prefix, ParameterStore& store) {
  const int64_t E = config.num_experts, width = config.gate_width;
  const bool linear = config.gate == GateNetwork::kLinear;
  GateWeights w;
  PackedParameter out(&store.Add(prefix + "router", {E, linear ? D : width}, /*decay=*/true), config.dtype);
  (linear ? w.first : w.last) = std::move(out);
  if (!linear) w.first = PackedParameter(&store.Add(prefix + "router_hidden", {width, D}, /*decay=*/true), DType::kF32);
  if (config.gate == GateNetwork::kCosine) w.log_scale = &store.Add(prefix + "router_scale", {1}, /*decay=*/false);
  if (config.bias) w.bias = &store.Add(prefix + "router_bias", {E}, /*decay=*/false);
  return w;
}

int64_t NumGateValues(const RouterConfig& config, int64_t D) {
  const int64_t E = config.num_experts, width = config.gate_width, bias = config.bias ? E : 0;
  if (config.gate == GateNetwork::kLinear) return E * D + bias;
  return width * D + E * width + (config.gate == GateNetwork::kCosine ? 1 : 0) + bias;
}

void InitializeVectors(const GateWeights& weights) {
  if (weights.bias != nullptr) std::ranges::fill(weights.bias->value.span(), 0.0f);
  if (weights.log_scale != nullptr) weights.log_scale->value.data()[0] = static_cast<float>(std::log(kFirstCosineScale));
}

void GateForward(const RouterConfig& config, const GateWeights& weights, MatView<const float> x, bool training, uint64_t key,
                 MatView<float> logits, GateSaved& saved, ExecContext& ctx) {
  const int64_t T = x.rows;
  saved = {};
  if (training && config.noise == RouterNoise::kJitter) {
    saved.key = key, saved.input = AllocMat(T, x.cols, ctx);
    ForEachRow(T, x.cols, ctx, [&](int64_t t) { std::copy_n(x.row(t), x.cols, saved.input.row(t)); });
    Jitter(config, key, saved.input, ctx);
    x = saved.input;
  }
  const bool cosine = config.gate == GateNetwork::kCosine;
  const std::span<const float> bias = cosine ? std::span<const float>() : ValuesOf(weights.bias);
  if (config.gate == GateNetwork::kLinear) {
    Gemm({.a = x, .weight = &weights.first.forward(), .bias = bias, .c = logits}, ctx);
    if (config.dtype == DType::kBf16) RoundToBf16(logits, ctx);
    return;
  }
  saved.product = AllocMat(T, config.gate_width, ctx);
  saved.hidden = cosine ? saved.product : AllocMat(T, config.gate_width, ctx);
  if (cosine && training) saved.inv_length = ctx.arena.Alloc<float>(T);
  Gemm({.a = x, .weight = &weights.first.forward(), .c = saved.product}, ctx);
  Hide(config, saved, ctx);
  Gemm({.a = saved.hidden, .weight = &weights.last.forward(), .bias = bias, .c = logits}, ctx);
  if (cosine) ScaleCosines(weights, logits, ctx);
}

GateGradient GateBackward(const RouterConfig& config, const GateWeights& weights, MatView<const float> x,
                          const GateSaved& saved, const ValidRows& valid, MatView<const float> d_logits, ExecContext& ctx) {
  const int64_t T = d_logits.rows, E = d_logits.cols;
  if (weights.bias != nullptr) {
    float* d_bias = weights.bias->grad.data();
    for (int64_t t = 0; t < T; ++t) ctx.kernels.add(d_logits.row(t), E, d_bias);  // padding rows are 0
  }
  const auto gradient = [&](MatView<const float> d_y, MatView<const float> input, MatView<float> d_w) {
    return WeightGradProblem{
        .d_y = OnlyValid(d_y, valid, ctx), .x = input, .x_rows = valid.rows, .d_w = d_w, .format = config.dtype};
  };
  GateGradient out{.d_product = d_logits};
  if (config.gate != GateNetwork::kLinear) {
    const MatView<float> d_hidden = AllocMat(T, config.gate_width, ctx);
    Arena::Scope scope(ctx.arena);
    MatView<const float> d_cosines = d_logits;
    if (config.gate == GateNetwork::kCosine) {
      const auto inv_length = InvLengths(weights, ctx);
      const double scale = CosineScale(*weights.log_scale).scale;
      const MatView<float> scaled = AllocMat(T, E, ctx);
      ForEachRow(T, E, ctx, [&](int64_t t) {
        for (int64_t e = 0; e < E; ++e) {
          scaled(t, e) = d_logits(t, e) * static_cast<float>(scale * inv_length[static_cast<size_t>(e)]);
        }
      });
      d_cosines = scaled;
      const MatView<float> g{ctx.arena.AllocZero<float>(E * config.gate_width).data(), E, config.gate_width};
      if (valid.count > 0) {
        const WeightGradProblem problem = gradient(d_logits, saved.hidden, g);
        GroupedWeightGrad({&problem, 1}, ctx);
      }
      CosineWeightsBackward(weights, inv_length, g, ctx);
    } else if (valid.count > 0) {
      const WeightGradProblem problem = gradient(d_logits, saved.hidden, weights.last.grad());
      GroupedWeightGrad({&problem, 1}, ctx);
    }
    Gemm({.a = d_cosines, .weight = &weights.last.transposed(), .c = d_hidden}, ctx);
    HideBackward(config, saved, valid, d_hidden, ctx);
    out.d_product = d_hidden;
  }
  if (valid.count > 0) {
    out.weight = gradient(out.d_product, saved.input.empty() ? x : MatView<const float>(saved.input), weights.first.grad());
  }
  return out;
}

void AddGateInputGradient(const RouterConfig& config, const GateWeights& weights, const GateSaved& saved,
                          const GateGradient& gradient, MatView<float> d_x, ExecContext& ctx) {
  GemmProblem problem{
      .a = gradient.d_product, .weight = &weights.first.transposed(), .epilogue = Epilogue::kAccumulate, .c = d_x};
  if (saved.input.empty()) return Gemm(problem, ctx);
  const MatView<float> d_input = AllocMat(d_x.rows, d_x.cols, ctx);
  problem.epilogue = Epilogue::kStore, problem.c = d_input;
  Gemm(problem, ctx);
  Jitter(config, saved.key, d_input, ctx);  // the same factors
  Add(d_input, d_x, ctx);
}

}  // namespace moe
