#include <gtest/gtest.h>

#include <cmath>

#include "moe/model/model.h"
#include "moe/ops/optimizer_step.h"
#include "testing/matchers.h"
#include "testing/test_context.h"
#include "testing/tiny_model.h"

namespace moe::test {
namespace {

// Larger than a chunk of anything, so that threads really share the work.
ModelConfig SmallMoe() {
  ModelConfig config = TinyMoe();
  config.vocab_size = 300, config.hidden = 64, config.head_width = 16, config.context = 160;
  for (LayerSpec& layer : config.layers) layer.moe.router.num_experts = 6, layer.moe.router.capacity.factor = 1.1;
  config.layers[1].moe.num_shared_experts = 1;
  return config;
}

TEST(Training, GradientsAreTheSameBitsForAnyNumberOfThreads) {
  for (const DType format : {DType::kF32, DType::kBf16}) {
    for (const QkNorm norm : {QkNorm::kNone, QkNorm::kPerHead}) {
      SCOPED_TRACE(fmt::format("{} norm {}", Name(format), static_cast<int>(norm)));
      ModelConfig config = SmallMoe();
      config.qk_norm = norm;
      const TinyBatch batch = RandomBatch(config, {150, 97, 150, 3, 150}, 6, true);
      std::vector<std::vector<float>> want;
      double want_loss = 0;
      for (int threads = 1; threads <= 4; ++threads) {
        SCOPED_TRACE(threads);
        TestContext t(threads);
        Model model(config, format, true);
        model.Initialize(42, t.ctx);
        StepStats stats;
        ASSERT_TRUE(model.ForwardBackward(batch.step(), batch.targets, 0.01f, 1, &stats, t.ctx));
        if (threads == 1) want_loss = stats.loss_sum;
        EXPECT_EQ(stats.loss_sum, want_loss);
        size_t i = 0;
        for (const Parameter& p : model.parameters().all()) {
          SCOPED_TRACE(p.name);
          if (threads == 1) want.emplace_back(p.grad.span().begin(), p.grad.span().end());
          ExpectSameBits(p.grad.span(), want[i++]);
        }
      }
    }
  }
}

TEST(Training, GradientsOfTwoMicroBatchesAdd) {
  TestContext t(2);
  Model model(TinyMoe(), DType::kF32, true);
  FillParameters(model, 7, t.ctx);
  const TinyBatch a = RandomBatch(model.config(), {6}, 1), b = RandomBatch(model.config(), {4, 4}, 2);
  const auto gradients = [&](std::vector<const TinyBatch*> batches) {
    model.parameters().ZeroGradients();
    for (const TinyBatch* batch : batches) {
      t.arena.Reset();
      EXPECT_TRUE(model.ForwardBackward(batch->step(), batch->targets, 0.1f, 0.5f, nullptr, t.ctx));
    }
    std::vector<std::vector<double>> out;
    for (const Parameter& p : model.parameters().all()) out.push_back(Doubles(p.grad.span()));
    return out;
  };
  const auto first = gradients({&a}), second = gradients({&b}), both = gradients({&a, &b});
  for (size_t p = 0; p < both.size(); ++p) {
    double largest = 0;
    for (const auto& g : {first[p], second[p], both[p]}) {
      for (const double x : g) largest = std::max(largest, std::abs(x));
    }
    for (size_t i = 0; i < both[p].size();
         ++i) {  // the second sum starts from the first instead of 0: as many roundings as rows
      EXPECT_NEAR(both[p][i], first[p][i] + second[p][i], 8 * 4 * kEpsF32 * largest);
    }
  }
}

TEST(Training, LossIsThatOfEvaluateAndDroppingIsOnlyForTraining) {
  TestContext t(2);
  ModelConfig config = SmallMoe();
  const TinyBatch batch = RandomBatch(config, {60, 33}, 8);
  for (const double capacity_factor : {0.0, 0.5}) {
    SCOPED_TRACE(capacity_factor);
    for (LayerSpec& layer : config.layers) layer.moe.router.capacity.factor = capacity_factor;
    Model model(config, DType::kBf16, true);
    model.Initialize(3, t.ctx);
    StepStats trained, evaluated;
    t.arena.Reset();
    ASSERT_TRUE(model.ForwardBackward(batch.step(), batch.targets, 1, 1, &trained, t.ctx));
    t.arena.Reset();
    ASSERT_TRUE(model.Evaluate(batch.step(), batch.targets, &evaluated, {}, t.ctx));
    EXPECT_EQ(evaluated.layers[0].num_dropped + evaluated.layers[1].num_dropped, 0);
    EXPECT_EQ(trained.layers[0].num_dropped > 0, capacity_factor > 0);
    EXPECT_EQ(trained.loss_sum == evaluated.loss_sum, capacity_factor == 0);
    EXPECT_EQ(trained.layers[0].tokens_per_expert,
              evaluated.layers[0].tokens_per_expert);  // before dropping, of the same input
  }
}

TEST(Training, ATinySequenceIsLearntByHeart) {
  for (const DType format : {DType::kF32, DType::kBf16}) {
    for (const ModelConfig& config : {TinyMoe(), TinyDense()}) {
      SCOPED_TRACE(fmt::format("{} {}", Name(format), config.has_experts() ? "moe" : "dense"));
      TestContext t(2);
      Model model(config, format, true);
      model.Initialize(1, t.ctx);
      const TinyBatch batch = RandomBatch(config, {24}, 9);
      std::vector<Tensor> m, v;
      for (const Parameter& p : model.parameters().all()) m.emplace_back(p.value.shape()), v.emplace_back(p.value.shape());
      double first = 0, last = 0;
      for (int step = 1; step <= 120; ++step) {
        StepStats stats;
        t.arena.Reset();
        model.parameters().ZeroGradients();
        ASSERT_TRUE(model.ForwardBackward(batch.step(), batch.targets, 1.0f / 23, 1, &stats, t.ctx));
        last = stats.loss_sum / 23;
        if (step == 1) first = last;
        size_t i = 0;
        for (Parameter& p : model.parameters().all()) {
          const AdamwStep adamw{.lr = 0.01f,
                                .beta1 = 0.9f,
                                .beta2 = 0.95f,
                                .epsilon = 1e-8f,
                                .weight_decay = 0,
                                .correction1 = static_cast<float>(1 - std::pow(0.9, step)),
                                .correction2 = static_cast<float>(1 - std::pow(0.95, step)),
                                .grad_scale = 1};
          const AdamwTensor tensor{.parameter = &p, .m = m[i].span(), .v = v[i].span()};
          AdamwPass(adamw, {&tensor, 1}, t.ctx);
          ++i;
        }
        model.Repack(t.ctx);
      }
      EXPECT_NEAR(first, std::log(41.0), 0.1);  // untrained: as good as guessing
      EXPECT_LT(last, 0.1);
    }
  }
}

TEST(Training, TheArenaDoesNotGrowAfterTheSecondStep) {
  for (const bool training : {true, false}) {
    TestContext t(2);
    Model model(SmallMoe(), DType::kBf16, true);
    model.Initialize(1, t.ctx);
    StepStats stats;
    KvCache cache = KvCache::Make(model.config(), 2, 160);
    int64_t allocations = 0;
    for (int step = 0; step < 5; ++step) {
      const TinyBatch batch = RandomBatch(model.config(), {120, 100}, static_cast<uint64_t>(step));
      t.arena.Reset();
      if (training) {
        ASSERT_TRUE(model.ForwardBackward(batch.step(), batch.targets, 1, 1, &stats, t.ctx));
      } else {
        ASSERT_TRUE(model.Forward(batch.step(&cache), &stats, t.ctx));
      }
      if (step == 1) allocations = t.arena.num_allocations();
      if (step > 1) {
        EXPECT_EQ(t.arena.num_allocations(), allocations) << training << " step " << step;
      }
    }
  }
}

TEST(Training, InitialValuesDependOnSeedAndNameAlone) {
  TestContext one(1), three(3);
  Model moe(TinyMoe(), DType::kF32, true), again(TinyMoe(), DType::kBf16, false), other(TinyMoe(), DType::kF32, true);
  Model twin(DenseTwin(TinyMoe(), TwinKind::kEqualActive), DType::kF32, true);
  moe.Initialize(5, one.ctx), again.Initialize(5, three.ctx), other.Initialize(6, one.ctx), twin.Initialize(5, one.ctx);
  int64_t shared = 0;
  for (Parameter& p : moe.parameters().all()) {
    SCOPED_TRACE(p.name);
    ExpectSameBits(p.value.span(), again.parameters().Find(p.name)->value.span());
    const bool norm = p.value.shape().size() == 1;
    EXPECT_EQ(p.decay, !norm);
    const Parameter* in_twin = twin.parameters().Find(p.name);
    if (in_twin != nullptr) ExpectSameBits(p.value.span(), in_twin->value.span()), ++shared;
    double sum = 0, squares = 0;
    int64_t equal = 0;
    for (int64_t i = 0; i < p.value.size(); ++i) {
      const double x = static_cast<double>(p.value.data()[i]);
      sum += x, squares += x * x;
      equal += p.value.data()[i] == other.parameters().Find(p.name)->value.data()[i];
    }
    const double n = static_cast<double>(p.value.size());
    if (norm) {
      EXPECT_EQ(sum, n);
      EXPECT_EQ(squares, n);
      continue;
    }
    const bool output = p.name.ends_with("out") || p.name.ends_with("down");
    const double deviation = output ? 0.02 / 2 : 0.02;  // sqrt(2 L) = 2
    EXPECT_EQ(equal, 0);
    EXPECT_NEAR(sum / n, 0, 5 * deviation / std::sqrt(n));  // 5 sigma
    EXPECT_NEAR(std::sqrt(squares / n), deviation, 5 * deviation / std::sqrt(2 * n));
  }
  EXPECT_EQ(shared, 1 + 2 * 4 + 1);  // embedding; per layer two norms, qkv, out; final norm
}

TEST(Training, PacksAloneComputeTheSame) {
  TestContext t(2);
  ModelConfig config = TinyMoe();
  config.layers[1] = TinyDense().layers[0];
  config.layers.push_back(config.layers[0]);
  config.layers[2].moe.router.gate = GateNetwork::kCosine, config.layers[2].moe.router.gate_width = 5;
  for (const bool tied : {true, false}) {
    config.tie_embeddings = tied;
    Model model(config, DType::kBf16, false);
    model.Initialize(2, t.ctx);
    const TinyBatch batch = RandomBatch(config, {9}, 1);
    const auto logits = [&] {
      const auto m = model.Forward(batch.step(), nullptr, t.ctx);
      return m ? std::vector<float>(m->data, m->data + m->size()) : std::vector<float>();
    };
    const std::vector<float> want = logits();
    const int64_t values = model.parameters().num_values();
    model.RepackAndDropMasters(t.ctx);
    EXPECT_EQ(model.parameters().num_values(), values);
    EXPECT_TRUE(model.parameters().Find("layers.0.moe.experts.down")->value.empty());
    EXPECT_TRUE(model.parameters().Find("layers.0.moe.router")->value.empty());
    EXPECT_TRUE(model.parameters().Find("layers.2.moe.router_hidden")->value.empty());
    EXPECT_FALSE(model.parameters().Find("layers.2.moe.router")->value.empty());  // whose rows are measured
    EXPECT_FALSE(model.parameters().Find("embedding")->value.empty());
    EXPECT_FALSE(model.parameters().Find("final_norm")->value.empty());
    ExpectSameBits(logits(), want);
  }
}

TEST(Training, ModelsCanShareOneMemoryOfRandomWeights) {
  TestContext t(2);
  const ModelConfig config = TinyMoe(), twin_config = DenseTwin(config, TwinKind::kEqualTotal);
  Model moe(config, DType::kBf16, false, /*masters=*/false), twin(twin_config, DType::kBf16, false, false);
  EXPECT_TRUE(moe.parameters().Find("layers.0.attention.qkv")->value.empty());
  const int64_t bytes = std::max(moe.PackedStorageBytes(), twin.PackedStorageBytes());
  const AlignedBytes memory = AllocateAligned(static_cast<size_t>(bytes));
  Rng rng(1);
  for (int64_t i = 0; i < bytes / 2; ++i) {
    const Bf16 x = ToBf16(static_cast<float>(0.02 * rng.Normal()));
    std::memcpy(memory.get() + 2 * i, &x, 2);
  }
  for (Model* model : {&moe, &twin}) {
    model->UsePackedStorage({memory.get(), static_cast<size_t>(model->PackedStorageBytes())});
    model->Initialize(1, t.ctx);
    const TinyBatch batch = RandomBatch(config, {5}, 1);
    const auto logits = model->Forward(batch.step(), nullptr, t.ctx);
    ASSERT_TRUE(logits);
    for (int64_t r = 0; r < logits->rows; ++r) {
      for (const float x : logits->row_span(r)) EXPECT_TRUE(std::isfinite(x));
    }
  }
}

}  // namespace
}  // namespace moe::test
