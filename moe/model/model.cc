#include "moe/model/model.h"

#include <algorithm>
#include <cmath>

#include "moe/base/rng.h"
#include "moe/mixture/balance.h"
#include "moe/model/model_pass.h"
#include "moe/ops/chunks.h"

namespace moe {
namespace {

constexpr double kInitDeviation = 0.02;

uint64_t HashName(std::string_view name) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

// Each chunk of values has its own stream: filled by any number of threads alike.
void FillNormal(Parameter& parameter, double deviation, uint64_t seed, ExecContext& ctx) {
  constexpr int64_t kChunk = 1 << 14;
  const uint64_t stream = HashName(parameter.name);
  float* values = parameter.value.data();
  ForEachChunk(parameter.value.size(), kChunk, ctx, [&](int64_t begin, int64_t end, int) {
    Rng rng(seed, stream + static_cast<uint64_t>(begin / kChunk));
    for (int64_t i = begin; i < end; ++i) values[i] = static_cast<float>(rng.Normal() * deviation);
  });
}

// What no product reads, and is multiplied as it is, in float32; vectors aside.
template <class F>
void ForEachUnpacked(const MoeWeights& weights, F&& fn) {
  for (const ExpertWeights& group : weights.experts) {
    if (group.constant != nullptr) fn(*group.constant), fn(*group.mix);
  }
  if (weights.shared_gate != nullptr) fn(*weights.shared_gate);
}

}  // namespace

void StepStats::Clear() {
  loss_sum = 0, num_targets = 0;
  for (LayerStats& layer : layers) {
    std::fill(layer.tokens_per_expert.begin(), layer.tokens_per_expert.end(), 0);
    layer.num_tokens = layer.num_slots = layer.num_dropped = 0;
    layer.balance_loss = layer.z_loss = layer.entropy = layer.gate_sum = layer.largest_logit = 0;
    layer.losses = {};
  }
}

Model::Model(ModelConfig config, DType format, bool training, bool masters)
    : config_(std::move(config)), format_(format), training_(training), store_(masters) {
  const Status valid = Validate(config_, "model");
  MOE_CHECK(valid.has_value(), "{}", valid ? "" : valid.error().Message());
  MOE_CHECK(masters || !training, "training needs masters");
  const int64_t D = config_.hidden, P = config_.head_width, H = config_.num_heads, G = config_.num_kv_heads;
  rope_ = MakeRopeTable(config_.context, P, config_.rope_theta);
  const auto packed = [&](std::string name, std::vector<int64_t> shape) {
    return PackedParameter(&store_.Add(std::move(name), std::move(shape), true), format_);
  };
  const auto norm = [&](std::string name, int64_t width) { return &store_.Add(std::move(name), {width}, false); };

  embedding_ = &store_.Add("embedding", {config_.vocab_size, D}, true);
  blocks_.resize(config_.layers.size());
  for (size_t l = 0; l < blocks_.size(); ++l) {
    Block& block = blocks_[l];
    const std::string prefix = fmt::format("layers.{}.", l);
    block.spec = config_.layers[l];
    block.layer = static_cast<int64_t>(l);
    block.attention.norm = norm(prefix + "attention.norm", D);
    block.attention.qkv = packed(prefix + "attention.qkv", {(H + 2 * G) * P, D});
    block.attention.out = packed(prefix + "attention.out", {D, H * P});
    if (config_.qk_norm != QkNorm::kNone) {
      const bool whole = config_.qk_norm == QkNorm::kWhole;
      block.attention.q_norm = norm(prefix + "attention.q_norm", whole ? H * P : P);
      block.attention.k_norm = norm(prefix + "attention.k_norm", whole ? G * P : P);
    }
    block.ffn_norm = norm(prefix + "ffn_norm", D);
    if (block.spec.ffn == FfnKind::kDense) {
      const int64_t F = block.spec.ffn_width;
      block.dense.gate_up = packed(prefix + "dense.gate_up", {2 * F, D});
      block.dense.down = packed(prefix + "dense.down", {D, F});
    } else {
      block.moe.config = block.spec.moe;
      block.moe.weights = AddMoeWeights(block.spec.moe, D, prefix + "moe.", format_, store_);
    }
  }
  final_norm_ = norm("final_norm", D);
  head_ = config_.tie_embeddings ? PackedParameter(embedding_, format_) : packed("head", {config_.vocab_size, D});
  if (!masters) {
    embedding_->value.Allocate();
    for (Parameter& parameter : store_.all()) {
      if (parameter.value.shape().size() == 1) parameter.value.Allocate();
    }
    for (Block& block : blocks_) {
      if (block.spec.ffn != FfnKind::kMoe) continue;
      block.moe.weights.gate.ForEachMatrix([](PackedParameter& matrix) { matrix.parameter().value.Allocate(); });
      ForEachUnpacked(block.moe.weights, [](Parameter& parameter) { parameter.value.Allocate(); });
    }
  }
  if (training_) store_.AllocateGradients();
}

void Model::UpdateRouters(const StepStats& stats) {
  MOE_CHECK(stats.layers.size() == blocks_.size(), "stats of {} layers for {}", stats.layers.size(), blocks_.size());
  for (size_t l = 0; l < blocks_.size(); ++l) {
    if (blocks_[l].spec.ffn != FfnKind::kMoe) continue;
    MoeLayer& moe = blocks_[l].moe;
    const RouterConfig& router = moe.config.router;
    const LayerStats& layer = stats.layers[l];
    if (moe.weights.selection_bias != nullptr) {
      UpdateSelectionBias(router, layer.tokens_per_expert, moe.weights.selection_bias->value.span());
    }
    if (router.capacity.target_drop > 0) {
      moe.capacity_factor =
          NextCapacityFactor(router.capacity, layer.num_slots, layer.num_dropped, moe.training_capacity_factor());
    }
  }
}

std::vector<double> Model::CapacityFactors() const {
  std::vector<double> factors;
  for (const Block& block : blocks_) factors.push_back(block.moe.capacity_factor);
  return factors;
}

void Model::SetCapacityFactors(std::span<const double> factors) {
  MOE_CHECK(factors.size() == blocks_.size(), "{} capacity factors for {} layers", factors.size(), blocks_.size());
  for (size_t l = 0; l < blocks_.size(); ++l) blocks_[l].moe.capacity_factor = factors[l];
}

MoeLayer& Model::moe_layer(int64_t layer) {
  Block& block = blocks_.at(static_cast<size_t>(layer));
  MOE_CHECK(block.spec.ffn == FfnKind::kMoe, "layer {} is dense", layer);
  return block.moe;
}

void Model::Initialize(uint64_t seed, ExecContext& ctx) {
  const double out_deviation = kInitDeviation / std::sqrt(2.0 * static_cast<double>(blocks_.size()));
  const auto is_output = [&](const Parameter* p) {
    return std::any_of(blocks_.begin(), blocks_.end(), [&](const Block& block) {
      if (p == &block.attention.out.parameter()) return true;
      if (block.spec.ffn == FfnKind::kDense) return p == &block.dense.down.parameter();
      const MoeWeights& moe = block.moe.weights;
      const auto is_down = [&](const ExpertWeights& group) { return group.spec.is_ffn() && p == &group.down.parameter(); };
      return std::ranges::any_of(moe.experts, is_down) ||
             (block.spec.moe.shared_width() > 0 && p == &moe.shared_down.parameter());
    });
  };
  for (Parameter& parameter : store_.all()) {
    if (parameter.value.empty()) continue;
    if (parameter.value.shape().size() == 1) {
      std::fill(parameter.value.span().begin(), parameter.value.span().end(), 1.0f);
    } else {
      FillNormal(parameter, is_output(&parameter) ? out_deviation : kInitDeviation, seed, ctx);
    }
  }
  for (Block& block : blocks_) {
    InitializeVectors(block.moe.weights.gate);
    Parameter* bias = block.moe.weights.selection_bias;
    if (bias != nullptr) std::ranges::fill(bias->value.span(), 0.0f);
  }
  Repack(ctx);
}

void Model::Repack(ExecContext& ctx) {
  ModelPass::ForEachPacked(*this, true, [&](PackedParameter& packed) {
    if (!packed.parameter().value.empty()) packed.Repack(training_, ctx);
  });
}

std::vector<Model::PackOf> Model::Packs() {
  std::vector<PackOf> packs;
  for (Parameter& parameter : store_.all()) {
    PackOf& entry = packs.emplace_back();
    ModelPass::ForEachPacked(*this, true, [&](PackedParameter& packed) {
      if (&packed.parameter() == &parameter) entry.packed = &packed;
    });
    for (size_t l = 0; l < blocks_.size(); ++l) {
      for (const ExpertWeights& group : blocks_[l].moe.weights.experts) {
        const bool packed = entry.packed != nullptr &&
                            (entry.packed == &group.gate_up || entry.packed == &group.middle || entry.packed == &group.down);
        if (!packed && &parameter != group.constant && &parameter != group.mix) continue;
        entry.experts_of = static_cast<int64_t>(l), entry.first_expert = group.first;
      }
    }
  }
  return packs;
}

void Model::RepackAndDropMasters(ExecContext& ctx) {
  MOE_CHECK(!training_, "a model that trains needs its masters");
  ModelPass::ForEachPacked(*this, true, [&](PackedParameter& packed) {
    if (packed.parameter().value.empty()) return;
    packed.Repack(false, ctx);
    const bool read = std::any_of(blocks_.begin(), blocks_.end(),
                                  [&](const Block& block) { return block.moe.weights.gate.reads_master(packed.parameter()); });
    if (&packed.parameter() != embedding_ && !read) packed.DropMaster();
  });
}

int64_t Model::PackedStorageBytes() const {
  int64_t bytes = 0;
  ModelPass::ForEachPacked(const_cast<Model&>(*this), false,
                           [&](PackedParameter& packed) { bytes += packed.StorageBytes(training_); });
  return bytes;
}

void Model::UsePackedStorage(std::span<std::byte> bytes) {
  MOE_CHECK(static_cast<int64_t>(bytes.size()) == PackedStorageBytes(), "{} bytes, expected {}", bytes.size(),
            PackedStorageBytes());
  size_t begin = 0;
  ModelPass::ForEachPacked(*this, false, [&](PackedParameter& packed) {
    const auto size = static_cast<size_t>(packed.StorageBytes(training_));
    packed.UseStorage(bytes.subspan(begin, size), training_);
    begin += size;
  });
}

}  // namespace moe
