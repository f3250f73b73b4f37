#pragma once
// What this machine can do at most, right now. Shared machines change by half within seconds, so a figure means something only
// as a fraction of a ceiling that was measured beside it.

#include <cstdint>
#include <vector>

#include "moe/base/arena.h"
#include "moe/base/rng.h"
#include "moe/ops/exec_context.h"

namespace moe {

enum class Ceiling : uint8_t {
  kRead,             // bytes/s, in order, from beyond the last-level cache
  kReadChunks,       // bytes/s, in chunks of 4 MiB in random order: experts' matrices
  kWeights,          // bytes/s of packed bf16 weights, each multiplied with one row, in random order: a decode
  kReadModifyWrite,  // bytes/s of a stream that is changed in place; both directions count
  kOptimizerStream,  // bytes/s of four arrays side by side, each changed in place: gradient, value, two moments
  kPeakF32,          // FLOP/s of multiply-adds between registers, all threads together
  kPeakBf16,
  kPeakInt8,  // operations/s
  kBarrier,   // seconds to begin and end a parallel piece of work that does nothing
};
inline constexpr int kNumCeilings = 9;

class CeilingProbe {
 public:
  // Keeps a buffer, meant to be far larger than the last-level cache; -1: DefaultBytes.
  CeilingProbe(int64_t buffer_bytes, const KernelTable& kernels);

  // One sample: some milliseconds, for memory one pass over the buffer.
  double Sample(Ceiling ceiling, ThreadPool& pool);

  // FLOP/s of float32 multiply-adds by the threads' own clocks, over so many seconds of each: the pace of the cores, whoever
  // else has them now and then. A mean, as a step's: who shares a core's arithmetic, like its other hardware thread, comes and
  // goes.
  double Pace(ThreadPool& pool, double seconds = 1e-3);

  int64_t buffer_bytes() const { return num_chunks_ * kChunkBytes; }
  // Four times the last-level cache, within 256 MiB and 1 GiB.
  static int64_t DefaultBytes();

 private:
  static constexpr int64_t kChunkBytes = int64_t{4} << 20;
  std::vector<int64_t> Order(bool in_order);  // of the chunks
  double Read(bool in_order, ThreadPool& pool);
  double Weights(ThreadPool& pool);
  double ReadModifyWrite(ThreadPool& pool);
  double OptimizerStream(ThreadPool& pool);
  double Peak(double (*peak)(int64_t, float*), ThreadPool& pool);
  float* Floats(int64_t byte) { return reinterpret_cast<float*>(buffer_.get() + byte); }

  const KernelTable& kernels_;
  AlignedBytes buffer_;  // float32 ones
  Arena arena_;
  int64_t num_chunks_ = 0;
  Rng rng_{1};
};

}  // namespace moe
