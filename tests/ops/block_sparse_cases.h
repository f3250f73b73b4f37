// Block-sparse products of every kind of topology, as dense matrices for the double twin.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "moe/ops/block_sparse.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/reference/gemm.h"
#include "testing/test_context.h"

namespace moe::test {

// Which blocks are there, as a mask, and the topology made from it.
struct Blocks {
  int64_t block, rows, columns;  // the latter two in blocks
  std::vector<bool> there;       // [rows, columns]
  std::vector<int32_t> row_begin, column, used;
  BlockTopology topology;

  Blocks(int64_t b, int64_t r, int64_t c, std::vector<bool> mask, std::vector<int32_t> rows_used, ExecContext& ctx)
      : block(b), rows(r), columns(c), there(std::move(mask)), row_begin{0}, used(std::move(rows_used)) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        if (there[static_cast<size_t>(i * columns + j)]) column.push_back(static_cast<int32_t>(j));
      }
      row_begin.push_back(static_cast<int32_t>(column.size()));
    }
    topology = MakeTopology(block, columns, row_begin, column, used, ctx);
  }
  bool Has(int64_t row, int64_t column_of_s, int64_t width) const {
    const int64_t i = row / block, j = column_of_s / (block * width);
    return there[static_cast<size_t>(i * columns + j)] && Used(row);
  }
  bool Used(int64_t row) const { return used.empty() || row % block < used[static_cast<size_t>(row / block)]; }
};

// Block-diagonal (an MoE layer's), random, full, or no two blocks side by side nor below each other.
enum class Kind { kDiagonal, kRandom, kFull, kCheckerboard };

inline Blocks MakeBlocks(Kind kind, int64_t block, int64_t experts, bool ragged, Rng& rng, ExecContext& ctx) {
  const int64_t columns = 2 * experts;  // two blocks an expert
  std::vector<bool> mask;
  std::vector<int32_t> used;
  int64_t rows = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t few = block > 64 ? e : rng.Below(4);  // none, too; of the large ones none, then one
    const int64_t count = kind == Kind::kDiagonal ? few : kind == Kind::kCheckerboard && block > 64 ? 1 : 2;
    const auto there = [&](int64_t j) {
      switch (kind) {
        case Kind::kDiagonal:
          return j / 2 == e;
        case Kind::kRandom:
          return rng.Below(5) < 3;
        case Kind::kFull:
          return true;
        case Kind::kCheckerboard:
          return (rows + j) % 2 == 0;
      }
      return false;
    };
    for (int64_t i = 0; i < count; ++i, ++rows) {
      for (int64_t j = 0; j < columns; ++j) mask.push_back(there(j));
      const bool last = i + 1 == count;
      used.push_back(static_cast<int32_t>(ragged && (last || kind == Kind::kRandom) ? rng.Below(block + 1) : block));
    }
  }
  return {block, rows, columns, mask, ragged ? used : std::vector<int32_t>{}, ctx};
}

// S as a dense matrix: 0 where no block is.
inline std::vector<float> Dense(const Blocks& blocks, const BlockMatrix& s) {
  const int64_t columns = blocks.columns * s.columns_per_block();
  std::vector<float> out(static_cast<size_t>(blocks.rows * blocks.block * columns));
  size_t next = 0;
  for (int64_t i = 0; i < blocks.rows; ++i) {
    for (int64_t r = i * blocks.block; r < (i + 1) * blocks.block; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        if (!blocks.there[static_cast<size_t>(i * blocks.columns + c / s.columns_per_block())]) continue;
        out[static_cast<size_t>(r * columns + c)] = blocks.Used(r) ? s.values.as<float>().data[next] : 0;
        ++next;
      }
    }
  }
  EXPECT_EQ(static_cast<int64_t>(next), s.values.size());
  return out;
}

struct Values {
  std::vector<float> storage;
  BlockMatrix matrix;
  Values(const Blocks& blocks, int64_t width, float fill) {
    matrix = {.topology = &blocks.topology, .width = width};
    storage.assign(static_cast<size_t>(matrix.size()), fill);
    matrix.values = MatView<float>(storage.data(), 1, matrix.size());
  }
  // Random where used, NaN where not.
  Values(const Blocks& blocks, int64_t width, Rng& rng) : Values(blocks, width, NAN) {
    size_t next = 0;
    for (int64_t i = 0; i < blocks.rows; ++i) {
      const int64_t strip = (blocks.row_begin[static_cast<size_t>(i) + 1] - blocks.row_begin[static_cast<size_t>(i)]) *
                            matrix.columns_per_block();
      for (int64_t r = i * blocks.block; r < (i + 1) * blocks.block; ++r) {
        for (int64_t c = 0; c < strip; ++c, ++next) {
          if (blocks.Used(r)) storage[next] = static_cast<float>(rng.Normal());
        }
      }
    }
  }
};

// Weights [N,K], one an expert.
struct Segments {
  std::vector<FencedMatrix> dense;
  std::vector<AlignedBytes> bytes;
  std::vector<PackedWeight> packed;
  Segments(int64_t count, int64_t N, int64_t K, DType format, Rng& rng, ExecContext& ctx) {
    for (int64_t i = 0; i < count; ++i) {
      dense.emplace_back(N, K);
      FillNormal(dense.back().view(), rng);
      const auto size = static_cast<size_t>(PackedBytes(format, N, K, PackSide::kForward));
      bytes.push_back(AllocateAligned(size));
      packed.push_back(Pack(dense.back().view(), format, PackSide::kForward, {bytes.back().get(), size}, ctx));
    }
  }
  MatView<const float> of(int64_t i) const { return dense[static_cast<size_t>(i)].view(); }
};

inline std::vector<double> Bounds(const ReferenceProduct& product, int64_t terms, std::span<const float> before = {}) {
  std::vector<double> out;
  for (size_t i = 0; i < product.sum_abs.size(); ++i) {
    const bool adds = !before.empty();
    out.push_back(DotTolerance(terms + (adds ? 2 : 1), product.sum_abs[i] + (adds ? std::fabs(before[i]) : 0)).absolute);
  }
  return out;
}

struct Case {
  Kind kind;
  int64_t block, experts;
  bool ragged;
};
inline std::vector<Case> Cases() {
  std::vector<Case> out;
  for (const Kind kind : {Kind::kDiagonal, Kind::kRandom, Kind::kFull}) {
    for (const bool ragged : {false, true}) {
      for (const int64_t block : {16, 32, 48}) out.push_back({kind, block, kind == Kind::kFull || block == 48 ? 2 : 3, ragged});
    }
    out.push_back({kind, 128, kind == Kind::kDiagonal ? 2 : 1, true});
  }
  // Two blocks in every row and, but for the largest, in every column, so that they add up in rounds.
  for (const int64_t block : {16, 32, 64, 128}) out.push_back({Kind::kCheckerboard, block, 2, block < 64});
  return out;
}

template <class F>
void ForEachCase(F&& fn) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const Case& c : Cases()) {
      for (const DType format : {DType::kF32, DType::kBf16}) {
        SCOPED_TRACE(fmt::format("{} kind {} block {} ragged {} {}", table->name, static_cast<int>(c.kind), c.block, c.ragged,
                                 Name(format)));
        TestContext t(2, table);
        Rng rng(static_cast<uint64_t>(c.block) + 1);
        const Blocks blocks = MakeBlocks(c.kind, c.block, c.experts, c.ragged, rng, t.ctx);
        fn(blocks, c, format, rng, t.ctx);
      }
    }
  }
}

}  // namespace moe::test
