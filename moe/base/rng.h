#pragma once
// A random stream is a pure function of (seed, stream): nothing to save, so a resumed run replays it by asking again.

#include <cmath>
#include <cstdint>

namespace moe {

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
inline uint64_t MixBits(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t stream = 0) : state_(MixBits(seed ^ MixBits(stream))) {}

  uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15u;
    return MixBits(state_);
  }
  // Uniform in [0, 1).
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }
  // Uniform in [0, n); n > 0. (Lemire 2019, without the rejection: bias < n / 2^64.)
  int64_t Below(int64_t n) {
    return static_cast<int64_t>((__extension__ static_cast<unsigned __int128>(Next()) * static_cast<uint64_t>(n)) >> 64);
  }
  // Standard normal, Box-Muller, one of the pair.
  double Normal() {
    const double u = 1.0 - Uniform(), v = Uniform();
    return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
  }

 private:
  uint64_t state_;
};

}  // namespace moe
