#include "tests/cli/train_kill.h"

namespace moe::test {
namespace {

TEST(TrainKilled, TwentyTimesEndsAsIfNeverStopped) {
  KillAndResume(20, 2, 4000, {"train.checkpoint_every=5", "train.eval_every=25", "model.layers=3"}, 2);
}

// Mostly within checkpoints: one after every step, of a model whose writing takes longer than its step.
TEST(TrainKilled, WithinCheckpoints) {
  KillAndResume(20, 2, 100,
                {"train.checkpoint_every=1", "train.eval_every=1", "model.hidden=256", "model.experts=16",
                 "model.expert_width=128", "train.batch_tokens=32"},
                3);
}

}  // namespace
}  // namespace moe::test
