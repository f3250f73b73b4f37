#include "moe/planner/bandwidth_probe.h"

#include <algorithm>
#include <atomic>

#include "moe/base/check.h"
#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/ops/chunks.h"

namespace moe {
namespace {

constexpr int64_t kPieceBytes = int64_t{8} << 20;  // of one thread at a time: in smaller ones prefetchers lose their way

}  // namespace

int64_t BandwidthProbe::DefaultBytes() {
  // Virtual machines name caches of hundreds of megabytes, of which they have a part.
  return std::clamp(4 * GetCpuInfo().l3_bytes, kSampleBytes, 4 * kSampleBytes);
}

BandwidthProbe::BandwidthProbe(int64_t buffer_bytes, int64_t sample_bytes, ExecContext& ctx) : sample_bytes_(sample_bytes) {
  MOE_CHECK(buffer_bytes > 0 && sample_bytes > 0 && sample_bytes % static_cast<int64_t>(kAlignment) == 0,
            "buffer of {} bytes, samples of {}", buffer_bytes, sample_bytes);
  num_samples_ = (buffer_bytes + sample_bytes - 1) / sample_bytes;
  buffer_ = AllocateAligned(static_cast<size_t>(num_samples_ * sample_bytes_));
  // Written, or all pages would be the one page of zeros.
  ctx.pool.ParallelFor(num_samples_, [&](int64_t i, int) {
    std::fill_n(reinterpret_cast<float*>(buffer_.get() + i * sample_bytes_), sample_bytes_ / 4, 1.0f);
  });
}

double BandwidthProbe::Sample(ExecContext& ctx) {
  const auto* ones = reinterpret_cast<const float*>(buffer_.get() + next_ * sample_bytes_);
  const int64_t count = sample_bytes_ / 4;
  next_ = (next_ + 1) % num_samples_;
  std::atomic<int64_t> sum = 0;  // exact: of ones
  const double start = NowSeconds();
  ForEachChunk(count, kPieceBytes / 4, ctx, [&](int64_t begin, int64_t end, int) {
    sum += static_cast<int64_t>(ctx.kernels.sum_squares(ones + begin, end - begin));
  });
  const double seconds = NowSeconds() - start;
  MOE_CHECK(sum == count, "the probe summed {} over {} ones", sum.load(), count);
  return static_cast<double>(sample_bytes_) / seconds;
}

}  // namespace moe
