// Every routing policy against its definition, forward and backward.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <ostream>

#include "moe/base/rng.h"
#include "moe/mixture/capacity.h"
#include "moe/mixture/dispatch_plan.h"
#include "testing/reference/policy_twin.h"
#include "tests/mixture/router_fixture.h"

namespace moe::test {
namespace {

constexpr uint64_t kChanceKey = 77, kNoiseKey = 78;

struct Case {
  std::string name;
  RouterConfig config;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

// All named policies, and what no name has.
std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&](std::string name, const std::string& policy, int64_t E) {
    std::ranges::replace(name, '-', '_');
    std::ranges::replace(name, '.', '_');
    cases.push_back({name, ParsePolicy(policy, E, "test").value()});
  };
  for (const std::string_view name : PolicyNames()) add(std::string(name), std::string(name), 32);
  for (const auto& [score, value] : kRouterScores) {
    if (value != RouterScore::kSoftmax && (!IsElementwise(value) || value == RouterScore::kRelu)) continue;  // further down
    for (const char* normalize : {"true", "false"}) {
      const std::string policy = fmt::format("score={},normalize={},top_k=3", score, normalize);
      add(fmt::format("{}_{}", score, normalize), policy, 7);
      const bool sums = std::string_view(normalize) == "true";
      add(fmt::format("{}_{}_scaled", score, normalize), policy + (sums ? ",scale=1.7,normalize_epsilon=0.01" : ",scale=1.7"),
          7);
      add(fmt::format("{}_{}_biased", score, normalize), policy + ",balance_bias=kept", 7);
      add(fmt::format("{}_{}_groups", score, normalize), policy + ",groups=4,top_groups=2", 12);
      add(fmt::format("{}_{}_two_of_group", score, normalize),
          policy + ",groups=3,top_groups=2,group_score=sum_of_two,zero_other_groups=true,balance_bias=kept", 12);
    }
  }
  add("topk_softmax_biased", "score=topk_softmax,top_k=3,balance_bias=kept", 9);
  add("topk_softmax_scaled", "score=topk_softmax,top_k=3,scale=0.4", 9);
  add("relu", "score=relu,normalize=false,top_k=2", 6);
  add("relu_normalized", "score=relu,normalize=true,top_k=2", 6);
  add("sparsemixer_one", "score=sparsemixer,normalize=false,top_k=1,sparsemixer_jitter=0.2", 6);
  add("sparsemixer_two", "score=sparsemixer,normalize=false,top_k=2,sparsemixer_jitter=0.3,scale=2", 6);
  for (const char* score : {"softmax", "sigmoid"}) {
    for (const char* loss : {"gshard_loss", "importance_loss", "sequence_loss", "global_loss"}) {
      add(fmt::format("{}_{}", score, loss), fmt::format("score={},top_k=2,{}=0.4", score, loss), 5);
    }
    add(fmt::format("{}_all_losses", score),
        fmt::format("score={},top_k=2,gshard_loss=1,importance_loss=0.5,sequence_loss=0.3,global_loss=0.2", score), 5);
  }
  for (const char* k : {"1", "2", "5"}) {
    add(fmt::format("load_loss_top_{}", k),
        fmt::format("score=sigmoid,normalize=false,top_k={},load_loss=0.4,noise=gaussian,noise_scale=1", k), 5);
  }
  add("softmax_load_loss", "top_k=3,load_loss=2,importance_loss=0.3,noise=gaussian,noise_scale=0.75", 7);
  add("sparsemixer_load_loss", "score=sparsemixer,normalize=false,top_k=2,load_loss=1,noise=gaussian,noise_scale=2", 6);
  add("all_chosen", "top_k=5", 5);
  add("one_expert", "top_k=1", 1);
  add("many_experts", "top_k=8,score=sigmoid", 1024);
  for (const char* drop : {"position", "first_choices", "score", "random"}) {
    for (const char* after : {"true", "false"}) {
      for (const char* score : {"softmax", "sigmoid", "topk_softmax"}) {
        add(fmt::format("drop_{}_{}_{}", drop, after, score),
            fmt::format("top_k=3,score={},capacity_factor=0.7,drop={},normalize_after_drop={}", score, drop, after), 6);
      }
      add(fmt::format("drop_{}_{}_by_sequence", drop, after),
          fmt::format("top_k=2,capacity_factor=0.6,capacity_scope=sequence,drop={},normalize_after_drop={}", drop, after), 4);
    }
  }
  add("capacity_nothing", "top_k=2,capacity_factor=0.01,least_capacity=0,capacity_rounding=floor", 4);
  add("capacity_more_than_tokens", "top_k=2,capacity_factor=100", 4);
  add("capacity_nearest_of_tokens", "top_k=2,capacity_factor=1.3,capacity_rounding=nearest,capacity_times_top_k=false", 5);
  return cases;
}

// One run of the product.
struct Got {
  std::vector<int32_t> slot_begin, expert, slot_row;
  std::vector<float> gate, p, d_logits;
  RouterAux aux;
  std::vector<int64_t> load;
};

struct Input {
  std::vector<float> logits, bias;
  std::vector<uint8_t> valid;
  std::vector<int32_t> sequence_begin;
  std::vector<int64_t> tokens_before;
};

Input RandomInput(const RouterConfig& config, int64_t T, bool padding, Rng& rng) {
  Input in{.logits = NormalFloats(T * config.num_experts, rng, 2)};
  if (config.selects_by_bias()) in.bias = NormalFloats(config.num_experts, rng, 0.3);
  for (int64_t t = 0; padding && t < T; ++t) in.valid.push_back(rng.Below(4) != 0);
  in.sequence_begin = {0, static_cast<int32_t>(T / 3), static_cast<int32_t>(T / 3), static_cast<int32_t>(T / 2),
                       static_cast<int32_t>(T)};
  // None, of the first micro-batch of a step, or some.
  for (int64_t e = 0; e < config.num_experts && T % 3 > 0; ++e) in.tokens_before.push_back(T % 3 == 1 ? 0 : rng.Below(20));
  return in;
}

std::vector<double> GateGradients(const std::vector<int32_t>& slot_row, Rng& rng) {
  std::vector<double> d;
  for (const int32_t row : slot_row) d.push_back(row < 0 ? 0 : static_cast<float>(rng.Normal()));
  return d;
}

Got RunProduct(const RouterConfig& config, const Input& in, Rng& rng, std::vector<double>* d_gate, int threads = 1) {
  Router r(config, threads);
  RouterSaved saved;
  const int64_t E = config.num_experts, T = static_cast<int64_t>(in.logits.size()) / E;
  Routing routing = Route(config,
                          {.logits = {in.logits.data(), T, E},
                           .valid = in.valid,
                           .selection_bias = in.bias,
                           .sequence_begin = in.sequence_begin,
                           .tokens_before = in.tokens_before,
                           .training = config.load_loss > 0,
                           .key = kNoiseKey},
                          &saved, r.ctx)
                        .value();
  const auto kept = KeepWithinCapacity(config, config.capacity.factor, routing, in.sequence_begin, kChanceKey, r.ctx);
  const DispatchPlan plan = BuildDispatchPlan(routing, E, kept, r.ctx);
  NormalizeKept(config, plan.slot_row, routing, r.ctx);
  Got got{.slot_begin = {routing.slot_begin.begin(), routing.slot_begin.end()},
          .expert = {routing.expert.begin(), routing.expert.end()},
          .slot_row = {plan.slot_row.begin(), plan.slot_row.end()},
          .gate = Floats(routing.gate),
          .p = Floats(std::span(saved.probs.data, static_cast<size_t>(saved.probs.size()))),
          .aux = routing.aux,
          .load = {routing.aux.tokens_per_expert.begin(), routing.aux.tokens_per_expert.end()}};
  if (d_gate->empty()) *d_gate = GateGradients(got.slot_row, rng);
  const std::vector<float> d(d_gate->begin(), d_gate->end());
  got.d_logits.assign(in.logits.size(), -7.0f);
  RouteBackward(config, routing, saved, plan.slot_row, d, 0.5f, {got.d_logits.data(), T, E}, r.ctx);
  return got;
}

template <class Real>
PolicyTwin<Real> TwinOf(const RouterConfig& config, const Input& in) {
  PolicyTwin<Real> twin{.config = config, .factor = config.capacity.factor};
  twin.logits.assign(in.logits.begin(), in.logits.end());
  twin.valid = in.valid, twin.sequence_begin = in.sequence_begin, twin.tokens_before = in.tokens_before;
  twin.bias.assign(in.bias.begin(), in.bias.end());
  for (size_t i = 0; config.load_loss > 0 && i < in.logits.size(); i += static_cast<size_t>(config.num_experts)) {
    Rng rng(kNoiseKey, i / static_cast<size_t>(config.num_experts));
    for (int64_t e = 0; e < config.num_experts; ++e) {
      twin.noise.push_back(static_cast<float>(config.noise_scale * rng.Normal()));
    }
  }
  for (uint64_t slot = 0; slot < in.logits.size(); ++slot) {
    twin.chance.push_back(static_cast<double>(MixBits(kChanceKey ^ MixBits(slot + 1)) >> 11));
  }
  twin.Run();
  return twin;
}

// Slots, gates, probabilities, counts and losses.
void ExpectAlike(const RouterConfig& config, const Input& in, Rng& rng) {
  std::vector<double> d_gate;
  const Got got = RunProduct(config, in, rng, &d_gate);
  const auto want = TwinOf<Bounded>(config, in);
  std::vector<int32_t> slot_begin{0}, expert;
  std::vector<Bounded> gate;
  std::vector<bool> kept, got_kept;
  for (const auto& slots : want.slots) {
    for (const auto& s : slots) {
      expert.push_back(static_cast<int32_t>(s.expert)), gate.push_back(s.gate), kept.push_back(s.kept);
    }
    slot_begin.push_back(static_cast<int32_t>(expert.size()));
  }
  for (const int32_t row : got.slot_row) got_kept.push_back(row >= 0);
  ASSERT_EQ(got.slot_begin, slot_begin);
  ASSERT_EQ(got.expert, expert);
  EXPECT_EQ(got_kept, kept);
  EXPECT_EQ(got.load, want.load);
  EXPECT_EQ(got.aux.num_tokens, want.num_tokens);
  ExpectWithinBounds(got.gate, gate);
  ExpectWithinBounds(got.p, want.p);
  ExpectWithinBounds(std::vector<double>{got.aux.balance_loss, got.aux.z_loss, got.aux.entropy},
                     std::vector<Bounded>{want.balance_loss, want.z_loss, want.entropy});
  const auto if_wanted = [](double coefficient, const Bounded& loss) { return coefficient > 0 ? loss : Bounded(0); };
  const RouterLosses& losses = got.aux.losses;
  ExpectWithinBounds(
      std::vector<double>{losses.gshard, losses.importance, losses.load, losses.sequence, losses.global},
      std::vector<Bounded>{if_wanted(config.gshard_loss, want.gshard), if_wanted(config.importance_loss, want.importance),
                           if_wanted(config.load_loss, want.load_loss), if_wanted(config.sequence_loss, want.sequence),
                           if_wanted(config.global_loss, want.global)});
}

class PolicyAgainstTwin : public testing::TestWithParam<Case> {};

TEST_P(PolicyAgainstTwin, ChoosesDropsAndWeighsAlike) {
  for (const int64_t T : {0, 1, 2, 37, 150}) {
    for (const bool padding : {false, true}) {
      SCOPED_TRACE(fmt::format("{} tokens, padding {}", T, padding));
      Rng rng(static_cast<uint64_t>(T));
      ExpectAlike(GetParam().config, RandomInput(GetParam().config, T, padding, rng), rng);
    }
  }
}

TEST_P(PolicyAgainstTwin, AgreesWhereAllIsEqualOrAllIsOne) {
  const RouterConfig& config = GetParam().config;
  const auto E = static_cast<size_t>(config.num_experts);
  for (const size_t T : {1, 40}) {
    Rng rng(T);
    const Input random = RandomInput(config, static_cast<int64_t>(T), true, rng);
    Input equal = random, one = random, alone = random;
    std::ranges::fill(equal.logits, 0.5f);
    for (size_t t = 0; t < T; ++t) {
      for (size_t e = 0; e < E; ++e) one.logits[t * E + e] *= 0.1f;
      one.logits[t * E + E - 1] += 8;
    }
    alone.sequence_begin.resize(T + 1);
    std::iota(alone.sequence_begin.begin(), alone.sequence_begin.end(), 0);
    for (const auto& [name, in] :
         {std::pair{"equal logits", &equal}, {"all to the last expert", &one}, {"sequences of one", &alone}}) {
      SCOPED_TRACE(fmt::format("{} of {} tokens", name, T));
      ExpectAlike(config, *in, rng);
    }
  }
}

// Of a token; padding may hold anything.
TEST_P(PolicyAgainstTwin, NamesTheTokenWhoseLogitIsNotFinite) {
  const RouterConfig& config = GetParam().config;
  const int64_t E = config.num_experts, T = 7;
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    Rng rng(9);
    Input in = RandomInput(config, T, false, rng);
    in.logits[static_cast<size_t>(5 * E + E - 1)] = bad;
    for (const bool padding : {false, true}) {
      in.valid.assign(T, 1);
      in.valid[5] = padding ? 0 : 1;
      Router r(config);
      const auto routing = Route(config,
                                 {.logits = {in.logits.data(), T, E},
                                  .valid = in.valid,
                                  .selection_bias = in.bias,
                                  .sequence_begin = in.sequence_begin,
                                  .tokens_before = in.tokens_before},
                                 nullptr, r.ctx);
      ASSERT_EQ(routing.has_value(), padding);
      if (padding) continue;
      EXPECT_EQ(routing.error().what.find(fmt::format("token 5: got logit {} for expert {}", bad, E - 1)), 0u)
          << routing.error().what;
    }
  }
}

// Away from ties, so that no choice changes within a difference.
TEST_P(PolicyAgainstTwin, GradientsAreDifferencesOfTheTwin) {
  RouterConfig config = GetParam().config;
  config.balance_loss = 0.7, config.z_loss = 0.3;
  const int64_t T = config.num_experts > 100 ? 2 : 9;
  Rng rng(5);
  const Input in = RandomInput(config, T, true, rng);
  std::vector<double> d_gate;
  const Got got = RunProduct(config, in, rng, &d_gate);
  auto twin = TwinOf<double>(config, in);
  constexpr double h = 1e-6;
  const auto at = [&](size_t i, double z) {
    const double before = twin.logits[i];
    twin.logits[i] = z;
    twin.Run();
    const double value = twin.Objective(d_gate, 0.5);
    twin.logits[i] = before;
    return value;
  };
  double most = 1;
  for (const float d : got.d_logits) most = std::max(most, static_cast<double>(std::fabs(d)));
  for (size_t i = 0; i<in.logits.size(); i += config.num_experts> 100 ? 17 : 1) {
    const double z = in.logits[i];
    // Differences: 1e-16 / h of values around 10, and h^2 times a third derivative. Float32: some hundred roundings at most.
    ASSERT_NEAR(got.d_logits[i], (at(i, z + h) - at(i, z - h)) / (2 * h), 2e-8 + 200 * kEpsF32 * most) << "logit " << i;
  }
}

TEST_P(PolicyAgainstTwin, SaysTheSameForAnyThreads) {
  const RouterConfig& config = GetParam().config;
  Rng rng(6);
  const Input in = RandomInput(config, 200, true, rng);
  std::vector<double> d_gate;
  const Got one = RunProduct(config, in, rng, &d_gate);
  for (const int threads : {2, 3}) {
    const Got other = RunProduct(config, in, rng, &d_gate, threads);
    EXPECT_EQ(one.expert, other.expert);
    EXPECT_EQ(one.slot_row, other.slot_row);
    ExpectSameBits(one.gate, other.gate);
    ExpectSameBits(one.d_logits, other.d_logits);
    EXPECT_EQ(one.aux.balance_loss, other.aux.balance_loss);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, PolicyAgainstTwin, testing::ValuesIn(Cases()), [](const auto& c) { return c.param.name; });

}  // namespace
}  // namespace moe::test
