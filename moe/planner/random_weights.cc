#include "moe/planner/random_weights.h"

#include <algorithm>
#include <cmath>

#include "moe/base/check.h"
#include "moe/base/rng.h"

namespace moe {
namespace {

constexpr int64_t kBlock = 1 << 15;  // elements of one random stream

// fn(begin, end, rng) over blocks of fixed size, so that values do not depend on the number of threads.
template <class F>
void ForEachBlock(int64_t n, uint64_t seed, ExecContext& ctx, F&& fn) {
  ctx.pool.ParallelFor((n + kBlock - 1) / kBlock, [&](int64_t block, int) {
    Rng rng(seed, static_cast<uint64_t>(block));
    fn(block * kBlock, std::min(n, (block + 1) * kBlock), rng);
  });
}

}  // namespace

void FillRandomWeights(std::span<std::byte> bytes, uint64_t seed, ExecContext& ctx) {
  MOE_CHECK(bytes.size() % 8 == 0, "{} bytes", bytes.size());
  // Per bf16: sign, the exponent's last bit and the mantissa are random. The upper bf16 of a pair is also the upper half of a
  // float32, hence the same range when the bytes are read as float32.
  constexpr uint64_t kRandomBits = 0x80ff80ff80ff80ffu, kExponent = 0x3c003c003c003c00u;
  auto* words = reinterpret_cast<uint64_t*>(bytes.data());
  ForEachBlock(static_cast<int64_t>(bytes.size() / 8), seed, ctx, [&](int64_t begin, int64_t end, Rng& rng) {
    for (int64_t i = begin; i < end; ++i) words[i] = (rng.Next() & kRandomBits) | kExponent;
  });
}

void FillRandomValues(std::span<float> values, float rms, uint64_t seed, ExecContext& ctx) {
  const float half_width = rms * std::sqrt(3.0f);
  ForEachBlock(static_cast<int64_t>(values.size()), seed, ctx, [&](int64_t begin, int64_t end, Rng& rng) {
    for (int64_t i = begin; i < end; ++i) {
      const auto bits = static_cast<int32_t>(rng.Next() >> 32);  // uniform in [-2^31, 2^31)
      values[static_cast<size_t>(i)] = static_cast<float>(bits) * 0x1.0p-31f * half_width;
    }
  });
}

void GiveRandomWeights(Model& model, std::span<std::byte> storage, uint64_t seed, ExecContext& ctx) {
  model.UsePackedStorage(storage.first(static_cast<size_t>(model.PackedStorageBytes())));
  uint64_t stream = 0;
  for (Parameter& parameter : model.parameters().all()) {
    ++stream;
    if (parameter.value.empty()) continue;
    if (parameter.value.shape().size() == 1) {
      std::fill(parameter.value.span().begin(), parameter.value.span().end(), 1.0f);
    } else {
      FillRandomValues(parameter.value.span(), 0.02f, MixBits(seed) + stream, ctx);
    }
  }
  model.Repack(ctx);
}

}  // namespace moe
