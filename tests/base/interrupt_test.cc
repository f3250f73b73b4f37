#include "moe/base/interrupt.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>

namespace moe {
namespace {

TEST(InterruptDeathTest, TheFirstRaisesAFlagTheSecondKills) {
  EXPECT_FALSE(InterruptRequested());
  for (const int first : {SIGINT, SIGTERM}) {
    for (const int second : {SIGINT, SIGTERM}) {
      EXPECT_EXIT(
          {
            InstallInterruptHandler();
            if (InterruptRequested()) std::exit(3);
            raise(first);
            if (!InterruptRequested()) std::exit(4);
            raise(second);
            std::exit(5);
          },
          testing::KilledBySignal(second), "");
    }
  }
}

}  // namespace
}  // namespace moe
