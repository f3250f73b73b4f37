#pragma once
// How fast this machine reads memory right now. Shared machines change by half within seconds, so a figure that waits for
// memory means something only beside a probe of the same moment.

#include <cstdint>

#include "moe/base/arena.h"
#include "moe/ops/exec_context.h"

namespace moe {

class BandwidthProbe {
 public:
  // Keeps a buffer of `buffer_bytes` (rounded up to whole samples), meant to be far larger than the last-level cache.
  BandwidthProbe(int64_t buffer_bytes, int64_t sample_bytes, ExecContext& ctx);
  explicit BandwidthProbe(ExecContext& ctx) : BandwidthProbe(DefaultBytes(), kSampleBytes, ctx) {}

  // Reads one sample in order, with all threads and the widest loads there are; the next one begins where it ended. Bytes per
  // second.
  double Sample(ExecContext& ctx);

  int64_t buffer_bytes() const { return num_samples_ * sample_bytes_; }
  int64_t sample_bytes() const { return sample_bytes_; }

  // Four times the last-level cache, within one sample and four.
  static int64_t DefaultBytes();
  static constexpr int64_t kSampleBytes = int64_t{256} << 20;  // some 10 ms

 private:
  AlignedBytes buffer_;  // float32 ones
  int64_t sample_bytes_ = 0;
  int64_t num_samples_ = 0;
  int64_t next_ = 0;
};

}  // namespace moe
