#include "moe/planner/bandwidth_probe.h"

#include <algorithm>

#include "moe/base/check.h"
#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/ops/elementwise.h"

namespace moe {

int64_t BandwidthProbe::DefaultBytes() {
  return std::max(8 * GetCpuInfo().l3_bytes, kSampleBytes);
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
  const auto count = static_cast<size_t>(sample_bytes_ / 4);
  const std::span<const float> ones(reinterpret_cast<const float*>(buffer_.get() + next_ * sample_bytes_), count);
  next_ = (next_ + 1) % num_samples_;
  const double start = NowSeconds();
  const double sum = SumSquares(ones, ctx);
  const double seconds = NowSeconds() - start;
  MOE_CHECK(sum == static_cast<double>(count), "the probe summed {} over {} ones", sum, count);  // sums of ones are exact
  return static_cast<double>(sample_bytes_) / seconds;
}

}  // namespace moe
