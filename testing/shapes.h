#pragma once
// Sizes where kernels go wrong: nothing, one, odd, and one less and more than a vector (8, 16), a panel (32), a block (64,
// 128).

#include <array>
#include <cstdint>
#include <vector>

namespace moe::test {

inline constexpr std::array<int64_t, 18> kSizes = {0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129};

struct GemmShape {
  int64_t M, N, K;
};

// Every mix of a few telling extents, K = 0 and M = 0 among them, and a few larger ones.
inline std::vector<GemmShape> GemmShapes() {
  std::vector<GemmShape> shapes;
  for (const int64_t M : {0, 1, 2, 7, 13}) {
    for (const int64_t N : {1, 31, 32, 65}) {
      for (const int64_t K : {0, 1, 2, 17, 33}) shapes.push_back({M, N, K});
    }
  }
  for (const GemmShape s : {GemmShape{33, 96, 64}, {64, 64, 129}, {129, 33, 255}, {5, 130, 300}}) shapes.push_back(s);
  return shapes;
}

}  // namespace moe::test
