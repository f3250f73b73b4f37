// Every parameter tensor, per expert, against the transformer twin in double; and the twin's own gradients against its central
// differences.

#include <gtest/gtest.h>

#include <cmath>

#include "moe/model/model.h"
#include "testing/matchers.h"
#include "testing/reference/twin_gradients.h"
#include "testing/test_context.h"
#include "testing/tiny_model.h"

namespace moe::test {
namespace {

struct Case {
  std::string name;
  ModelConfig config;
  std::vector<int64_t> lengths = {6, 3, 1};
  bool pad = false;
};

MoeConfig& MoeOf(ModelConfig& config, size_t layer) {
  return config.layers[layer].moe;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&](const char* name, auto change) {
    Case c{.name = name, .config = TinyMoe()};
    change(c);
    cases.push_back(c);
  };
  add("normalised gates", [](Case&) {});
  add("raw probabilities, QkNorm of heads", [](Case& c) {
    for (size_t l = 0; l < 2; ++l) MoeOf(c.config, l).router.normalize = false;
    c.config.qk_norm = QkNorm::kPerHead;
  });
  add("top-1, QkNorm of whole rows, no grouping of heads", [](Case& c) {
    for (size_t l = 0; l < 2; ++l) MoeOf(c.config, l).router.normalize = false, MoeOf(c.config, l).router.top_k = 1;
    c.config.qk_norm = QkNorm::kWhole;
    c.config.num_kv_heads = 4;
  });
  add("softmax over the chosen, shared experts, one key head, padding", [](Case& c) {
    for (size_t l = 0; l < 2; ++l) {
      MoeOf(c.config, l).router.score = RouterScore::kTopKSoftmax;
      MoeOf(c.config, l).num_shared_experts = 1 + static_cast<int64_t>(l);
    }
    MoeOf(c.config, 1).shared_expert_width = 32;
    c.config.num_kv_heads = 1;
    c.pad = true;
  });
  add("head of its own, a dense layer between", [](Case& c) {
    c.config.tie_embeddings = false;
    c.config.layers.insert(c.config.layers.begin() + 1, LayerSpec{.ffn = FfnKind::kDense, .ffn_width = 48});
    c.config.norm_epsilon = 1e-3f;
  });
  add("capacity drops, strong losses", [](Case& c) {
    for (size_t l = 0; l < 2; ++l) {
      RouterConfig& router = MoeOf(c.config, l).router;
      router.capacity.factor = 0.6, router.balance_loss = 0.5, router.z_loss = 0.2;
    }
    MoeOf(c.config, 0).executor = Executor::kBlockSparse;
    MoeOf(c.config, 1).executor = Executor::kPadded;
  });
  add("gate networks, gates on the input", [](Case& c) {
    RouterConfig &mlp = MoeOf(c.config, 0).router, &cosine = MoeOf(c.config, 1).router;
    mlp.gate = GateNetwork::kMlp, mlp.gate_width = 6;
    cosine.gate = GateNetwork::kCosine, cosine.gate_width = 5, cosine.gates_input = true;
  });
  add("experts of many kinds, a gate on the shared ones, other counts per layer", [](Case& c) {
    const auto give = [&](size_t layer, std::initializer_list<const char*> entries) {
      MoeConfig& moe = MoeOf(c.config, layer);
      std::vector<ExpertGroup> groups;
      moe.router.num_experts = 0;
      for (const char* entry : entries) {
        groups.push_back(ParseExpertGroup(entry, "test").value());
        moe.router.num_experts += groups.back().count;
      }
      SetExperts(groups, moe);
    };
    give(0, {"1 silu 16", "1 gelu 16 plain deep", "1 zero", "1 constant"});
    give(1, {"1 copy", "1 relu2 32 plain", "1 gelu_tanh 16 deep"});
    MoeOf(c.config, 1).num_shared_experts = 1, MoeOf(c.config, 1).shared_expert_width = 16,
                    MoeOf(c.config, 1).shared_gate = true;
    c.lengths = {9, 7, 5};
    c.pad = true;
  });
  add("dense only", [](Case& c) { c.config = TinyDense(); });
  return cases;
}

constexpr double kGradScale = 0.125, kAuxScale = 0.5;

TEST(Gradients, EqualTheDoubleTwinPerTensorAndExpert) {
  int64_t tensors = 0, slices = 0, idle = 0;
  for (const Case& c : Cases()) {
    SCOPED_TRACE(c.name);
    const TinyBatch batch = RandomBatch(c.config, c.lengths, 5, c.pad);
    TestContext t(2);
    Model model(c.config, DType::kF32, /*training=*/true);
    FillParameters(model, 11, t.ctx);
    const TwinGradients exact = Differentiate(model, batch, kGradScale, kAuxScale, Tape::Precision::kDouble);
    const double error =
        Float32Error(model, exact, Differentiate(model, batch, kGradScale, kAuxScale, Tape::Precision::kFloat32));
    ASSERT_LT(error, 1e-3);  // else the case is too badly conditioned to say anything
    const KernelTable* tables[] = {SupportedKernelTables().front(), SupportedKernelTables().back()};
    for (const KernelTable* table : tables) {
      SCOPED_TRACE(table->name);
      TestContext run(2, table);
      model.Repack(run.ctx);
      model.parameters().ZeroGradients();
      StepStats stats;
      ASSERT_TRUE(model.ForwardBackward(batch.step(), batch.targets, kGradScale, kAuxScale, &stats, run.ctx));
      EXPECT_EQ(stats.num_targets, batch.num_targets());
      EXPECT_NEAR(stats.loss_sum, exact.loss_sum, kTimesFloat32 * error * exact.loss_sum);
      int64_t dropped = 0;
      for (const LayerStats& layer : stats.layers) dropped += layer.num_dropped;
      EXPECT_EQ(dropped, exact.num_dropped);
      for (const Parameter& p : model.parameters().all()) {
        SCOPED_TRACE(p.name);
        ++tensors;
        const std::vector<double>&want = exact.values.at(p.name), got = Doubles(p.grad.span());
        for (int64_t begin = 0, n = SliceSize(p); begin < p.value.size(); begin += n, ++slices) {
          SCOPED_TRACE(begin / n);
          const double scale = MaxAbs(want.data() + begin, n);
          idle += scale == 0;
          const std::vector<double> bound(static_cast<size_t>(n), kTimesFloat32 * error * scale);
          const auto slice = [&](const std::vector<double>& v) {
            return std::span<const double>(v).subspan(static_cast<size_t>(begin), static_cast<size_t>(n));
          };
          EXPECT_TRUE(Within(slice(got), slice(want), bound));
        }
      }
    }
  }
  RecordProperty("tensors", static_cast<int>(tensors));
  RecordProperty("slices", static_cast<int>(slices));
  EXPECT_GT(tensors, 200);
  EXPECT_LT(idle, slices / 10);  // nearly every expert was chosen by somebody
}

// One random direction per slice: together they touch every value.
TEST(Gradients, TheTwinsEqualItsCentralDifferences) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(c.name);
    const TinyBatch batch = RandomBatch(c.config, c.lengths, 5, c.pad);
    TestContext t(1);
    Model model(c.config, DType::kF32, /*training=*/true);
    FillParameters(model, 11, t.ctx);
    const TwinGradients exact = Differentiate(model, batch, kGradScale, kAuxScale, Tape::Precision::kDouble);
    auto twin = MakeTwin<double>(model, nullptr);
    Rng rng(3);
    for (const Parameter& p : model.parameters().all()) {
      SCOPED_TRACE(p.name);
      std::vector<double>& values = twin.parameters[p.name];
      const std::vector<double> original = values;
      for (int64_t begin = 0, n = SliceSize(p); begin < p.value.size(); begin += n) {
        std::vector<double> direction;
        double want = 0, length = 0;
        for (int64_t i = 0; i < n; ++i) {
          direction.push_back(rng.Normal());
          length += direction.back() * direction.back();
        }
        for (double& d : direction) d /= std::sqrt(length);
        for (int64_t i = 0; i < n; ++i)
          want += direction[static_cast<size_t>(i)] * exact.values.at(p.name)[static_cast<size_t>(begin + i)];
        const auto at = [&](double step) {
          for (int64_t i = 0; i < n; ++i)
            values[static_cast<size_t>(begin + i)] =
                original[static_cast<size_t>(begin + i)] + step * direction[static_cast<size_t>(i)];
          const double objective = twin.Loss(batch.rows, batch.targets, kGradScale, kAuxScale);
          values = original;
          return objective;
        };
        const auto difference = [&](double step) { return (at(step) - at(-step)) / (2 * step); };
        // Steps so short that no token changes its experts. Halving the step quarters the truncation error, so what it changes
        // is three times what is left; the objective is a sum of some thousand terms, rounded.
        constexpr double h = 1e-5;
        const double got = difference(h), rounding = 100 * 0x1p-53 * std::abs(exact.objective) / h;
        EXPECT_NEAR(got, want, std::abs(difference(2 * h) - got) + rounding);
      }
    }
  }
}

}  // namespace
}  // namespace moe::test
