// Every routing policy against its definition, forward and backward.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <ostream>

#include "tests/mixture/policy_run.h"

namespace moe::test {
namespace {

struct Case {
  std::string name, policy;
  int64_t num_experts;
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
    cases.push_back({name, policy, E});
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
  for (const char* drop : {"position", "score"}) {
    for (const char* rest : {"score=softmax,normalize_epsilon=0.01", "score=sigmoid,normalize_epsilon=0.01", "score=softmax",
                             "score=topk_softmax"}) {
      const bool epsilon = std::string_view(rest).find(',') != std::string_view::npos;
      const std::string_view score = std::string_view(rest).substr(6, std::string_view(rest).find(',') - 6);
      add(fmt::format("drop_{}_true_{}_scaled{}", drop, score, epsilon ? "_epsilon" : ""),
          fmt::format("top_k=3,{},capacity_factor=0.7,drop={},normalize_after_drop=true,scale=1.7", rest, drop), 6);
    }
  }
  // Chosen by something else than scores: gates, losses and gradients, given the choice.
  for (const char* score : {"softmax", "sigmoid"}) {
    for (const int k : {1, 2, 5}) {
      const auto chosen_by = [&](const char* name, const std::string& how) {
        const bool hash = std::string_view(name) == "hash", experts = std::string_view(name) == "expert_choice";
        add(fmt::format("{}_{}_{}", name, score, k),
            fmt::format("{},score={},top_k={},normalize={},scale=1.3,importance_loss=0.5{}", how, score, k, k > 1 && !experts,
                        hash ? ",balance_loss=0" : ",gshard_loss=0.3,sequence_loss=0.4,global_loss=0.2"),
            5);
      };
      chosen_by("hash", "selection=hash");
      chosen_by("sinkhorn", "selection=sinkhorn");
      chosen_by("expert_choice", "selection=expert_choice,allow_noncausal=true");
      chosen_by("gumbel", "noise=gumbel,noise_scale=1");
      if (k > 1) chosen_by("gumbel_later", "noise=gumbel_later,noise_scale=1");
    }
  }
  add("gumbel_topk_softmax", "score=topk_softmax,top_k=3,noise=gumbel,noise_scale=2", 7);
  add("expert_choice_sqrt_softplus",
      "selection=expert_choice,allow_noncausal=true,score=sqrt_softplus,normalize=false,top_k=2,sequence_loss=0.5", 6);
  for (const auto& [name, how] : {std::pair{"hash", "selection=hash,balance_loss=0"},
                                  {"sinkhorn", "selection=sinkhorn"},
                                  {"gumbel", "noise=gumbel,noise_scale=1"}}) {
    add(fmt::format("{}_drops", name), fmt::format("{},top_k=3,score=sigmoid,capacity_factor=0.7", how), 6);
    add(fmt::format("{}_drops_then_normalizes", name),
        fmt::format("{},top_k=3,capacity_factor=0.7,drop=first_choices,normalize_after_drop=true", how), 6);
  }
  add("many_experts_hash", "selection=hash,balance_loss=0,top_k=8,score=sigmoid", 1024);
  add("many_experts_sinkhorn", "selection=sinkhorn,sinkhorn_rounds=3,top_k=8", 1024);
  add("many_experts_expert_choice", "selection=expert_choice,allow_noncausal=true,normalize=false,top_k=8", 1024);
  add("capacity_nothing", "top_k=2,capacity_factor=0.01,least_capacity=0,capacity_rounding=floor", 4);
  add("capacity_more_than_tokens", "top_k=2,capacity_factor=100", 4);
  add("capacity_nearest_of_tokens", "top_k=2,capacity_factor=1.3,capacity_rounding=nearest,capacity_times_top_k=false", 5);
  return cases;
}

// Slots, gates, probabilities, counts and losses.
void ExpectAlike(const RouterConfig& config, const PolicyInput& in, Rng& rng) {
  std::vector<double> d_gate;
  const PolicyRun got = RunProduct(config, in, rng, &d_gate);
  const auto want = TwinOf<Bounded>(config, in, got);
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

class PolicyAgainstTwin : public testing::TestWithParam<Case> {
 protected:
  // Parsed here and not with the cases: every process makes all of those.
  const RouterConfig config_ = ParsePolicy(GetParam().policy, GetParam().num_experts, "test").value();

  void ChoosesDropsAndWeighsAlike();
  void AgreesWhereAllIsEqualOrAllIsOne();
  void NamesTheTokenWhoseLogitIsNotFinite();
  void GradientsAreDifferencesOfTheTwin();
  void SaysTheSameForAnyThreads();
};

void PolicyAgainstTwin::ChoosesDropsAndWeighsAlike() {
  for (const int64_t T : {0, 1, 2, 37, 150}) {
    for (const bool padding : {false, true}) {
      SCOPED_TRACE(fmt::format("{} tokens, padding {}", T, padding));
      Rng rng(static_cast<uint64_t>(T));
      ExpectAlike(config_, RandomInput(config_, T, padding, rng), rng);
    }
  }
}

void PolicyAgainstTwin::AgreesWhereAllIsEqualOrAllIsOne() {
  const RouterConfig& config = config_;
  const auto E = static_cast<size_t>(config.num_experts);
  for (const size_t T : {1, 40}) {
    Rng rng(T);
    const PolicyInput random = RandomInput(config, static_cast<int64_t>(T), true, rng);
    PolicyInput equal = random, one = random, alone = random;
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
void PolicyAgainstTwin::NamesTheTokenWhoseLogitIsNotFinite() {
  const RouterConfig& config = config_;
  const int64_t E = config.num_experts, T = 7;
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    Rng rng(9);
    PolicyInput in = RandomInput(config, T, false, rng);
    in.logits[static_cast<size_t>(5 * E + E - 1)] = bad;
    for (const bool padding : {false, true}) {
      in.valid.assign(T, 1);
      in.valid[5] = padding ? 0 : 1;
      Router r(config);
      const auto routing = Route(config, RouteInputOf(config, in), nullptr, r.ctx);
      ASSERT_EQ(routing.has_value(), padding);
      if (padding) continue;
      EXPECT_EQ(routing.error().what.find(fmt::format("token 5: got logit {} for expert {}", bad, E - 1)), 0u)
          << routing.error().what;
    }
  }
}

// Away from ties, so that no choice changes within a difference.
void PolicyAgainstTwin::GradientsAreDifferencesOfTheTwin() {
  RouterConfig config = config_;
  config.balance_loss = config.selection == RouterSelection::kHash ? 0 : 0.7, config.z_loss = 0.3;
  const int64_t T = config.num_experts > 100 ? 2 : 9;
  Rng rng(5);
  const PolicyInput in = RandomInput(config, T, true, rng);
  std::vector<double> d_gate;
  const PolicyRun got = RunProduct(config, in, rng, &d_gate);
  auto twin = TwinOf<double>(config, in, got);
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

void PolicyAgainstTwin::SaysTheSameForAnyThreads() {
  const RouterConfig& config = config_;
  Rng rng(6);
  const PolicyInput in = RandomInput(config, 200, true, rng);
  std::vector<double> d_gate;
  const PolicyRun one = RunProduct(config, in, rng, &d_gate);
  for (const int threads : {2, 3}) {
    const PolicyRun other = RunProduct(config, in, rng, &d_gate, threads);
    EXPECT_EQ(one.expert, other.expert);
    EXPECT_EQ(one.slot_row, other.slot_row);
    ExpectSameBits(one.gate, other.gate);
    ExpectSameBits(one.d_logits, other.d_logits);
    EXPECT_EQ(one.aux.balance_loss, other.aux.balance_loss);
  }
}

// One test and not five: hundreds of processes take longer to begin than to be done.
TEST_P(PolicyAgainstTwin, IsAsDefined) {
  {
    SCOPED_TRACE("ChoosesDropsAndWeighsAlike");
    ChoosesDropsAndWeighsAlike();
  }
  {
    SCOPED_TRACE("AgreesWhereAllIsEqualOrAllIsOne");
    AgreesWhereAllIsEqualOrAllIsOne();
  }
  {
    SCOPED_TRACE("NamesTheTokenWhoseLogitIsNotFinite");
    NamesTheTokenWhoseLogitIsNotFinite();
  }
  {
    SCOPED_TRACE("GradientsAreDifferencesOfTheTwin");
    GradientsAreDifferencesOfTheTwin();
  }
  {
    SCOPED_TRACE("SaysTheSameForAnyThreads");
    SaysTheSameForAnyThreads();
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, PolicyAgainstTwin, testing::ValuesIn(Cases()), [](const auto& c) { return c.param.name; });

}  // namespace
}  // namespace moe::test
