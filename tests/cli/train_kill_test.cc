#include "tests/cli/train_kill.h"

namespace moe::test {
namespace {

TEST(TrainKilled, ThreeTimesEndsAsIfNeverStopped) {
  KillAndResume(3, 1, 60, {"train.checkpoint_every=1", "train.eval_every=10"}, 1);
}

}  // namespace
}  // namespace moe::test
