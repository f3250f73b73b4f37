#pragma once
// What a thread says to its core while it waits for another in a loop: the other hardware thread may have the turn.

namespace moe {

inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace moe
