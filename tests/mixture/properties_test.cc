// What must hold whatever the numbers: mostly bit for bit.
#include <algorithm>
#include <numeric>

#include "moe/mixture/combine.h"
#include "moe/mixture/executor.h"
#include "tests/mixture/layer_fixture.h"

namespace moe::test {
namespace {

// A configuration drawn at random, within what Validate allows.
LayerOptions RandomOptions(Rng& rng) {
  LayerOptions options;
  options.seed = rng.Next();
  RouterConfig& rc = options.config.router;
  rc.num_experts = 1 + rng.Below(9);
  rc.top_k = 1 + rng.Below(rc.num_experts);
  rc.score = rng.Below(3) == 0 ? RouterScore::kTopKSoftmax : RouterScore::kSoftmax;
  rc.normalize = rng.Below(2) == 0;
  if (rc.top_k == 1 && rc.num_experts > 1) rc.score = RouterScore::kSoftmax, rc.normalize = false;
  options.config.expert_width = 16 * (1 + rng.Below(3));
  options.config.num_shared_experts = rng.Below(2);
  options.config.shared_gate = options.config.num_shared_experts > 0 && rng.Below(2) == 0;
  if (rng.Below(3) == 0) {  // of many kinds
    const char* kinds[] = {"silu 16", "relu2 32 plain", "gelu 16 plain deep", "silu 32 deep", "zero", "copy", "constant"};
    std::vector<std::string> entries;
    for (int64_t left = rc.num_experts, n; left > 0; left -= n) {
      n = 1 + rng.Below(left);
      entries.push_back(fmt::format("{} {}", n, kinds[rng.Below(7)]));
    }
    GiveExperts(options.config, entries);
    options.config.shared_expert_width = 16;
  }
  options.D = 1 + rng.Below(50);
  options.format = rng.Below(2) == 0 ? DType::kF32 : DType::kBf16;
  const auto tables = SupportedKernelTables();
  options.kernels = tables[static_cast<size_t>(rng.Below(static_cast<int64_t>(tables.size())))];
  return options;
}
std::vector<uint8_t> RandomValid(int64_t T, Rng& rng) {
  std::vector<uint8_t> valid;
  if (rng.Below(2) == 0) return valid;
  for (int64_t t = 0; t < T; ++t) valid.push_back(rng.Below(4) != 0);
  return valid;
}

void ExpectSameStep(const LayerStep& a, const LayerStep& b) {
  ExpectSameBits(a.y, b.y);
  ExpectSameBits(a.d_x, b.d_x);
  ExpectSameBits(a.gate, b.gate);
  ExpectSameBits(a.probs, b.probs);
  ExpectSameBits(a.expert, b.expert);
  ExpectSameBits(a.d_w.router, b.d_w.router);
  ExpectSameBits(a.d_w.gate_up, b.d_w.gate_up);
  ExpectSameBits(a.d_w.down, b.d_w.down);
  ExpectSameBits(a.d_w.shared_gate_up, b.d_w.shared_gate_up);
  ExpectSameBits(a.d_w.shared_down, b.d_w.shared_down);
  ExpectSameBits(a.d_w.shared_gate, b.d_w.shared_gate);
  ExpectSameBits(a.d_w.middle, b.d_w.middle);
  ExpectSameBits(a.d_w.constant, b.d_w.constant);
  ExpectSameBits(a.d_w.mix, b.d_w.mix);
  EXPECT_EQ(a.tokens_per_expert, b.tokens_per_expert);
  EXPECT_EQ(a.num_dropped, b.num_dropped);
  EXPECT_EQ(a.aux.balance_loss, b.aux.balance_loss);
  EXPECT_EQ(a.aux.z_loss, b.aux.z_loss);
  EXPECT_EQ(a.aux.entropy, b.aux.entropy);
}

TEST(LayerProperties, ExecutorsAgreeBitForBitForwardAndBackward) {
  for (uint64_t seed = 0; seed < 120; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    LayerOptions options = RandomOptions(rng);
    if (rng.Below(3) != 0) options.config.router.capacity.factor = 0.3 + rng.Uniform() * 1.5;
    const int64_t T = rng.Below(40);
    const auto x = NormalFloats(T * options.D, rng), d_y = NormalFloats(T * options.D, rng);
    const auto valid = RandomValid(T, rng);
    Layer grouped(options);
    for (const Executor executor : kExecutors) {
      if (!Runs(options.config, executor)) continue;
      SCOPED_TRACE(static_cast<int>(executor));
      options.config.executor = executor;
      Layer other(options);
      ExpectSameStep(grouped.Train(x, d_y, valid, 0.5f), other.Train(x, d_y, valid, 0.5f));
      ExpectSameBits(grouped.Infer(x, valid).y, other.Infer(x, valid).y);
    }
  }
}

// Experts with several blocks beside and below each other, and widths that only half a block divides.
TEST(LayerProperties, ManyBlocksAnExpertAgreeBitForBit) {
  for (const KernelTable* kernels : SupportedKernelTables()) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      for (const int64_t width : {48, 64, 128}) {
        SCOPED_TRACE(fmt::format("{} {} width {}", kernels->name, Name(format), width));
        ASSERT_EQ(ExpertBlock(width), width == 48 ? 16 : 32);
        LayerOptions options{.D = 20, .format = format, .kernels = kernels, .threads = 2};
        options.config = {.router = {.num_experts = 3, .top_k = 2}, .expert_width = width};
        Rng rng(static_cast<uint64_t>(width));
        const int64_t T = 150;
        const auto x = NormalFloats(T * options.D, rng), d_y = NormalFloats(T * options.D, rng);
        Layer grouped(options);
        const LayerStep want = grouped.Train(x, d_y);
        EXPECT_GT(*std::ranges::max_element(want.tokens_per_expert), 64);
        options.config.executor = Executor::kBlockSparse;
        Layer sparse(options);
        ExpectSameStep(sparse.Train(x, d_y), want);
        ExpectSameBits(sparse.Infer(x).y, grouped.Infer(x).y);
      }
    }
  }
}

TEST(LayerProperties, BitwiseTheSameForOneToFourThreads) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed + 1000);
    LayerOptions options = RandomOptions(rng);
    options.config.executor = kExecutors[seed % (options.config.groups.empty() ? 4 : 3)];
    if (seed % 3 == 0) options.config.router.capacity.factor = 1;
    const int64_t T = 500 + rng.Below(500);  // several chunks of every kind
    const auto x = NormalFloats(T * options.D, rng), d_y = NormalFloats(T * options.D, rng);
    const auto valid = RandomValid(T, rng);
    const LayerStep want = Layer(options).Train(x, d_y, valid);
    for (options.threads = 2; options.threads <= 4; ++options.threads) {
      ExpectSameStep(Layer(options).Train(x, d_y, valid), want);
    }
  }
}

TEST(LayerProperties, OneExpertIsTheDenseFfn) {
  for (const KernelTable* kernels : SupportedKernelTables()) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      LayerOptions options{.D = 33, .format = format, .kernels = kernels};
      options.config = {.router = {.num_experts = 1, .top_k = 1, .z_loss = 0}, .expert_width = 48};
      Layer layer(options);
      Rng rng(1);
      const int64_t T = 21;
      const auto x = NormalFloats(T * 33, rng);
      std::vector<float> hidden(static_cast<size_t>(T * 48)), y(x.size());
      const MoeWeights& w = layer.layer().weights;
      const MatView<float> h(hidden.data(), T, 48);
      Gemm({.a = MatView<const float>(x.data(), T, 33),
            .weight = &w.experts[0].gate_up.forward(),
            .epilogue = Epilogue::kSwiglu,
            .c = h},
           layer.ctx());
      Gemm({.a = h, .weight = &w.experts[0].down.forward(), .c = MatView<float>(y.data(), T, 33)}, layer.ctx());
      const auto d_y = NormalFloats(T * 33, rng);
      const LayerStep step = layer.Train(x, d_y);
      if (format == DType::kBf16) y = Halves(y).f32;  // as the experts leave it to combine
      ExpectSameBits(step.y, y);
      for (const float g : step.d_w.router) EXPECT_EQ(g, 0);  // nothing to choose
    }
  }
}

TEST(LayerProperties, PermutedTokensGivePermutedOutputsAndGradients) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const LayerOptions options = RandomOptions(rng);
    const auto D = static_cast<size_t>(options.D);
    const int64_t T = 1 + rng.Below(30);
    const auto x = NormalFloats(T * options.D, rng), d_y = NormalFloats(T * options.D, rng);
    std::vector<size_t> order(static_cast<size_t>(T));
    std::iota(order.begin(), order.end(), size_t{0});
    for (size_t i = 0; i < order.size(); ++i)
      std::swap(order[i], order[i + static_cast<size_t>(rng.Below(T - static_cast<int64_t>(i)))]);
    const auto permuted = [&](const std::vector<float>& rows) {
      std::vector<float> out;
      for (const size_t t : order)
        out.insert(out.end(), rows.begin() + static_cast<int64_t>(t * D), rows.begin() + static_cast<int64_t>((t + 1) * D));
      return out;
    };
    Layer layer(options);
    const LayerStep plain = layer.Train(x, d_y);
    const LayerStep step = layer.Train(permuted(x), permuted(d_y));
    ExpectSameBits(step.y, permuted(plain.y));
    ExpectSameBits(step.d_x, permuted(plain.d_x));
    EXPECT_EQ(step.tokens_per_expert, plain.tokens_per_expert);
  }
}

TEST(LayerProperties, ABatchIsItsTokensOneByOne) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    LayerOptions options = RandomOptions(rng);
    options.config.router.capacity.factor = 0.5;  // inference never drops
    options.config.executor = kExecutors[seed % (options.config.groups.empty() ? 4 : 3)];
    const auto D = static_cast<size_t>(options.D);
    const auto x = NormalFloats(8 * options.D, rng);
    Layer layer(options);
    const LayerStep batch = layer.Infer(x);
    EXPECT_EQ(batch.num_dropped, 0);
    for (size_t t = 0; t < 8; ++t) {
      const std::vector<float> row(x.begin() + static_cast<int64_t>(t * D), x.begin() + static_cast<int64_t>((t + 1) * D));
      ExpectSameBits(layer.Infer(row).y, std::span(batch.y).subspan(t * D, D));
    }
  }
}

// Rows and panels enough that a prompt's tiles read interleaved rows, which a token's never do.
TEST(LayerProperties, APromptIsItsTokensOneByOne) {
  size_t next = 0;
  for (const KernelTable* kernels : SupportedKernelTables()) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      LayerOptions options{.D = 130, .format = format, .kernels = kernels};
      options.config = {.router = {.num_experts = 3, .top_k = 2}, .expert_width = 64, .num_shared_experts = 1};
      options.config.executor = kExecutors[next++ % 4];
      SCOPED_TRACE(fmt::format("{} {} executor {}", kernels->name, Name(format), static_cast<int>(options.config.executor)));
      constexpr int64_t T = 256;
      const auto D = static_cast<size_t>(options.D);
      Rng rng(7);
      const auto x = NormalFloats(T * options.D, rng);
      Layer layer(options);
      const LayerStep prompt = layer.Infer(x);
      for (size_t t = 0; t < T; ++t) {
        const auto row = std::span(x).subspan(t * D, D);
        ExpectSameBits(layer.Infer({row.begin(), row.end()}).y, std::span(prompt.y).subspan(t * D, D));
      }
    }
  }
}

TEST(LayerProperties, InferenceSaysWhatDroplessTrainingSays) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    Layer layer(RandomOptions(rng));
    const int64_t D = layer.layer().weights.gate.first.K(), T = rng.Below(20);
    const auto x = NormalFloats(T * D, rng);
    const auto valid = RandomValid(T, rng);
    const LayerStep infer = layer.Infer(x, valid), train = layer.Train(x, x, valid);
    ExpectSameBits(infer.y, train.y);
    EXPECT_EQ(infer.tokens_per_expert, train.tokens_per_expert);
    EXPECT_EQ(infer.aux.balance_loss, train.aux.balance_loss);
  }
}

TEST(LayerProperties, BackwardLeavesWhatForwardSaved) {
  Rng rng(3);
  Layer layer({});
  const auto x = NormalFloats(12 * 8, rng), d_y = NormalFloats(12 * 8, rng);
  LayerStep step;
  MoeSaved saved;
  ASSERT_TRUE(layer.Forward(x, {}, step, &saved));
  std::vector<float> first(x.size()), second(x.size());
  layer.layer().Backward({x.data(), 12, 8}, saved, {d_y.data(), 12, 8}, 1, {first.data(), 12, 8}, layer.ctx());
  layer.layer().Backward({x.data(), 12, 8}, saved, {d_y.data(), 12, 8}, 1, {second.data(), 12, 8}, layer.ctx());
  ExpectSameBits(first, second);
}

// Views may be parts of wider matrices.
TEST(LayerProperties, StridesDoNotMatter) {
  Rng rng(4);
  LayerOptions options{.D = 12};
  options.config.num_shared_experts = 1;
  Layer layer(options);
  const int64_t T = 17, stride = 29;
  const auto x = NormalFloats(T * 12, rng), d_y = NormalFloats(T * 12, rng);
  const LayerStep dense = layer.Train(x, d_y);
  std::vector<float> wide_x(static_cast<size_t>(T * stride), NAN), wide_d_y = wide_x, y = wide_x, d_x = wide_x;
  for (int64_t t = 0; t < T; ++t) {
    std::copy_n(x.begin() + t * 12, 12, wide_x.begin() + t * stride);
    std::copy_n(d_y.begin() + t * 12, 12, wide_d_y.begin() + t * stride);
  }
  layer.store().ZeroGradients();
  layer.arena().Reset();
  MoeSaved saved;
  const auto view = [&](auto& m) { return MatView(m.data(), T, int64_t{12}, stride); };
  const auto const_view = [&](const std::vector<float>& m) { return MatView<const float>(m.data(), T, 12, stride); };
  ASSERT_TRUE(layer.layer().Forward(const_view(wide_x), {}, view(y), &saved, nullptr, nullptr, layer.ctx()));
  layer.layer().Backward(const_view(wide_x), saved, const_view(wide_d_y), 1, view(d_x), layer.ctx());
  for (int64_t t = 0; t < T; ++t) {
    ExpectSameBits(std::span(y).subspan(static_cast<size_t>(t * stride), 12),
                   std::span(dense.y).subspan(static_cast<size_t>(t * 12), 12));
    ExpectSameBits(std::span(d_x).subspan(static_cast<size_t>(t * stride), 12),
                   std::span(dense.d_x).subspan(static_cast<size_t>(t * 12), 12));
  }
  ExpectSameBits(std::span<const float>(layer.parameter("experts.down").grad.span()), dense.d_w.down);
}

TEST(LayerProperties, InferenceGivesItsMemoryBackButForTheCounts) {
  Layer layer({});
  Rng rng(6);
  const auto x = NormalFloats(40 * 8, rng);
  std::vector<float> y(x.size());
  RouterAux aux;
  layer.arena().Reset();
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(layer.layer().Forward({x.data(), 40, 8}, {}, {y.data(), 40, 8}, nullptr, &aux, nullptr, layer.ctx()));
  }
  const auto* first = reinterpret_cast<const std::byte*>(aux.tokens_per_expert.data());
  const auto* next = reinterpret_cast<const std::byte*>(layer.arena().Alloc<int64_t>(1).data());
  EXPECT_EQ(next - first, static_cast<std::ptrdiff_t>(kAlignment));
  EXPECT_EQ(std::accumulate(aux.tokens_per_expert.begin(), aux.tokens_per_expert.end(), int64_t{0}), 80);
}

TEST(LayerProperties, WrongShapesAreOurBug) {
  ThrowingChecks guard;
  Layer layer({});
  std::vector<float> x(24), y(24);
  MoeSaved saved;
  EXPECT_THROW((void)layer.layer().Forward({x.data(), 2, 12}, {}, {y.data(), 2, 12}, &saved, nullptr, nullptr, layer.ctx()),
               CheckError);
  EXPECT_THROW((void)layer.layer().Forward({x.data(), 3, 8}, {}, {y.data(), 2, 8}, &saved, nullptr, nullptr, layer.ctx()),
               CheckError);
  const std::vector<uint8_t> short_flags(2, 1);
  EXPECT_THROW((void)layer.layer().Forward({x.data(), 3, 8}, {.valid = short_flags}, {y.data(), 3, 8}, &saved, nullptr, nullptr,
                                           layer.ctx()),
               CheckError);
}

}  // namespace
}  // namespace moe::test
