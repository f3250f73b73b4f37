// Gate networks alone: each against its twin, and where their formulas have edges. (In a layer: moe_layer_test.cc.)
#include "moe/mixture/gate.h"

#include <limits>

#include "moe/mixture/experts.h"
#include "testing/reference/gate_twin.h"
#include "tests/mixture/router_fixture.h"

namespace moe::test {
namespace {

constexpr int64_t kD = 19, kE = 7;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

RouterConfig ConfigOf(const std::string& fields) {
  return ParsePolicy(fields + ",bias=true", kE, "test").value();
}
const char* const kGates[] = {"gate=linear", "gate=mlp,gate_width=1", "gate=mlp,gate_width=40", "gate=cosine,gate_width=2",
                              "gate=cosine,gate_width=33"};

struct Step {
  std::vector<float> logits, d_x;
  GateTwinWeights<float> d_w;
};

struct Gate {
  explicit Gate(const RouterConfig& router_config, int threads = 1,
                const KernelTable* kernels = SupportedKernelTables().front())
      : config(router_config), pool(threads), ctx{pool, arena, *kernels} {
    weights = AddGateWeights(config, kD, "", store);
    Rng rng(3);
    for (Parameter& p : store.all()) FillNormal(p.value.span(), rng, 0.5);
    store.AllocateGradients();
    Repacked();
  }
  void Repacked() {
    weights.ForEachMatrix([&](PackedParameter& p) { p.Repack(true, ctx); });
  }
  std::span<float> Value(const char* name) { return store.Find(name)->value.span(); }
  std::vector<float> Grad(const char* name) {
    Parameter* p = store.Find(name);
    return p == nullptr ? std::vector<float>() : Floats(p->grad.span());
  }

  std::vector<float> Logits(const std::vector<float>& x) {
    arena.Reset();
    const int64_t T = static_cast<int64_t>(x.size()) / kD;
    std::vector<float> logits(static_cast<size_t>(T * kE), kNan);
    GateSaved saved;
    GateForward(config, weights, {x.data(), T, kD}, false, 0, {logits.data(), T, kE}, saved, ctx);
    return logits;
  }
  Step Train(const std::vector<float>& x, const std::vector<float>& d_logits, const std::vector<uint8_t>& valid = {},
             GateSaved* kept = nullptr) {
    arena.Reset();
    store.ZeroGradients();
    const int64_t T = static_cast<int64_t>(x.size()) / kD;
    Step step{.logits = std::vector<float>(d_logits.size(), kNan), .d_x = std::vector<float>(x.size(), 0.0f)};
    GateSaved saved;
    const MatView<const float> in{x.data(), T, kD};
    GateForward(config, weights, in, true, 5, {step.logits.data(), T, kE}, saved, ctx);
    std::vector<int32_t> begin(static_cast<size_t>(T) + 1, 0);
    Routing routing{.slot_begin = begin, .valid = valid, .aux = {.num_tokens = T}};
    if (!valid.empty()) routing.aux.num_tokens = std::count(valid.begin(), valid.end(), uint8_t{1});
    const ValidRows rows = FindValidRows(routing, ctx);
    const GateGradient gradient = GateBackward(config, weights, in, saved, rows, {d_logits.data(), T, kE}, ctx);
    EXPECT_EQ(gradient.weight.has_value(), rows.count > 0);
    if (gradient.weight) GroupedWeightGrad({&*gradient.weight, 1}, ctx);
    AddGateInputGradient(config, weights, saved, gradient, {step.d_x.data(), T, kD}, ctx);
    step.d_w = {Grad("router_hidden"), Grad("router"), Grad("router_scale"), Grad("router_bias")};
    if (kept != nullptr) *kept = saved;
    return step;
  }
  template <class Real>
  GateTwin<Real> Twin() {
    const auto values = [&](const char* name) {
      Parameter* p = store.Find(name);
      return p == nullptr ? std::vector<Real>() : std::vector<Real>(p->value.span().begin(), p->value.span().end());
    };
    return {.config = config,
            .D = kD,
            .w = {values("router_hidden"), values("router"), values("router_scale"), values("router_bias")}};
  }

  RouterConfig config;
  ThreadPool pool;
  Arena arena;
  ExecContext ctx;
  ParameterStore store;
  GateWeights weights;
};

template <class Real>
std::vector<Real> LogitsOf(GateTwin<Real>& twin, const std::vector<Real>& x) {
  std::vector<Real> logits;
  for (size_t t = 0; t < x.size(); t += kD) {
    const std::vector<Real> own = twin.Forward(&x[t]);
    logits.insert(logits.end(), own.begin(), own.end());
  }
  return logits;
}
void ExpectGradients(const GateTwinWeights<float>& got, const GateTwinWeights<Bounded>& want) {
  ExpectWithinBounds(got.hidden, want.hidden);
  ExpectWithinBounds(got.out, want.out);
  ExpectWithinBounds(got.log_scale, want.log_scale);
  ExpectWithinBounds(got.bias, want.bias);
}

// The twin of rounded numbers: products are exact in both, sums float32 here.
TEST(Gate, OfBf16RoundsWhatItReadsAndWhatItWrites) {
  const auto rounded = [](std::vector<float> values) {
    for (float& v : values) v = ToFloat(ToBf16(v));
    return values;
  };
  for (const KernelTable* kernels : SupportedKernelTables()) {
    for (const int64_t T : {0, 1, 65}) {
      SCOPED_TRACE(fmt::format("{} {} tokens", kernels->name, T));
      Gate gate(ConfigOf("dtype=bf16"), 1, kernels);
      Rng rng(static_cast<uint64_t>(T));
      const auto x = NormalFloats(T * kD, rng), d_logits = NormalFloats(T * kE, rng);
      const Step got = gate.Train(x, d_logits);
      auto twin = gate.Twin<Bounded>();
      const auto w = rounded(Floats(gate.Value("router")));
      twin.w.out = {w.begin(), w.end()};
      const auto x16 = rounded(x), d16 = rounded(d_logits);
      const std::vector<Bounded> in(x16.begin(), x16.end());
      const std::vector<Bounded> logits = LogitsOf(twin, in);
      for (size_t i = 0; i < logits.size(); ++i) {
        EXPECT_EQ(got.logits[i], ToFloat(ToBf16(got.logits[i])));
        const double slack = logits[i].error + kEpsBf16 * (std::abs(logits[i].value) + logits[i].error);
        EXPECT_NEAR(got.logits[i], logits[i].value, slack);
      }
      GateTwinWeights<Bounded> want = twin.Backward({d16.begin(), d16.end()}, in);
      auto of_bias = gate.Twin<Bounded>();
      LogitsOf(of_bias, in);
      want.bias = of_bias.Backward({d_logits.begin(), d_logits.end()}, in).bias;  // sums what it is given
      ExpectGradients(got.d_w, want);
      std::vector<Bounded> d_x;
      const std::vector<Bounded> d(d16.begin(), d16.end());
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t i = 0; i < kD; ++i) d_x.push_back(DotOf(kE, d.data() + t * kE, 1, twin.First().data() + i, kD));
      }
      ExpectWithinBounds(got.d_x, d_x);
      ExpectSameBits(gate.Logits(x), got.logits);
    }
  }
}

TEST(Gate, LogitsAndEveryGradientLieWithinTheTwinsBounds) {
  for (const KernelTable* kernels : SupportedKernelTables()) {
    for (const char* fields : kGates) {
      for (const int64_t T : {0, 1, 3, 65}) {
        SCOPED_TRACE(fmt::format("{} {} {} tokens", kernels->name, fields, T));
        Gate gate(ConfigOf(fields), 1, kernels);
        EXPECT_EQ(gate.store.num_values(), NumGateValues(gate.config, kD));
        Rng rng(static_cast<uint64_t>(T));
        const auto x = NormalFloats(T * kD, rng), d_logits = NormalFloats(T * kE, rng);
        const Step got = gate.Train(x, d_logits);
        auto twin = gate.Twin<Bounded>();
        const std::vector<Bounded> in(x.begin(), x.end());
        ExpectWithinBounds(got.logits, LogitsOf(twin, in));
        ExpectGradients(got.d_w, twin.Backward({d_logits.begin(), d_logits.end()}, in));
        std::vector<Bounded> d_x;
        for (int64_t t = 0; t < T; ++t) {
          for (int64_t i = 0; i < kD; ++i) {
            d_x.push_back(DotOf(twin.N(), twin.d_product.data() + t * twin.N(), 1, twin.First().data() + i, kD));
          }
        }
        ExpectWithinBounds(got.d_x, d_x);
        ExpectSameBits(gate.Logits(x), got.logits);  // inference keeps nothing and says the same
      }
    }
  }
}

TEST(Gate, EveryParametersGradientIsTheDifferenceOfTheTwin) {
  for (const char* fields : kGates) {
    SCOPED_TRACE(fields);
    Gate gate(ConfigOf(fields));
    Rng rng(8);
    constexpr int64_t T = 4;
    const auto x = NormalFloats(T * kD, rng), d_logits = NormalFloats(T * kE, rng);
    const Step got = gate.Train(x, d_logits);
    auto twin = gate.Twin<double>();
    std::vector<double> in(x.begin(), x.end());
    const auto check = [&](const char* name, const std::vector<float>& gradient, std::vector<double>& values) {
      SCOPED_TRACE(name);
      ASSERT_EQ(gradient.size(), values.size());
      double most = 1;
      for (const float g : gradient) most = std::max(most, std::abs(static_cast<double>(g)));
      const auto objective = [&](double& v, double to) {
        const double before = std::exchange(v, to);
        const std::vector<double> logits = LogitsOf(twin, in);
        v = before;
        double sum = 0;
        for (size_t i = 0; i < logits.size(); ++i) sum += logits[i] * static_cast<double>(d_logits[i]);
        return sum;
      };
      constexpr double h = 1e-5;
      for (size_t i = 0; i < values.size(); i += values.size() / 50 + 1) {
        // Differences: h^2 f''' and 1e-16 f / h. Float32: three products of at most 40 terms each.
        ASSERT_NEAR(gradient[i], (objective(values[i], values[i] + h) - objective(values[i], values[i] - h)) / (2 * h),
                    1e-8 * most + 3 * 41 * kEpsF32 * most)
            << i;
      }
    };
    check("hidden", got.d_w.hidden, twin.w.hidden);
    check("out", got.d_w.out, twin.w.out);
    check("log_scale", got.d_w.log_scale, twin.w.log_scale);
    check("bias", got.d_w.bias, twin.w.bias);
    check("x", got.d_x, in);
  }
}

TEST(Gate, ThreadsChangeNoBitAndPaddingMayHoldAnything) {
  for (const char* fields : kGates) {
    SCOPED_TRACE(fields);
    Rng rng(9);
    constexpr int64_t T = 150;
    auto x = NormalFloats(T * kD, rng), d_logits = NormalFloats(T * kE, rng);
    std::vector<uint8_t> valid(T, 1);
    for (size_t t = 0; t < T; t += 4) {
      valid[t] = 0;
      std::fill_n(d_logits.begin() + static_cast<int64_t>(t) * kE, kE, 0.0f);
    }
    Gate one(ConfigOf(fields)), three(ConfigOf(fields), 3);
    const Step clean = one.Train(x, d_logits, valid);
    for (size_t t = 0; t < T; t += 4) std::fill_n(x.begin() + static_cast<int64_t>(t) * kD, kD, kNan);
    const Step dirty = three.Train(x, d_logits, valid);
    ExpectSameBits(dirty.d_x, clean.d_x);
    for (const auto member : {&GateTwinWeights<float>::hidden, &GateTwinWeights<float>::out, &GateTwinWeights<float>::log_scale,
                              &GateTwinWeights<float>::bias}) {
      ExpectSameBits(dirty.d_w.*member, clean.d_w.*member);
    }
    for (int64_t t = 0; t < T; ++t) {
      if (valid[static_cast<size_t>(t)] == 0) continue;
      ExpectSameBits(std::span(dirty.logits).subspan(static_cast<size_t>(t * kE), kE),
                     std::span(clean.logits).subspan(static_cast<size_t>(t * kE), kE));
    }
  }
}

TEST(CosineGate, KnowsNoLengths) {
  Gate gate(ConfigOf("gate=cosine,gate_width=6"));
  std::ranges::fill(gate.Value("router_bias"), 0.0f);
  Rng rng(1);
  auto x = NormalFloats(3 * kD, rng);
  const std::vector<float> before = gate.Logits(x);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= 8;
  for (float& w : gate.Value("router_hidden")) w *= 0.25f;
  for (size_t g = 0; g < 6; ++g) gate.Value("router")[g] *= 64;  // of one expert
  gate.Repacked();
  ExpectSameBits(gate.Logits(x), before);  // powers of two
  for (const float z : before) EXPECT_LE(std::abs(z), std::exp(gate.Value("router_scale")[0]) * (1 + 16 * kEpsF32));
}

// Tutel's clamp: the scale is at most 1/0.01, and beyond it learns nothing.
TEST(CosineGate, TheScaleIsClamped) {
  Rng rng(2);
  const auto x = NormalFloats(4 * kD, rng), d_logits = NormalFloats(4 * kE, rng);
  const auto at = [&](double log_scale) {
    Gate gate(ConfigOf("gate=cosine,gate_width=5"));
    gate.Value("router_scale")[0] = static_cast<float>(log_scale);
    std::ranges::fill(gate.Value("router_bias"), 0.0f);
    return gate.Train(x, d_logits);
  };
  const Step one = at(0), below = at(std::log(99.0)), above = at(std::log(101.0)), far = at(88);
  for (size_t i = 0; i < one.logits.size(); ++i) {
    EXPECT_NEAR(below.logits[i], 99 * one.logits[i], 99 * 12 * kEpsF32);  // log 99 rounded, 4.6; its exponential; two products
    EXPECT_NEAR(far.logits[i], 100 * one.logits[i], 100 * 4 * kEpsF32);
  }
  ExpectSameBits(far.logits, above.logits);
  ExpectSameBits(far.d_w.hidden, above.d_w.hidden);
  EXPECT_NE(below.d_w.log_scale[0], 0);
  EXPECT_EQ(above.d_w.log_scale[0], 0);
  EXPECT_EQ(far.d_w.log_scale[0], 0);
}

TEST(CosineGate, NothingHasTheCosineZeroAndNoGradient) {
  Gate gate(ConfigOf("gate=cosine,gate_width=5"));
  std::ranges::fill(gate.Value("router_bias"), 0.0f);
  std::fill_n(gate.Value("router").begin() + 2 * 5, 5, 0.0f);  // expert 2
  gate.Repacked();
  Rng rng(2);
  auto x = NormalFloats(3 * kD, rng);
  std::fill_n(x.begin() + kD, kD, 0.0f);  // token 1
  const Step step = gate.Train(x, NormalFloats(3 * kE, rng));
  for (size_t i = 0; i < step.logits.size(); ++i) {
    EXPECT_EQ(step.logits[i] == 0, i / kE == 1 || i % kE == 2) << i;
  }
  for (size_t i = 0; i < step.d_x.size(); ++i) EXPECT_EQ(step.d_x[i] == 0, i / kD == 1) << i;
  for (size_t i = 0; i < step.d_w.out.size(); ++i) EXPECT_EQ(step.d_w.out[i] == 0, i / 5 == 2) << i;
  for (const float d : step.d_w.hidden) EXPECT_TRUE(std::isfinite(d));
}

// The gate reads x times factors; gradients are those at what it read, times the factors on the way to x.
TEST(Gate, JitterIsOfTheInputOfEveryGate) {
  for (const char* fields : kGates) {
    SCOPED_TRACE(fields);
    Gate jittered(ConfigOf(std::string(fields) + ",noise=jitter,noise_scale=0.5")), plain(ConfigOf(fields));
    Rng rng(6);
    constexpr size_t T = 5;
    const auto x = NormalFloats(T * kD, rng), d_logits = NormalFloats(T * kE, rng);
    GateSaved saved;
    const Step got = jittered.Train(x, d_logits, {}, &saved);
    const std::vector<float> read(saved.input.data, saved.input.data + x.size());
    const Step want = plain.Train(read, d_logits);
    ExpectSameBits(got.logits, want.logits);
    ExpectSameBits(got.d_w.out, want.d_w.out);
    ExpectSameBits(got.d_w.hidden, want.d_w.hidden);
    for (size_t i = 0; i < x.size(); ++i) {
      const double factor = static_cast<double>(read[i]) / static_cast<double>(x[i]);
      EXPECT_GE(factor, 0.5 - 1e-6);
      EXPECT_NEAR(got.d_x[i], factor * static_cast<double>(want.d_x[i]), 4 * kEpsF32 * std::abs(want.d_x[i]));
    }
    ExpectSameBits(jittered.Logits(x), plain.Logits(x));  // none in inference
  }
}

TEST(Gate, WidthsGoWithTheirGates) {
  const auto error_of = [](const char* policy) { return ParsePolicy(policy, kE, "test").error().Message(); };
  EXPECT_EQ(error_of("gate_width=4"),
            "[test: gate_width] got 4 with the linear gate, expected 0: only mlp and cosine have hidden values");
  EXPECT_EQ(error_of("gate=mlp"), "[test: gate_width] got 0 with the mlp gate, expected 1 or more hidden values");
  EXPECT_EQ(error_of("gate=mlp,gate_width=4,dtype=bf16"), "[test: dtype] got bf16 with the mlp gate, expected f32");
  EXPECT_EQ(AsServed(ConfigOf("dtype=bf16")).dtype, DType::kBf16);  // as it was trained
  EXPECT_EQ(error_of("gate=cosine"), "[test: gate_width] got 0 with the cosine gate, expected 1 or more hidden values");
  EXPECT_EQ(error_of("gate=sine"), "[test: gate] got 'sine', expected one of linear, mlp, cosine");
  EXPECT_EQ(AsServed(ConfigOf("gate=mlp,gate_width=4,noise=jitter,noise_scale=0.1")).gate, GateNetwork::kMlp);
}

}  // namespace
}  // namespace moe::test
