#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "moe/kernels/cpu/kernel_table.h"
#include "testing/matchers.h"
#include "testing/random.h"

namespace moe::test {
namespace {

// Quiet ones of both signs, all bits and one low bit set: what unwritten memory holds, and what could get lost in arithmetic.
constexpr uint32_t kNans[] = {0x7fc00000, 0xffffffff, 0x7fffffff, 0x7fc00001};

constexpr auto kWidth = static_cast<size_t>(kSoftmaxBlock);

struct State {
  std::vector<float> x, p, max, sums, rescale;
  std::vector<uint32_t> pairs;
  bool moved;

  double Sum(size_t row) const {
    const auto parts = std::span(sums).subspan(row * kSoftmaxSums, kSoftmaxSums);
    return std::accumulate(parts.begin(), parts.end(), 0.0);
  }
};

// Row r sees valid[r] columns of each block in turn; the others hold NaN.
State RunBlocks(const KernelTable& table, const std::vector<std::vector<int32_t>>& valid_of_blocks, size_t first, size_t rows,
                const std::vector<float>& scores, bool rounded = false) {
  State s{.x = {},
          .p = std::vector<float>(rows * kWidth, NAN),
          .max = std::vector<float>(kMaxTileRows, -INFINITY),
          .sums = std::vector<float>(rows * kSoftmaxSums, 0.0f),
          .rescale = std::vector<float>(kMaxTileRows, NAN),
          .pairs = std::vector<uint32_t>(rows * kWidth / 2),
          .moved = false};
  for (size_t r = rows; r < s.max.size(); ++r) s.max[r] = -7;  // other rows'
  const size_t all_rows = valid_of_blocks[0].size();
  for (size_t b = 0; b < valid_of_blocks.size(); ++b) {
    std::vector<int32_t> valid(valid_of_blocks[b].begin() + first, valid_of_blocks[b].begin() + first + rows);
    s.x.assign(rows * kWidth, NAN);
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < static_cast<size_t>(valid[r]); ++c)
        s.x[r * kWidth + c] = scores[(b * all_rows + first + r) * kWidth + c];
    }
    s.moved = table.softmax_block(static_cast<int64_t>(rows), valid.data(), s.x.data(), s.max.data(), s.sums.data(),
                                  s.rescale.data(), rounded ? nullptr : s.p.data(), rounded ? s.pairs.data() : nullptr);
  }
  for (size_t r = rows; r < s.max.size(); ++r) EXPECT_EQ(s.max[r], -7) << r;
  for (auto* v : {&s.max, &s.rescale}) v->resize(rows);
  return s;
}

TEST(SoftmaxBlock, RunsOverBlocksAsOneSoftmax) {
  for (const KernelTable* table : SupportedKernelTables()) {
    const auto rows = static_cast<size_t>(table->max_rows);
    Rng rng(1);
    const auto scores = NormalFloats(static_cast<int64_t>(3 * rows * kWidth), rng, 5);
    std::vector<std::vector<int32_t>> valid(3, std::vector<int32_t>(rows, 64));
    for (size_t r = 0; r < rows; ++r) {
      valid[1][r] = static_cast<int32_t>(rng.Below(65));
      valid[2][r] = r % 2 == 0 ? 0 : static_cast<int32_t>(1 + rng.Below(64));
    }
    valid[0][0] = 1;
    const State s = RunBlocks(*table, valid, 0, rows, scores);
    bool moved = false;
    for (size_t r = 0; r < rows; ++r) {
      SCOPED_TRACE(fmt::format("{} row {}", table->name, r));
      double max = -INFINITY, before_last = -INFINITY, sum = 0;
      for (size_t b = 0; b < 3; ++b) {
        before_last = max;
        double largest = -INFINITY;
        for (size_t c = 0; c < static_cast<size_t>(valid[b][r]); ++c)
          largest = std::fmax(largest, scores[(b * rows + r) * kWidth + c]);
        if (largest > max + kSoftmaxSlack || max == -INFINITY) max = largest;
      }
      moved = moved || max != before_last;
      for (size_t b = 0; b < 3; ++b) {
        for (size_t c = 0; c < static_cast<size_t>(valid[b][r]); ++c)
          sum += std::exp(scores[(b * rows + r) * kWidth + c] - max);
      }
      EXPECT_EQ(s.max[r], static_cast<float>(max));
      // each term: its difference, of up to 64 and the power's 3; 12 terms a part; two rescalings
      EXPECT_NEAR(s.Sum(r), sum, sum * (64 + 3 + 12 + 2 * 67) * kEpsF32);
      if (s.moved) {
        EXPECT_NEAR(s.rescale[r], std::exp(before_last - max), 67 * kEpsF32);
      }
      for (size_t c = 0; c < kWidth; ++c) {
        if (c >= static_cast<size_t>(valid[2][r])) {
          EXPECT_EQ(std::bit_cast<uint32_t>(s.p[r * kWidth + c]), 0u) << c;
        } else {
          const double e = std::exp(scores[(2 * rows + r) * kWidth + c] - max);
          EXPECT_NEAR(s.p[r * kWidth + c], e, (64 + 3) * kEpsF32 * e) << c;
        }
      }
      if (s.moved && valid[2][r] == 0) {
        EXPECT_EQ(s.rescale[r], 1.0f);
      }
    }
    EXPECT_EQ(s.moved, moved);
    // Rounded, they are the same exponentials; all else is as before.
    const State pairs = RunBlocks(*table, valid, 0, rows, scores, true);
    ExpectSameBits(pairs.max, s.max), ExpectSameBits(pairs.sums, s.sums);
    for (size_t i = 0; i < rows * kWidth; ++i) {
      const auto got = static_cast<uint16_t>(pairs.pairs[i / 2] >> (i % 2 * 16));
      EXPECT_EQ(got, ToBf16(s.p[i]).bits) << table->name << " " << i;
    }
    // A row by itself gives the same bits.
    for (size_t r = 0; r < rows; ++r) {
      const State alone = RunBlocks(*table, valid, r, 1, scores);
      ExpectSameBits(alone.p, std::span(s.p).subspan(r * kWidth, kWidth));
      ExpectSameBits(alone.sums, std::span(s.sums).subspan(r * kSoftmaxSums, kSoftmaxSums));
      ExpectSameBits(alone.max, std::span(s.max).subspan(r, 1));
    }
  }
}

TEST(SoftmaxBlock, TheMaximumMovesOnlyBeyondTheSlack) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const float excess : {-3.0f, 0.0f, 7.9f, 8.1f, 60.0f}) {
      SCOPED_TRACE(fmt::format("{} {}", table->name, excess));
      std::vector<float> scores(2 * kWidth, 1.0f);
      std::fill_n(scores.begin() + kWidth, kWidth, 1.0f + excess);
      const State s = RunBlocks(*table, {{64}, {64}}, 0, 1, scores);
      EXPECT_EQ(s.moved, excess > kSoftmaxSlack);
      EXPECT_EQ(s.max[0], excess > kSoftmaxSlack ? 1 + excess : 1.0f);
      // the sum's roundings as above, those of max and excess
      EXPECT_NEAR(s.max[0] + std::log(s.Sum(0)), 1 + std::log(64 + 64 * std::exp(static_cast<double>(excess))),
                  (64 + 3 + 12 + 2 * 67 + 2 * 64) * kEpsF32);
    }
  }
}

TEST(SoftmaxBlock, ANanScoreShows) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (size_t at = 0; at < kWidth; at += 7) {
      for (const uint32_t nan : kNans) {
        std::vector<float> scores(2 * kWidth, 1.0f);
        scores[kWidth + at] = std::bit_cast<float>(nan);
        EXPECT_TRUE(std::isnan(RunBlocks(*table, {{64}, {64}}, 0, 1, scores).Sum(0))) << table->name << " " << at << " " << nan;
        std::rotate(scores.begin(), scores.begin() + kWidth, scores.end());  // in the first block
        EXPECT_TRUE(std::isnan(RunBlocks(*table, {{64}, {64}}, 0, 1, scores).Sum(0))) << table->name << " " << at << " " << nan;
        std::vector<float> p(kWidth, 1.0f), d(kWidth, 1.0f);
        p[at] = std::bit_cast<float>(nan);
        const int32_t valid = 64;
        const float zero = 0;
        table->softmax_block_backward(1, &valid, &zero, &zero, p.data(), d.data());
        EXPECT_TRUE(std::isnan(p[at]) && std::isnan(d[at])) << table->name << " " << at << " " << nan;
      }
    }
  }
}

// A row that has seen nothing yet stays as it was, whatever its neighbours see.
TEST(SoftmaxBlock, ARowWithoutColumnsWaits) {
  for (const KernelTable* table : SupportedKernelTables()) {
    if (table->max_rows < 2) continue;
    const std::vector<float> scores(2 * 2 * kWidth, 3.0f);
    const State s = RunBlocks(*table, {{0, 5}, {4, 64}}, 0, 2, scores), first = RunBlocks(*table, {{0, 5}}, 0, 2, scores);
    EXPECT_EQ(first.max[0], -INFINITY);
    EXPECT_EQ(first.Sum(0), 0);
    EXPECT_EQ(first.Sum(1), 5);
    EXPECT_EQ(s.Sum(0), 4);
    EXPECT_EQ(s.Sum(1), 69);
  }
}

TEST(SoftmaxBlockBackward, MatchesTheFormulaAndClearsTheRest) {
  for (const KernelTable* table : SupportedKernelTables()) {
    const auto rows = static_cast<size_t>(table->max_rows);
    Rng rng(2);
    auto p = NormalFloats(static_cast<int64_t>(rows * kWidth), rng), d = NormalFloats(static_cast<int64_t>(rows * kWidth), rng);
    const auto lse = NormalFloats(table->max_rows, rng), delta = NormalFloats(table->max_rows, rng);
    std::vector<int32_t> valid;
    for (size_t r = 0; r < rows; ++r) valid.push_back(static_cast<int32_t>(r == 0 ? 64 : rng.Below(65)));
    const auto s = p, d_p = d;
    for (size_t r = 0; r < rows; ++r)
      for (size_t c = static_cast<size_t>(valid[r]); c < kWidth; ++c) p[r * kWidth + c] = d[r * kWidth + c] = NAN;
    table->softmax_block_backward(table->max_rows, valid.data(), lse.data(), delta.data(), p.data(), d.data());
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < kWidth; ++c) {
        SCOPED_TRACE(fmt::format("{} row {} column {}", table->name, r, c));
        const size_t i = r * kWidth + c;
        if (c >= static_cast<size_t>(valid[r])) {
          EXPECT_EQ(std::bit_cast<uint32_t>(p[i]) | std::bit_cast<uint32_t>(d[i]), 0u);
          continue;
        }
        const double e = std::exp(static_cast<double>(s[i]) - lse[r]), difference = static_cast<double>(d_p[i]) - delta[r];
        const double e_p = (4 + 2 * std::fabs(s[i] - lse[r])) * kEpsF32;
        EXPECT_NEAR(p[i], e, e * e_p);
        EXPECT_NEAR(d[i], e * difference, std::fabs(e * difference) * (e_p + 3 * kEpsF32));
      }
    }
  }
}

}  // namespace
}  // namespace moe::test
