#pragma once
// What is to be measured: shapes, as files name them. One a line, '#' begins a comment:
//   gemm M N K          y [M,N] = x [M,K] W^T; up to 64 rows: with cold weights, a decode
//   moe T D F E k       T tokens through E experts of width F, k each
//   sparse M N K        products with S [M,N] of which half of the blocks are there, as on a checkerboard: no two touch along a
//                       side; the other side of each product is K wide
//   attention C H G P   C positions, H query and G key/value heads of width P
//   adamw VALUES        one step over so many values
// A shape given twice is measured once.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "moe/base/result.h"

namespace moe {

struct GemmShape {
  int64_t M, N, K;
  bool operator==(const GemmShape&) const = default;
};
struct MoeShape {
  int64_t T, D, F, E, k;  // D and F multiples of 16, k <= E
  bool operator==(const MoeShape&) const = default;
};
struct AttentionBenchShape {
  int64_t C, H, G, P;  // G divides H; P a multiple of 2
  bool operator==(const AttentionBenchShape&) const = default;
};

inline constexpr int64_t kDecodeRows = 64;       // a product of so many rows at most is a decode
inline constexpr int64_t kManyRows = 256;        // of so many, backward products are held against forward ones
inline constexpr int64_t kSparseMultiple = 256;  // two of the largest blocks, so that blocks of all sizes fit

struct BenchShapes {
  std::vector<GemmShape> gemm;
  std::vector<MoeShape> moe;
  std::vector<GemmShape> sparse;  // M and N multiples of kSparseMultiple
  std::vector<AttentionBenchShape> attention;
  std::vector<int64_t> adamw;  // values
  int64_t cold_bytes = -1;     // what decodes go through before they come back, at least; -1: far more than the caches hold
  bool operator==(const BenchShapes&) const = default;
};

// `where` names the text in errors, which name the line too.
Result<BenchShapes> ParseBenchShapes(std::string_view text, const std::string& where);
// In the format above, without comments: parsed again it is the same.
std::string ToText(const BenchShapes& shapes);
// What is measured when no file says otherwise: few enough for some minutes.
BenchShapes DefaultBenchShapes();

}  // namespace moe
