#pragma once
// Test data that a seed reproduces.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moe/base/bf16.h"
#include "moe/base/rng.h"
#include "moe/tensor/mat_view.h"

namespace moe::test {

// Normal, mean 0.
inline void FillNormal(std::span<float> out, Rng& rng, double deviation = 1) {
  for (float& x : out) x = static_cast<float>(rng.Normal() * deviation);
}
inline void FillNormal(MatView<float> out, Rng& rng, double deviation = 1) {
  for (int64_t r = 0; r < out.rows; ++r) FillNormal(out.row_span(r), rng, deviation);
}
inline std::vector<float> NormalFloats(int64_t count, Rng& rng, double deviation = 1) {
  std::vector<float> out(static_cast<size_t>(count));
  FillNormal(std::span<float>(out), rng, deviation);
  return out;
}

// The same values rounded, and as float32 again.
struct Halves {
  std::vector<Bf16> bf16;
  std::vector<float> f32;

  explicit Halves(std::vector<float> values) : f32(std::move(values)) {
    for (float& x : f32) bf16.push_back(ToBf16(x)), x = ToFloat(bf16.back());
  }
};

// Integers in [0, bound).
inline std::vector<int32_t> RandomInts(int64_t count, int64_t bound, Rng& rng) {
  std::vector<int32_t> out(static_cast<size_t>(count));
  for (auto& x : out) x = static_cast<int32_t>(rng.Below(bound));
  return out;
}

// Any bytes at all: mostly not UTF-8.
inline std::string RandomBytes(int64_t count, Rng& rng) {
  std::string out(static_cast<size_t>(count), '\0');
  for (char& c : out) c = static_cast<char>(rng.Below(256));
  return out;
}

}  // namespace moe::test
