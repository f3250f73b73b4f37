#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

#include "moe/base/rng.h"
#include "moe/model/model.h"
#include "testing/test_context.h"
#include "testing/tiny_model.h"

namespace moe::test {
namespace {

struct Case {
  std::string name;
  ModelConfig config;
};

// Large enough that what a thread keeps for itself is small beside it.
std::vector<Case> Cases() {
  ModelConfig base = TinyMoe();
  base.vocab_size = 512, base.hidden = 128, base.num_heads = 4, base.num_kv_heads = 2, base.head_width = 32, base.context = 128;
  for (LayerSpec& layer : base.layers) {
    layer.moe.router.num_experts = 8, layer.moe.expert_width = 128;
  }
  std::vector<Case> cases;
  const auto add = [&](const char* name, auto change) {
    cases.push_back({name, base});
    change(cases.back().config);
  };
  add("moe", [](ModelConfig&) {});
  add("shared experts, QkNorm of heads", [](ModelConfig& c) {
    c.qk_norm = QkNorm::kPerHead;
    for (LayerSpec& layer : c.layers) layer.moe.num_shared_experts = 2;
  });
  add("padded buckets, QkNorm of whole rows, widths off the panel", [](ModelConfig& c) {
    c.qk_norm = QkNorm::kWhole, c.hidden = 120;
    for (LayerSpec& layer : c.layers) {
      layer.moe.router.capacity.factor = 1.25, layer.moe.executor = Executor::kPadded, layer.moe.expert_width = 80;
    }
  });
  add("buckets of more rows than tokens", [](ModelConfig& c) {
    for (LayerSpec& layer : c.layers) {
      layer.moe.router.capacity.factor = 8, layer.moe.executor = Executor::kPadded;
    }
  });
  add("blocks", [](ModelConfig& c) {
    for (LayerSpec& layer : c.layers) layer.moe.executor = Executor::kBlockSparse;
  });
  add("experts of many kinds, a gate on the shared ones", [](ModelConfig& c) {
    for (LayerSpec& layer : c.layers) {
      std::vector<ExpertGroup> groups;
      for (const char* entry : {"3 silu 128", "1 gelu 128 plain deep", "1 relu2 64 deep", "1 zero", "1 copy", "1 constant"}) {
        groups.push_back(ParseExpertGroup(entry, "test").value());
      }
      SetExperts(groups, layer.moe);
      layer.moe.num_shared_experts = 1, layer.moe.shared_expert_width = 128, layer.moe.shared_gate = true;
    }
  });
  add("other experts in every layer", [](ModelConfig& c) {
    c.layers[0].moe.router.num_experts = 4, c.layers[1].moe.router.num_experts = 16, c.layers[1].moe.router.top_k = 3;
  });
  for (const char* policy :
       {"noise=jitter,noise_scale=0.1", "score=sigmoid,balance_bias=sign,bias=true", "noise=gaussian,noise_scale=1",
        "score=sparsemixer,normalize=false", "selection=sinkhorn", "sequence_loss=1,capacity_factor=1.5",
        "selection=expert_choice,normalize=false,allow_noncausal=true", "score=relu,normalize=false",
        "capacity_factor=0.6,target_drop=0.1,least_capacity_factor=0.5,most_capacity_factor=0.6",
        "capacity_factor=0.5,eval_capacity_factor=0.5", "gate=mlp,gate_width=96", "gate=cosine,gate_width=96", "dtype=bf16",
        "gates_input=true", "load_loss=1,noise=gaussian,noise_scale=1"}) {
    add(policy, [&](ModelConfig& c) {
      for (LayerSpec& layer : c.layers) layer.moe.router = ParsePolicy(policy, layer.moe.router.num_experts, "test").value();
    });
  }
  add("dense", [](ModelConfig& c) { c.layers.assign(3, LayerSpec{.ffn = FfnKind::kDense, .ffn_width = 512}); });
  add("a large vocabulary", [](ModelConfig& c) { c.vocab_size = 6000, c.tie_embeddings = false; });
  return cases;
}

// As many values as Initialize gives, each in less time: routers are to spread the tokens, no more.
void Fill(Model& model, ExecContext& ctx) {
  Rng rng(1);
  for (Parameter& parameter : model.parameters().all()) {
    const bool matrix = parameter.value.shape().size() > 1;
    for (float& x : parameter.value.span())
      x = matrix ? static_cast<float>(static_cast<int32_t>(rng.Next() >> 32)) * 0x1p-36f : 1;
  }
  model.Repack(ctx);
}

TEST(Memory, TrainingIsPredictedWithinATenth) {
  for (const Case& c : Cases()) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      SCOPED_TRACE(c.name + " " + std::string(Name(format)));
      const TinyBatch batch = RandomBatch(c.config, std::vector<int64_t>(8, 128), 1);
      TestContext t(2);
      Model model(c.config, format, true);
      Fill(model, t.ctx);
      Arena arena(size_t{256} << 20);  // one block: the peak counts no tails of blocks that were too small
      ExecContext ctx{t.pool, arena, t.ctx.kernels};
      ASSERT_TRUE(model.ForwardBackward(batch.step(), batch.targets, 1, 1, nullptr, ctx));
      const MemoryNeed need = TrainingMemory(c.config, format, static_cast<int64_t>(batch.rows.size()));
      const int64_t rope = c.config.context * c.config.head_width * 4;
      const double ratio = static_cast<double>(arena.peak_bytes()) / static_cast<double>(need.activations - rope);
      EXPECT_GT(ratio, 0.9);
      EXPECT_LT(ratio, 1.1);
    }
  }
}

TEST(Memory, InferenceIsPredictedWithinAFifth) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(c.name);
    for (const int64_t length : {1, 100}) {
      SCOPED_TRACE(length);
      TinyBatch batch = RandomBatch(c.config, std::vector<int64_t>(16, length), 1);
      batch.logit_rows.clear();
      for (int32_t s = 0; s < 16; ++s) batch.logit_rows.push_back(static_cast<int32_t>((s + 1) * length - 1));
      TestContext t(1);
      Model model(c.config, DType::kBf16, false);
      Fill(model, t.ctx);
      KvCache cache = KvCache::Make(c.config, 16, 100);
      Arena arena(size_t{128} << 20);
      ExecContext ctx{t.pool, arena, t.ctx.kernels};
      ASSERT_TRUE(model.Forward(batch.step(&cache), nullptr, ctx));
      const auto rows = static_cast<int64_t>(batch.rows.size());
      const MemoryNeed need = InferenceMemory(c.config, DType::kBf16, rows, 16, 100);
      const int64_t rope = c.config.context * c.config.head_width * 4, per_thread = int64_t{1} << 20;
      EXPECT_LT(arena.peak_bytes(), 1.2 * static_cast<double>(need.activations - rope) + static_cast<double>(per_thread));
      EXPECT_GT(arena.peak_bytes(), 0.8 * static_cast<double>(need.activations - rope));
    }
  }
}

TEST(Memory, ParametersAreCountedExactly) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(c.name);
    TestContext t(1);
    Model model(c.config, DType::kBf16, true);
    int64_t routers = 0, values = 0, gradients = 0;
    const DType format = c.name == "dtype=bf16" ? DType::kBf16 : DType::kF32;
    for (const Parameter& p : model.parameters().all()) {
      values += p.value.size() * 4, gradients += p.grad.size() * 4;
      if (!p.name.ends_with("router") && !p.name.ends_with("router_hidden")) continue;
      for (const PackSide side : {PackSide::kForward, PackSide::kTransposed}) {
        routers += PackedBytes(format, p.value.shape()[0], p.value.shape()[1], side);
      }
    }
    const MemoryNeed need = TrainingMemory(c.config, DType::kBf16, 1);
    EXPECT_EQ(need.masters, values);
    EXPECT_EQ(need.gradients, gradients);
    EXPECT_EQ(need.moments, 2 * values);
    EXPECT_EQ(need.packs, model.PackedStorageBytes() + routers);
    EXPECT_EQ(InferenceMemory(c.config, DType::kBf16, 1, 3, 5).kv_cache, KvCache::Bytes(c.config, 3, 5));
  }
}

TEST(Memory, HugeCapacityFactorsDoNotOverflow) {
  ModelConfig config = Cases()[0].config, dropless = config;
  for (LayerSpec& layer : config.layers) layer.moe.router.capacity.factor = 1e300;
  EXPECT_EQ(TrainingMemory(config, DType::kBf16, 64).total(), TrainingMemory(dropless, DType::kBf16, 64).total());
  for (LayerSpec& layer : config.layers) layer.moe.executor = Executor::kPadded;
  EXPECT_GT(TrainingMemory(config, DType::kBf16, 64).total(), int64_t{1} << 40);  // more than any machine: refused
}

}  // namespace
}  // namespace moe::test
