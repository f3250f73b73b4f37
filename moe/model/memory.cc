// Bytes, counted from the shapes alone. The terms follow model_forward.cc, model_backward.cc and mixture/moe_layer.cc line by
// line; a test holds the sums against the arena's peak.

#include <algorithm>
#include <cstdint>

#include "moe/mixture/capacity.h"
#include "moe/model/model.h"
#include "moe/model/model_pass.h"

namespace moe {
namespace {

constexpr int64_t kFloat = sizeof(float);

int64_t Padded(int64_t n) {
  return (n + kPanel - 1) / kPanel * kPanel;
}

struct Widths {
  int64_t D, q, kv, heads;  // D; H*P; G*P; values of 1/rms that QkNorm keeps of a row
  explicit Widths(const ModelConfig& c) : D(c.hidden), q(c.num_heads * c.head_width), kv(c.num_kv_heads * c.head_width) {
    heads = c.qk_norm == QkNorm::kNone ? 0 : c.qk_norm == QkNorm::kWhole ? 2 : c.num_heads + c.num_kv_heads;
  }
  int64_t qkv() const { return q + 2 * kv; }
};

// Parts of both operands of a weight gradient [N,K] that two threads lay out.
int64_t WeightGradScratch(int64_t N, int64_t K) {
  constexpr int64_t kThreads = 2, kSteps = 256, kMaxRows = 1536, kMaxColumns = 512;
  return kThreads * kSteps * (std::min(N, kMaxRows) + std::min(Padded(K), kMaxColumns)) * kFloat;
}

// Rows laid out by the threads of a product of M rows with K inputs. It matters only where K is the vocabulary; for two
// threads.
int64_t GemmScratch(DType format, int64_t M, int64_t K) {
  constexpr int64_t kThreads = 2, kItemRows = 192, kTileRows = 12;
  return kThreads * (std::min(M, kItemRows) + kTileRows) * K * SizeOf(format);
}

// Bytes of a value that is rounded for products, when they are bf16; float32 is read where it is.
int64_t CopySize(DType format) {
  return format == DType::kF32 ? 0 : SizeOf(format);
}

// Slots of T tokens. Of relu's experts half, as random weights choose: training decides how many it will be.
int64_t Slots(const RouterConfig& router, int64_t T) {
  return router.score == RouterScore::kRelu ? T * router.num_experts / 2 : T * router.top_k;
}

// Rows that the experts work on together. What drops is not known beforehand: what fits the buckets, when they are largest.
// Blocks are half empty at an expert's end.
int64_t ExpertRows(const MoeConfig& moe, int64_t T, bool training) {
  const int64_t E = moe.router.num_experts, half_blocks = E * ExpertBlock(moe.expert_width) / 2;
  const int64_t slots = Slots(moe.router, T) + (moe.executor == Executor::kBlockSparse ? half_blocks : 0);
  const CapacityConfig& c = moe.router.capacity;
  const double factor = !training ? c.eval_factor : c.target_drop > 0 ? c.most_factor : c.factor;
  const int64_t capacity = ExpertCapacity(moe.router, factor, T);
  if (capacity == kNoCapacity) return slots;
  if (moe.executor == Executor::kPadded) return E * std::min(capacity, INT32_MAX / E);  // whole buckets, however empty
  return std::min(slots, E * std::min(capacity, T));                                    // no token comes to an expert twice
}

// The routing of T tokens and its plan: experts, gates, four index lists.
int64_t RoutingBytes(const MoeConfig& moe, int64_t T) {
  return Slots(moe.router, T) * 6 * kFloat + T * (moe.router.num_experts + 3) * kFloat;
}

// What only some policies keep of T tokens until backward.
int64_t PolicyBytes(const RouterConfig& router, int64_t T, int64_t D) {
  const int64_t E = router.num_experts, slots = Slots(router, T);
  int64_t bytes = slots;  // who was kept, where there is a capacity
  if (router.noise == RouterNoise::kJitter) bytes += T * D * kFloat;
  if (router.load_loss > 0) bytes += T * (E + 1) * kFloat;
  if (router.gate == GateNetwork::kMlp) bytes += 2 * T * router.gate_width * kFloat;
  if (router.gate == GateNetwork::kCosine) bytes += T * (router.gate_width + 1) * kFloat;
  if (router.score == RouterScore::kSparsemixer) bytes += slots * E * kFloat;
  if (IsElementwise(router.score) && router.z_loss > 0) bytes += T * E * kFloat;
  if (router.selection == RouterSelection::kExpertChoice) bytes += T * E;
  return bytes;
}

// Values a row has of the experts' hidden layers: products, and what the activation makes of them. Whichever experts rows go
// to, there is room for all of them in the widest.
int64_t ExpertRowValues(const MoeConfig& moe, bool training) {
  int64_t product = 0, hidden = 0, middle_product = 0, middle = 0;
  for (const ExpertGroup& group : moe.experts()) {
    const ExpertSpec& spec = group.spec;
    if (!spec.is_ffn()) continue;
    const int64_t kept = training || !spec.is_swiglu() ? spec.product_width() : 0;
    product = std::max(product, kept), hidden = std::max(hidden, spec.width);
    if (spec.depth == 2) middle_product = std::max(middle_product, kept), middle = std::max(middle, spec.width);
  }
  return product + hidden + middle_product + middle;
}

// Gate and up before the activation, and what it makes of them.
int64_t GatedBytes(DType format, int64_t rows, int64_t F) {
  return rows * F * 3 * SizeOf(format);
}

int64_t FfnSaved(const LayerSpec& layer, DType format, int64_t D, int64_t T) {
  if (layer.ffn == FfnKind::kDense) return GatedBytes(format, T, layer.ffn_width);
  const MoeConfig& moe = layer.moe;
  const int64_t rows = ExpertRows(moe, T, true);
  const int64_t buckets = moe.executor == Executor::kPadded || moe.router.gates_input ? rows * D * SizeOf(format) : 0;
  const int64_t gated = moe.shared_gate ? T * (D + 1) * kFloat : 0;
  return RoutingBytes(moe, T) + PolicyBytes(moe.router, T, D) + T * D * CopySize(format) +
         rows * (ExpertRowValues(moe, true) + D) * SizeOf(format) + GatedBytes(format, T, moe.shared_width()) + gated + buckets;
}

int64_t LayerSaved(const ModelConfig& config, const LayerSpec& layer, DType format, int64_t T) {
  const Widths w(config);
  return T * (2 * w.D + 2 + w.qkv() + w.q + config.num_heads + w.heads) * kFloat + FfnSaved(layer, format, w.D, T);
}

int64_t FfnBackwardScratch(const LayerSpec& layer, DType format, int64_t D, int64_t T) {
  if (layer.ffn == FfnKind::kDense) {
    const int64_t F = layer.ffn_width;
    return T * F * SizeOf(format) + T * D * CopySize(format) + std::max(WeightGradScratch(D, F), WeightGradScratch(2 * F, D));
  }
  const MoeConfig& moe = layer.moe;
  const int64_t Fs = moe.shared_width(), E = moe.router.num_experts;
  const int64_t rows = ExpertRows(moe, T, true);
  int64_t bytes = (Slots(moe.router, T) + T * E) * kFloat + rows * (2 * D + ExpertRowValues(moe, true)) * SizeOf(format);
  if (moe.router.noise == RouterNoise::kJitter) bytes += T * D * kFloat;
  const int64_t gate_outputs = moe.router.gate_width > 0 ? moe.router.gate_width : E;
  bytes += T * moe.router.gate_width * kFloat;
  int64_t scratch = WeightGradScratch(gate_outputs, D);
  for (const ExpertGroup& group : moe.experts()) {
    const ExpertSpec& spec = group.spec;
    scratch = std::max({scratch, WeightGradScratch(D, spec.width), WeightGradScratch(spec.product_width(), D)});
    if (spec.depth == 2) scratch = std::max(scratch, WeightGradScratch(spec.product_width(), spec.width));
  }
  bytes += scratch;
  if (Fs > 0) bytes += T * D * kFloat + T * 3 * Fs * SizeOf(format) + T * D * CopySize(format);
  if (moe.shared_gate) bytes += T * (D + 1) * kFloat;
  return bytes;
}

int64_t AttentionBackwardScratch(const ModelConfig& config, DType format, int64_t T) {
  const Widths w(config);
  const int64_t normed = config.qk_norm == QkNorm::kNone ? 0 : w.qkv();
  return T * (w.q + w.qkv() + normed) * kFloat + T * w.qkv() * CopySize(format) +
         std::max(WeightGradScratch(w.D, w.q), WeightGradScratch(w.qkv(), w.D));
}

int64_t TrainingActivations(const ModelConfig& config, DType format, int64_t T) {
  const int64_t D = config.hidden, V = config.vocab_size;
  const int64_t rows_info = T * (5 * kFloat + 1 + static_cast<int64_t>(sizeof(Segment)));
  const int64_t chunk = std::min(T, HeadChunkRows(V));
  int64_t saved = 0;
  int64_t scratch = chunk * (V + 1) * kFloat + chunk * V * CopySize(format) +
                    std::max(GemmScratch(format, chunk, V), WeightGradScratch(V, D));
  for (const LayerSpec& layer : config.layers) {
    saved += LayerSaved(config, layer, format, T);
    scratch = std::max({scratch, FfnBackwardScratch(layer, format, D, T), AttentionBackwardScratch(config, format, T)});
  }
  return rows_info + T * 4 * D * kFloat + saved + scratch;  // the stream after all layers, its gradient, two norms
}

int64_t InferenceActivations(const ModelConfig& config, DType format, int64_t T, int64_t logit_rows) {
  const Widths w(config);
  // Keys and values of a prompt are laid out once for all of its rows.
  int64_t layer_bytes =
      T * (w.qkv() + w.q + (config.qk_norm == QkNorm::kNone ? 0 : w.qkv())) * kFloat + T * 2 * w.kv * SizeOf(format);
  for (const LayerSpec& layer : config.layers) {
    int64_t bytes = T * layer.ffn_width * SizeOf(format);
    if (layer.ffn == FfnKind::kMoe) {
      const MoeConfig& moe = layer.moe;
      const int64_t copies = moe.executor == Executor::kPadded || moe.router.gates_input ? w.D : 0;
      bytes = RoutingBytes(moe, T) + ExpertRows(moe, T, false) * (ExpertRowValues(moe, false) + copies + w.D) * SizeOf(format) +
              T * (w.D + moe.router.gate_width + (moe.shared_width() > 0 ? w.D : 0)) * kFloat +
              T * moe.shared_width() * SizeOf(format) + T * w.D * CopySize(format);
    }
    layer_bytes = std::max(layer_bytes, bytes);
  }
  return T * 2 * w.D * kFloat + layer_bytes + logit_rows * (config.vocab_size + w.D) * kFloat;
}

int64_t RopeBytes(const ModelConfig& config) {
  return config.context * config.head_width * kFloat;
}

// Forward packs, and the transposed ones for training.
int64_t PackBytes(const ModelConfig& config, DType format, bool training) {
  const Widths w(config);
  const auto pack = [&](DType dtype, int64_t N, int64_t K) {
    return PackedBytes(dtype, N, K, PackSide::kForward) + (training ? PackedBytes(dtype, N, K, PackSide::kTransposed) : 0);
  };
  const auto ffn = [&](int64_t F) { return F == 0 ? 0 : pack(format, 2 * F, w.D) + pack(format, w.D, F); };
  int64_t bytes = pack(format, config.vocab_size, w.D);
  for (const LayerSpec& layer : config.layers) {
    bytes += pack(format, w.qkv(), w.D) + pack(format, w.D, w.q);
    if (layer.ffn == FfnKind::kDense) {
      bytes += ffn(layer.ffn_width);
    } else {
      const MoeConfig& moe = layer.moe;
      const int64_t width = moe.router.gate_width;
      if (width > 0) bytes += pack(DType::kF32, width, w.D);
      bytes += pack(moe.router.dtype, moe.router.num_experts, width > 0 ? width : w.D) + ffn(moe.shared_width());
      for (const ExpertGroup& group : moe.experts()) {
        const ExpertSpec& spec = group.spec;
        if (!spec.is_ffn()) continue;
        bytes += group.count * (pack(format, spec.product_width(), w.D) + pack(format, w.D, spec.width));
        if (spec.depth == 2) bytes += group.count * pack(format, spec.product_width(), spec.width);
      }
    }
  }
  return bytes;
}

}  // namespace

MemoryNeed TrainingMemory(const ModelConfig& config, DType format, int64_t rows) {
  const int64_t values = CountParameters(config).total * kFloat;
  return {.masters = values,
          .packs = PackBytes(config, format, true),
          .gradients = values,
          .moments = 2 * values,
          .activations = TrainingActivations(config, format, rows) + RopeBytes(config)};
}

MemoryNeed InferenceMemory(const ModelConfig& config, DType format, int64_t rows, int64_t sequences, int64_t positions) {
  const ParameterCount count = CountParameters(config);
  int64_t unpacked = count.embedding + count.norms + count.router;
  for (const LayerSpec& layer : config.layers) {
    if (layer.ffn != FfnKind::kMoe) continue;
    unpacked += layer.moe.shared_gate ? config.hidden : 0;
    for (const ExpertGroup& group : layer.moe.experts()) {
      if (!group.spec.is_ffn()) unpacked += group.count * ValuesOf(group.spec, config.hidden);
    }
  }
  return {.masters = unpacked * kFloat,
          .packs = PackBytes(config, format, false),
          .activations = InferenceActivations(config, format, rows, std::min(rows, sequences)) + RopeBytes(config),
          .kv_cache = KvCache::Bytes(config, sequences, positions)};
}

}  // namespace moe
