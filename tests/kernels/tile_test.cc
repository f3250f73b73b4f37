#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "moe/base/arena.h"
#include "moe/kernels/cpu/kernel_table.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/reference/gemm.h"

namespace moe::test {
namespace {

constexpr int64_t kColumns = 32;
const std::vector<int64_t> kLengths = {0, 1, 2, 3, 31, 64, 257};

// The four tiles behind one face: row- or column-wise a, float32 or bf16 pairs. K counts floats or pairs.
struct Tile {
  const char* name;
  bool outer, bf16;
};
const std::vector<Tile> kTiles = {
    {"tile_f32", false, false}, {"outer_f32", true, false}, {"tile_bf16", false, true}, {"outer_bf16", true, true}};

uint32_t RandomPair(Rng& rng) {
  const uint32_t low = ToBf16(static_cast<float>(rng.Normal())).bits, high = ToBf16(static_cast<float>(rng.Normal())).bits;
  return low | high << 16;
}
float Low(uint32_t pair) {
  return ToFloat(Bf16{static_cast<uint16_t>(pair & 0xffff)});
}
float High(uint32_t pair) {
  return ToFloat(Bf16{static_cast<uint16_t>(pair >> 16)});
}

// One case: elements of a and b are 32-bit words (a float's bits or a pair), so that all four share the code.
struct Case {
  int64_t rows, K, b_stride;
  std::vector<std::vector<uint32_t>> a;  // [rows][K]
  std::vector<uint32_t> b;               // (K-1) * b_stride + 32, not a word more
  std::vector<float> c;                  // [rows, 32], what accumulation starts from

  Case(const Tile& tile, int64_t rows_, int64_t K_, int64_t b_stride_, Rng& rng) : rows(rows_), K(K_), b_stride(b_stride_) {
    const auto word = [&] { return tile.bf16 ? RandomPair(rng) : std::bit_cast<uint32_t>(static_cast<float>(rng.Normal())); };
    a.resize(static_cast<size_t>(rows));
    for (auto& row : a)
      for (int64_t k = 0; k < K; ++k) row.push_back(word());
    if (K > 0) b.assign(static_cast<size_t>((K - 1) * b_stride + kColumns), 0x7fc07fc0u);  // NaN between the rows
    for (int64_t k = 0; k < K; ++k)
      for (int64_t n = 0; n < kColumns; ++n) b[static_cast<size_t>(k * b_stride + n)] = word();
    c = NormalFloats(rows * kColumns, rng);
  }
};

// The tile of rows [first, first+rows) of the case, c dense [rows,32].
std::vector<float> RunTile(const KernelTable& table, const Tile& tile, const Case& x, int64_t first, int64_t rows,
                           bool accumulate) {
  const int64_t ldc = kColumns + 3;
  const TileHints hints{.b = x.b.data(), .b_step = 64, .c = x.c.data()};  // only asked for: any address will do
  std::vector<float> c(static_cast<size_t>(std::max<int64_t>(1, rows) * ldc), NAN);
  for (int64_t r = 0; r < rows && accumulate; ++r)
    std::copy_n(x.c.begin() + (first + r) * kColumns, kColumns, c.begin() + r * ldc);
  if (tile.outer) {
    const int64_t a_stride = rows + 2;
    std::vector<uint32_t> a(static_cast<size_t>(x.K * a_stride), 0x7fc07fc0u);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t k = 0; k < x.K; ++k)
        a[static_cast<size_t>(k * a_stride + r)] = x.a[static_cast<size_t>(first + r)][static_cast<size_t>(k)];
    if (tile.bf16) {
      table.outer_bf16(rows, x.K, a.data(), a_stride, x.b.data(), x.b_stride, c.data(), ldc, accumulate, hints);
    } else {
      std::vector<float> a_f32(a.size()), b_f32(x.b.size());
      if (!a.empty()) std::memcpy(a_f32.data(), a.data(), a.size() * 4), std::memcpy(b_f32.data(), x.b.data(), x.b.size() * 4);
      table.outer_f32(rows, x.K, a_f32.data(), a_stride, b_f32.data(), x.b_stride, c.data(), ldc, accumulate, hints);
    }
  } else if (tile.bf16) {
    std::vector<const uint32_t*> a;
    for (int64_t r = 0; r < rows; ++r) a.push_back(x.a[static_cast<size_t>(first + r)].data());
    table.tile_bf16(rows, x.K, a.data(), x.b.data(), x.b_stride, c.data(), ldc, accumulate, hints);
  } else {
    std::vector<std::vector<float>> rows_f32;
    std::vector<const float*> a;
    for (int64_t r = 0; r < rows; ++r) {
      auto& row = rows_f32.emplace_back();
      for (const uint32_t word : x.a[static_cast<size_t>(first + r)]) row.push_back(std::bit_cast<float>(word));
      a.push_back(row.data());
    }
    std::vector<float> b;
    for (const uint32_t word : x.b) b.push_back(std::bit_cast<float>(word));
    table.tile_f32(rows, x.K, a.data(), b.data(), x.b_stride, c.data(), ldc, accumulate, hints);
  }
  std::vector<float> dense;
  for (int64_t r = 0; r < rows; ++r) {
    dense.insert(dense.end(), c.begin() + r * ldc, c.begin() + r * ldc + kColumns);
    for (int64_t n = kColumns; n < ldc; ++n) EXPECT_TRUE(std::isnan(c[static_cast<size_t>(r * ldc + n)])) << "wrote past a row";
  }
  return dense;
}

ReferenceProduct Twin(const Tile& tile, const Case& x, bool accumulate) {
  const auto element = [&](const uint32_t& word, int64_t half) {
    return !tile.bf16 ? std::bit_cast<float>(word) : half == 0 ? Low(word) : High(word);
  };
  const int64_t per_word = tile.bf16 ? 2 : 1;
  ReferenceProduct c = Multiply(
      x.rows, kColumns, x.K * per_word,
      [&](int64_t r, int64_t k) {
        return element(x.a[static_cast<size_t>(r)][static_cast<size_t>(k / per_word)], k % per_word);
      },
      [&](int64_t n, int64_t k) { return element(x.b[static_cast<size_t>(k / per_word * x.b_stride + n)], k % per_word); });
  for (size_t i = 0; i < c.value.size() && accumulate; ++i) c.value[i] += x.c[i], c.sum_abs[i] += std::fabs(x.c[i]);
  return c;
}

TEST(Tile, MatchesTheTwinForEveryRowCountLengthAndStride) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const Tile& tile : kTiles) {
      Rng rng(1);
      for (int64_t rows = 1; rows <= table->max_rows; ++rows) {
        for (const int64_t K : kLengths) {
          for (const int64_t b_stride : {kColumns, kColumns + 7}) {
            for (const bool accumulate : {false, true}) {
              if (K == 257 && b_stride != kColumns && rows % 5 != 1) continue;  // enough of these, and they are the slow ones
              SCOPED_TRACE(fmt::format("{} {} rows {} K {} stride {} accumulate {}", table->name, tile.name, rows, K, b_stride,
                                       accumulate));
              const Case x(tile, rows, K, b_stride, rng);
              const auto want = Twin(tile, x, accumulate);
              std::vector<double> bounds;
              for (const double sum_abs : want.sum_abs)
                bounds.push_back(DotTolerance(K * (tile.bf16 ? 2 : 1) + 1, sum_abs).absolute);
              ExpectClose(RunTile(*table, tile, x, 0, rows, accumulate), want.value, bounds);
            }
          }
        }
      }
    }
  }
}

TEST(Tile, LengthZeroGivesExactZerosOrLeavesC) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const Tile& tile : kTiles) {
      SCOPED_TRACE(fmt::format("{} {}", table->name, tile.name));
      Rng rng(2);
      const Case x(tile, table->max_rows, 0, kColumns, rng);
      ExpectSameBits(RunTile(*table, tile, x, 0, x.rows, false), std::vector<float>(x.c.size(), 0.0f));
      ExpectSameBits(RunTile(*table, tile, x, 0, x.rows, true), x.c);
    }
  }
}

// The promise on which all bitwise equalities rest: a row's result does not depend on how many rows stand beside it.
TEST(Tile, ARowIsTheSameInATileOfAnyHeight) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const Tile& tile : kTiles) {
      Rng rng(3);
      for (const int64_t K : {1, 31, 257}) {
        const Case x(tile, table->max_rows, K, kColumns, rng);
        for (const bool accumulate : {false, true}) {
          const auto all = RunTile(*table, tile, x, 0, x.rows, accumulate);
          for (int64_t rows = 1; rows < x.rows; ++rows) {
            for (const int64_t first : {int64_t{0}, x.rows - rows}) {
              SCOPED_TRACE(fmt::format("{} {} K {} rows {}+{}", table->name, tile.name, K, first, rows));
              ExpectSameBits(
                  RunTile(*table, tile, x, first, rows, accumulate),
                  std::span(all).subspan(static_cast<size_t>(first * kColumns), static_cast<size_t>(rows * kColumns)));
            }
          }
        }
      }
    }
  }
}

// Rows one step apart and columns one step apart are the same sum.
TEST(Tile, OuterEqualsTileBitForBit) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const bool bf16 : {false, true}) {
      SCOPED_TRACE(fmt::format("{} bf16 {}", table->name, bf16));
      Rng rng(4);
      const Case x({"", false, bf16}, table->max_rows, 100, kColumns, rng);
      ExpectSameBits(RunTile(*table, {"", true, bf16}, x, 0, x.rows, true),
                     RunTile(*table, {"", false, bf16}, x, 0, x.rows, true));
    }
  }
}

TEST(Tile, PastTheCachesGoesTheSame) {
  const AlignedBytes storage = AllocateAligned(kMaxTileRows * 48 * sizeof(float));
  const auto c = reinterpret_cast<float*>(storage.get());
  for (const KernelTable* table : SupportedKernelTables()) {
    for (int64_t rows = 1; rows <= table->max_rows; ++rows) {
      SCOPED_TRACE(fmt::format("{} rows {}", table->name, rows));
      Rng rng(7);
      const Case x({"", false, true}, rows, 33, kColumns, rng);
      std::vector<const uint32_t*> a;
      for (const auto& row : x.a) a.push_back(row.data());
      std::fill_n(c, kMaxTileRows * 48, NAN);
      table->tile_bf16(rows, x.K, a.data(), x.b.data(), x.b_stride, c, 48, false, {.stream = true});
      table->stream_fence();
      const auto want = RunTile(*table, {"", false, true}, x, 0, rows, false);
      for (int64_t r = 0; r < kMaxTileRows; ++r) {
        if (r < rows)
          ExpectSameBits(std::span<const float>(c + r * 48, kColumns),
                         std::span(want).subspan(static_cast<size_t>(r * kColumns), kColumns));
        for (int64_t n = r < rows ? kColumns : 0; n < 48; ++n) EXPECT_TRUE(std::isnan(c[r * 48 + n]));
      }
    }
  }
}

TEST(Tile, BlockEqualsTileBitForBit) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (int64_t rows = 1; rows <= table->max_rows; ++rows) {
      for (const bool accumulate : {false, true}) {
        SCOPED_TRACE(fmt::format("{} rows {} accumulate {}", table->name, rows, accumulate));
        const auto run = [&](bool bf16, auto product, auto word) {
          using Word = decltype(word);
          Rng rng(6);
          const int64_t stride = bf16 ? kSoftmaxBlock / 2 : kSoftmaxBlock, K = stride - 3, ldc = kColumns + 3;
          const Case x({"", false, bf16}, rows, K, kColumns + 1, rng);
          std::vector<Word> a(static_cast<size_t>(rows * stride), std::bit_cast<Word>(0x7fc07fc0u)), b;
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t i = 0; i < K; ++i)
              a[static_cast<size_t>(r * stride + i)] = std::bit_cast<Word>(x.a[static_cast<size_t>(r)][static_cast<size_t>(i)]);
          }
          for (const uint32_t w : x.b) b.push_back(std::bit_cast<Word>(w));
          std::vector<float> c(static_cast<size_t>(rows * ldc), NAN), dense;
          for (int64_t r = 0; r < rows && accumulate; ++r)
            std::copy_n(x.c.begin() + r * kColumns, kColumns, c.begin() + r * ldc);
          product(rows, K, a.data(), b.data(), x.b_stride, c.data(), ldc, accumulate);
          for (int64_t r = 0; r < rows; ++r) {
            dense.insert(dense.end(), c.begin() + r * ldc, c.begin() + r * ldc + kColumns);
            for (int64_t n = kColumns; n < ldc; ++n) EXPECT_TRUE(std::isnan(c[static_cast<size_t>(r * ldc + n)]));
          }
          ExpectSameBits(dense, RunTile(*table, {"", false, bf16}, x, 0, rows, accumulate));
        };
        run(false, table->block_f32, 0.0f);
        run(true, table->block_bf16, uint32_t{});
      }
    }
  }
}

TEST(Tile, NansAndInfinitiesStayInTheirRow) {
  for (const KernelTable* table : SupportedKernelTables()) {
    if (table->max_rows < 3) continue;
    Rng rng(5);
    Case x({"", false, false}, 3, 5, kColumns, rng);
    x.a[1][2] = std::bit_cast<uint32_t>(NAN);
    const auto c = RunTile(*table, kTiles[0], x, 0, 3, false);
    for (int64_t n = 0; n < kColumns; ++n) {
      EXPECT_TRUE(std::isfinite(c[static_cast<size_t>(n)]) && std::isfinite(c[static_cast<size_t>(2 * kColumns + n)]));
      EXPECT_TRUE(std::isnan(c[static_cast<size_t>(kColumns + n)]));
    }
  }
}

TEST(Peak, CountsItsWork) {
  for (const KernelTable* table : SupportedKernelTables()) {
    float sink = NAN;
    const double f32 = table->peak_f32(10, &sink);
    EXPECT_EQ(sink, 0.0f);
    EXPECT_EQ(table->peak_f32(20, &sink), 2 * f32);
    EXPECT_GE(f32, 10.0 * 2 * static_cast<double>(table->max_rows) * 8);  // 8: two of the narrowest vectors
    EXPECT_EQ(table->peak_bf16(10, &sink), 2 * f32);                      // a pair is two products
    EXPECT_EQ(table->peak_int8(10, &sink), 4 * f32);
    EXPECT_EQ(sink, 0.0f);
  }
}

}  // namespace
}  // namespace moe::test
