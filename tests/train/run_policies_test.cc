// Runs of every kind of routing policy.
#include "tests/train/run_fixture.h"

namespace moe::test {
namespace {

// Whatever a policy keeps or draws: noise, drops by chance, biases and capacities that follow the load.
TEST_F(RunTest, ResumedEqualsNeverStoppedForEveryPolicy) {
  const std::vector<std::vector<std::string>> policies = {
      {"router.noise=gaussian", "router.noise_scale=0.5"},
      {"router.noise=gumbel", "router.noise_scale=1"},
      {"router.noise=jitter", "router.noise_scale=0.2"},
      {"router.drop=random", "router.target_drop=0.02"},
      {"router.balance_bias=sign", "router.bias_rate=0.05", "router.bias=true"},
      {"router.balance_bias=load", "router.bias_rate=0.05", "router.capacity_scope=sequence", "router.drop=score"},
      {"router.policy=deepseek-v3", "router.groups=2", "router.top_groups=1", "model.top_k=2"},
      {"router.policy=phi-3.5-moe"},
      {"router.policy=as-switch"},
      {"router.policy=as-deepspeed-top2"},
      {"router.selection=sinkhorn"},
      {"router.selection=hash"},
      {"router.score=relu", "router.capacity_factor=0"},
      {"router.score=sqrt_softplus", "router.sequence_loss=0.1", "router.global_loss=0.1", "router.importance_loss=0.1"},
      {"router.selection=expert_choice", "router.allow_noncausal=true", "router.normalize=false", "router.capacity_factor=0"},
  };
  for (size_t i = 0; i < policies.size(); ++i) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(policies[i], " ")));
    const std::string whole = fmt::format("whole{}", i), stopped = fmt::format("stopped{}", i);
    const auto first = Run(whole, false, {.sets = policies[i]});
    ASSERT_TRUE(first) << first.error().Message();
    ASSERT_TRUE(Run(stopped, false, {.sets = policies[i]}, StopAfter(5)));
    const auto resumed = Run(stopped, true, {.sets = policies[i]});
    ASSERT_TRUE(resumed) << resumed.error().Message();
    ExpectSameRun(Folder(stopped), Folder(whole));
  }
}

}  // namespace
}  // namespace moe::test
