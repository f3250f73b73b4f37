#pragma once

#include "moe/base/arena.h"
#include "moe/base/thread_pool.h"
#include "moe/kernels/cpu/kernel_table.h"
#include "moe/ops/step_clock.h"
#include "moe/ops/switches.h"

namespace moe {

// Where and how a step is computed. Passed explicitly, last; holds no model state.
struct ExecContext {
  ThreadPool& pool;
  Arena& arena;  // memory of this step; ops take their scratch here, before they go parallel, and give it back
  const KernelTable& kernels;
  StepClock* clock = nullptr;  // null: nobody asks where the time goes
  KernelSwitches switches;     // never change a bit

  void Enter(StepPart part) const {
    if (clock != nullptr) clock->Enter(part);
  }
};

}  // namespace moe
