#pragma once

#include "moe/base/arena.h"
#include "moe/base/thread_pool.h"
#include "moe/kernels/cpu/kernel_table.h"

namespace moe {

// Where and how a step is computed. Passed explicitly, last; holds no model state.
struct ExecContext {
  ThreadPool& pool;
  Arena& arena;  // memory of this step; ops take their scratch here, before they go parallel, and give it back
  const KernelTable& kernels;
};

}  // namespace moe
