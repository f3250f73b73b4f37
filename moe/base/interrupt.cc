#include "moe/base/interrupt.h"

#include <signal.h>

#include <atomic>

namespace moe {
namespace {

std::atomic<bool> g_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void HandleSignal(int signal_number) {
  if (g_requested.exchange(true)) {
    signal(signal_number, SIG_DFL);
    raise(signal_number);  // takes effect when this handler returns
  }
}

}  // namespace

void InstallInterruptHandler() {
  struct sigaction action = {};
  action.sa_handler = HandleSignal;
  action.sa_flags = SA_RESTART;  // a write under way is not cut short
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool InterruptRequested() {
  return g_requested.load(std::memory_order_relaxed);
}

}  // namespace moe
