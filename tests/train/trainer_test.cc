#include "moe/train/trainer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "moe/model/evaluate.h"
#include "testing/matchers.h"
#include "tests/train/tiny_run.h"

namespace moe {
namespace {

const KernelTable& BestTable() {
  return *SupportedKernelTables().front();
}

// One tiny trainer with all it needs.
struct Bench {
  Recipe recipe;
  ThreadPool pool;
  Arena arena;
  ExecContext ctx;
  Corpus corpus;
  Model model;
  Trainer trainer;

  explicit Bench(const std::vector<std::string>& sets = {}, int threads = 1, const KernelTable& table = BestTable())
      : recipe(ParseRecipe(test::kTinyRecipe, "tiny", "/", {.sets = sets}).value()),
        pool(threads),
        ctx{pool, arena, table},
        corpus(Tokenize(std::vector<std::string>{test::TinyText(1, 3000)}, Tokenizer::Bytes(), true, pool)),
        model(MakeModelConfig(recipe, 259, 256, 257, "tiny").value(), recipe.train.dtype, true),
        trainer(recipe, corpus, std::vector<int32_t>(259, 1), model) {
    trainer.Restart(ctx);
  }
  StepMetrics Step() {
    StepMetrics metrics;
    const Status status = trainer.Step(metrics, ctx);
    EXPECT_TRUE(status) << status.error().Message();
    return metrics;
  }
};

std::vector<float> Weights(const Model& model) {
  std::vector<float> all;
  for (const Parameter& p : model.parameters().all()) {
    const auto values = p.value.span();
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

TEST(Trainer, LearnsAndReports) {
  for (const char* ffn : {"model.ffn=moe", "model.ffn=dense-active"}) {
    Bench bench({"train.steps=60", ffn});
    const StepMetrics first = bench.Step();
    EXPECT_EQ(first.step, 1);
    EXPECT_EQ(first.steps, 60);
    EXPECT_EQ(first.tokens, 64);
    EXPECT_EQ(first.step_tokens, 64);
    EXPECT_NEAR(first.loss, std::log(259.0), 0.2);                      // knows nothing yet
    EXPECT_DOUBLE_EQ(first.bits_per_byte, first.loss / std::log(2.0));  // a token is a byte here
    EXPECT_GT(first.grad_norm, 0);
    EXPECT_GT(first.parts.total(), 0);
    StepMetrics last;
    for (int i = 1; i < 60; ++i) last = bench.Step();
    EXPECT_LT(last.loss, 2.5) << ffn;
    EXPECT_EQ(last.tokens, 60 * 64);
    EXPECT_GT(last.seconds, first.seconds);
    EXPECT_LT(last.lr, first.lr);
    ASSERT_EQ(last.layers.size(), 2u);
    const bool moe = bench.recipe.model.ffn == RecipeFfn::kMoe;
    for (const LayerStats& layer : last.layers) {
      int64_t slots = 0;
      for (const int64_t n : layer.tokens_per_expert) slots += n;
      EXPECT_EQ(slots, moe ? 2 * 64 : 0);
    }
    if (moe) {
      EXPECT_GE(last.balance_loss(),
                0.9);  // 1 is balance; a little less is possible, counts and probabilities are not the same
      EXPECT_GE(last.max_violation(), 0);
    } else {
      EXPECT_EQ(last.balance_loss(), 0);
    }
  }
}

TEST(Trainer, ThreadsChangeNothingBitForBit) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const char* dtype : {"train.dtype=f32", "train.dtype=bf16"}) {
      Bench one({dtype}, 1, *table), two({dtype}, 2, *table), three({dtype}, 3, *table);
      for (int i = 0; i < 3; ++i) {
        const StepMetrics a = one.Step(), b = two.Step(), c = three.Step();
        EXPECT_EQ(a.loss, b.loss);
        EXPECT_EQ(a.grad_norm, b.grad_norm);
        EXPECT_EQ(a.grad_norm, c.grad_norm);
      }
      test::ExpectSameBits(Weights(one.model), Weights(two.model));
      test::ExpectSameBits(Weights(one.model), Weights(three.model));
    }
  }
}

// Sequences do not see each other, and the loss is a mean over all targets: how they are grouped only rounds differently. The
// z-loss is a mean too; the balance loss is a product of means, and dropping looks at the whole micro-batch: both are off.
TEST(Trainer, MicroBatchesAddUpToTheBatch) {
  const std::vector<std::string> sets = {"router.balance_loss=0", "router.z_loss=0.1", "router.capacity_factor="};
  const auto with = [&](const std::string& micro) {
    auto all = sets;
    all.push_back("train.micro_batch_tokens=" + micro);
    return all;
  };
  Bench whole(with("64")), quarters(with("16"));
  const StepMetrics a = whole.Step(), b = quarters.Step();
  EXPECT_NEAR(a.loss, b.loss, 64 * test::kEpsF32 * a.loss);
  EXPECT_NEAR(a.grad_norm, b.grad_norm, 64 * test::kEpsF32 * a.grad_norm);
  EXPECT_NEAR(a.z_loss(), b.z_loss(), 64 * test::kEpsF32 * a.z_loss());
  for (size_t l = 0; l < 2; ++l) EXPECT_EQ(a.layers[l].tokens_per_expert, b.layers[l].tokens_per_expert);
}

TEST(Trainer, EqualMicroBatchesPushTheRouterAsMuchAsOne) {
  // One document of one repeated token: every micro-batch holds the same rows, so their mean is any one of them.
  const auto norm = [](const std::string& batch_tokens) {
    Bench bench({"router.balance_loss=1", "train.micro_batch_tokens=16", "train.batch_tokens=" + batch_tokens});
    Corpus same;
    same.documents = {std::vector<int32_t>(16 * 8, 65)};
    same.num_tokens = 16 * 8;
    Recipe recipe = bench.recipe;
    recipe.train.seed = 1;
    Trainer trainer(recipe, same, std::vector<int32_t>(259, 1), bench.model);
    trainer.Restart(bench.ctx);
    StepMetrics metrics;
    // the first windows of an epoch are full ones: 16 tokens each
    EXPECT_TRUE(trainer.Step(metrics, bench.ctx));
    return metrics.grad_norm;
  };
  const double one = norm("16"), four = norm("64");
  EXPECT_NEAR(one, four, 64 * test::kEpsF32 * one);
}

TEST(Trainer, ALossThatIsNotFiniteStopsBeforeTheUpdate) {
  Bench bench({"train.lr=1e30", "train.clip=0", "train.warmup=0"});
  bench.Step();
  std::vector<float> before;
  for (int i = 0; i < 5; ++i) {
    before = Weights(bench.model);
    StepMetrics metrics;
    const int64_t done = bench.trainer.steps_done();
    const Status status = bench.trainer.Step(metrics, bench.ctx);
    if (status) continue;
    EXPECT_EQ(status.error().where, fmt::format("step {}", done + 1));
    EXPECT_NE(status.error().what.find("layer"), std::string::npos) << status.error().Message();
    EXPECT_NE(status.error().what.find("try a lower train.lr (now 1e+30)"), std::string::npos) << status.error().Message();
    EXPECT_EQ(bench.trainer.steps_done(), done);
    test::ExpectSameBits(Weights(bench.model), before);
    return;
  }
  FAIL() << "a learning rate of 1e30 went unnoticed";
}

// One expert's values, moments and packs in a layer, as bits.
std::vector<uint32_t> ExpertBits(Bench& bench, int64_t layer, int64_t e) {
  std::vector<uint32_t> bits;
  const auto add = [&](const void* data, int64_t bytes) {
    const auto* p = static_cast<const uint32_t*>(data);
    bits.insert(bits.end(), p, p + bytes / 4);
  };
  const auto packs = bench.model.Packs();
  size_t i = 0;
  for (const Parameter& p : bench.model.parameters().all()) {
    const Model::PackOf& pack = packs[i];
    if (pack.experts_of == layer) {
      const int64_t size = p.value.size() / p.value.shape()[0];
      for (const Tensor* t :
           std::initializer_list<const Tensor*>{&p.value, &bench.trainer.optimizer().m[i], &bench.trainer.optimizer().v[i]})
        add(t->data() + e * size, 4 * size);
      add(pack.packed->forward(e).data, pack.packed->forward(e).bytes());
      add(pack.packed->transposed(e).data, pack.packed->transposed(e).bytes());
    }
    ++i;
  }
  return bits;
}

TEST(Trainer, ExpertsWithoutTokensAreSkippedWhenAsked) {
  constexpr int64_t kExperts = 48;
  for (const char* dtype : {"train.dtype=f32", "train.dtype=bf16"}) {
    const std::vector<std::string> sets = {dtype,
                                           "model.experts=48",
                                           "model.top_k=1",
                                           "router.normalize=false",
                                           "train.batch_tokens=32",
                                           "train.micro_batch_tokens=16",
                                           "router.capacity_factor=",
                                           "train.skip_idle_experts=true"};
    auto without = sets;
    without.back() = "train.skip_idle_experts=false";
    Bench skipping(sets), ordinary(without);
    for (int step = 0; step < 3; ++step) {
      // From the same state, then a step of each.
      auto& from = skipping.trainer.optimizer();
      auto& to = ordinary.trainer.optimizer();
      to.steps_done = from.steps_done;
      for (size_t i = 0; i < from.m.size(); ++i) {
        const auto copy = [](const Tensor& a, Tensor& b) { std::ranges::copy(a.span(), b.span().begin()); };
        copy(skipping.model.parameters().all()[i].value, ordinary.model.parameters().all()[i].value);
        copy(from.m[i], to.m[i]), copy(from.v[i], to.v[i]);
      }
      ordinary.model.Repack(ordinary.ctx);
      std::vector<std::vector<uint32_t>> before;
      for (int64_t i = 0; i < 2 * kExperts; ++i) before.push_back(ExpertBits(skipping, i / kExperts, i % kExperts));
      const StepMetrics metrics = skipping.Step();
      EXPECT_EQ(metrics.loss, ordinary.Step().loss);
      int64_t num_idle = 0;
      for (int64_t i = 0; i < 2 * kExperts; ++i) {
        const int64_t layer = i / kExperts, e = i % kExperts;
        const bool idle = metrics.layers[static_cast<size_t>(layer)].tokens_per_expert[static_cast<size_t>(e)] == 0;
        num_idle += idle;
        EXPECT_EQ(ExpertBits(skipping, layer, e) == before[static_cast<size_t>(i)], idle) << layer << " " << e;
        EXPECT_EQ(ExpertBits(skipping, layer, e) == ExpertBits(ordinary, layer, e), !idle) << layer << " " << e;
      }
      EXPECT_GE(num_idle, 2 * (kExperts - 32));
      EXPECT_LT(num_idle, 2 * kExperts);
      // Routers, attention, norms and embedding know nothing of it.
      const auto packs = skipping.model.Packs();
      for (size_t i = 0; i < packs.size(); ++i) {
        if (packs[i].experts_of >= 0) continue;
        test::ExpectSameBits(skipping.model.parameters().all()[i].value.span(),
                             ordinary.model.parameters().all()[i].value.span());
      }
    }
  }
}

// In groups of other kinds too, each with its own part of the counts.
TEST(Trainer, ExpertsOfEveryKindAreSkippedByTheirOwnCounts) {
  const std::vector<std::string> sets = {"model.expert_groups=20 silu 16, 14 relu2 16 plain deep, 14 constant",
                                         "model.experts=48",
                                         "model.expert_width=",
                                         "model.top_k=1",
                                         "router.normalize=false",
                                         "train.batch_tokens=32",
                                         "train.micro_batch_tokens=16",
                                         "router.capacity_factor=",
                                         "train.skip_idle_experts=true"};
  Bench bench(sets);
  int64_t checked = 0, idle = 0;
  for (int step = 0; step < 3; ++step) {
    std::vector<std::vector<float>> before;
    for (const Parameter& p : bench.model.parameters().all()) before.emplace_back(p.value.span().begin(), p.value.span().end());
    const StepMetrics metrics = bench.Step();
    const auto packs = bench.model.Packs();
    size_t i = 0;
    for (const Parameter& p : bench.model.parameters().all()) {
      const Model::PackOf& pack = packs[i];
      const std::vector<float>& old = before[i++];
      if (pack.experts_of < 0) continue;
      const auto& counts = metrics.layers[static_cast<size_t>(pack.experts_of)].tokens_per_expert;
      const int64_t size = p.value.size() / p.experts;
      for (int64_t e = 0; e < p.experts; ++e) {
        const bool same = std::equal(p.value.data() + e * size, p.value.data() + (e + 1) * size, old.begin() + e * size);
        const bool unused = counts[static_cast<size_t>(pack.first_expert + e)] == 0;
        EXPECT_EQ(same, unused) << p.name << " " << e;
        ++checked, idle += unused;
      }
    }
    // Each group's counts are its own: the names say where it begins.
    for (size_t j = 0; j < packs.size(); ++j) {
      const std::string& name = bench.model.parameters().all()[j].name;
      const bool second = name.find("experts.1.") != std::string::npos, third = name.find("experts.2.") != std::string::npos;
      EXPECT_EQ(packs[j].first_expert, second ? 20 : third ? 34 : 0) << name;
    }
  }
  EXPECT_EQ(checked, 3 * 2 * (2 * 20 + 3 * 14 + 2 * 14));
  EXPECT_GT(idle, checked / 4);
  EXPECT_LT(idle, checked);
}

TEST(Trainer, PacksFollowTheMasters) {
  for (const char* tied : {"model.tie_embeddings=true", "model.tie_embeddings=false"}) {
    for (const char* dtype : {"train.dtype=f32", "train.dtype=bf16"}) {
      Bench bench({tied, dtype, "model.shared_experts=1", "model.dense_layers=[0]", "model.ffn_width=48"}, 2);
      const auto packed_bytes = [&] {
        std::vector<std::byte> all;
        for (const Model::PackOf& pack : bench.model.Packs()) {
          if (pack.packed == nullptr) continue;
          for (int64_t e = 0; e < pack.packed->count(); ++e) {
            for (const PackedWeight& w : {pack.packed->forward(e), pack.packed->transposed(e)})
              all.insert(all.end(), w.data, w.data + w.bytes());
          }
        }
        return all;
      };
      const auto before = packed_bytes();
      bench.Step();
      const auto after = packed_bytes();
      EXPECT_FALSE(after == before);
      bench.model.Repack(bench.ctx);
      EXPECT_TRUE(after == packed_bytes()) << tied << " " << dtype;
    }
  }
}

TEST(Trainer, RestartForgetsEverything) {
  Bench bench, fresh;
  for (int i = 0; i < 3; ++i) bench.Step();
  bench.trainer.Restart(bench.ctx);
  EXPECT_EQ(bench.trainer.steps_done(), 0);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(bench.Step().loss, fresh.Step().loss);
  test::ExpectSameBits(Weights(bench.model), Weights(fresh.model));
}

TEST(Trainer, MemoryStopsGrowing) {
  Bench bench;
  for (int i = 0; i < 3; ++i) bench.Step();
  const int64_t allocations = bench.arena.num_allocations();
  for (int i = 0; i < 3; ++i) bench.Step();
  EXPECT_LE(bench.arena.num_allocations(), allocations + 1);  // expert loads differ from step to step
}

}  // namespace
}  // namespace moe
