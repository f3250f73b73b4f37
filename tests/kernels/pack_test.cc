#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "moe/base/arena.h"
#include "moe/kernels/cpu/kernel_table.h"
#include "moe/tensor/packed_weight.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/shapes.h"

namespace moe::test {
namespace {

const std::vector<float> kSpecials = {0.0f,
                                      -0.0f,
                                      1.0f,
                                      -1.0f,
                                      INFINITY,
                                      -INFINITY,
                                      NAN,
                                      -NAN,
                                      std::numeric_limits<float>::max(),
                                      std::numeric_limits<float>::min(),
                                      std::numeric_limits<float>::denorm_min(),
                                      1e-40f,
                                      3.3895314e38f,                      // the largest bf16
                                      3.3961776e38f,                      // halfway to the next: rounds to infinity
                                      1.00390625f,                        // halfway between two bf16: to even, down
                                      1.01171875f,                        // and up
                                      std::bit_cast<float>(0x7f800001u),  // signalling NaNs, whose upper half is infinity
                                      std::bit_cast<float>(0xff800001u),
                                      std::bit_cast<float>(0x3f808001u)};  // just above halfway

// A matrix w(n, k) = data[n*n_stride + k*k_stride] with NaN in all gaps, and not an element more than it needs.
struct Matrix {
  int64_t n_stride, k_stride;
  std::vector<float> data;
  Matrix(int64_t num_n, int64_t K, bool transposed, int64_t gap, Rng& rng)
      : n_stride(transposed ? 1 : K + gap), k_stride(transposed ? num_n + gap : 1) {
    if (num_n > 0 && K > 0) data.assign(static_cast<size_t>((num_n - 1) * n_stride + (K - 1) * k_stride + 1), NAN);
    for (int64_t n = 0; n < num_n; ++n)
      for (int64_t k = 0; k < K; ++k) data[At(n, k)] = static_cast<float>(rng.Normal());
  }
  size_t At(int64_t n, int64_t k) const { return static_cast<size_t>(n * n_stride + k * k_stride); }
};

// Below the normal range a table may give 0 of the same sign, as the CPU's own conversion does.
bool IsTiny(float x) {
  return x != 0 && std::fabs(x) < std::numeric_limits<float>::min();
}
void ExpectRounded(uint16_t got, float x) {
  if (IsTiny(x) && (got & 0x7fff) == 0) {
    EXPECT_EQ(got >> 15, std::signbit(x)) << x;
  } else {
    EXPECT_EQ(got, ToBf16(x).bits) << x;
  }
}

// A pair with 0 for each half that is below the normal range, of whatever sign.
uint32_t WithoutTiny(uint32_t pair) {
  const uint32_t low = (pair & 0x7f80u) != 0 || (pair & 0x7fffu) == 0 ? pair & 0xffffu : 0;
  const uint32_t high = (pair & 0x7f800000u) != 0 || (pair & 0x7fff0000u) == 0 ? pair & 0xffff0000u : 0;
  return low | high;
}

TEST(Pack, HoldsEveryValueAtItsPlaceAndZerosElsewhere) {
  for (const KernelTable* table : SupportedKernelTables()) {
    Rng rng(1);
    for (const int64_t num_n : {1, 7, 15, 16, 17, 31, 32}) {
      for (const int64_t K : {0, 1, 2, 3, 6, 15, 16, 17, 33, 64, 127, 128, 129, 131, 300}) {
        for (const bool transposed : {false, true}) {
          SCOPED_TRACE(fmt::format("{} N {} K {} transposed {}", table->name, num_n, K, transposed));
          Matrix w(num_n, K, transposed, 3, rng);
          for (size_t i = 0; i < kSpecials.size() && static_cast<int64_t>(i) < K; ++i)
            w.data[w.At(0, static_cast<int64_t>(i))] = kSpecials[i];
          const float fence = 1234.5f;
          std::vector<float> f32(static_cast<size_t>(K * 32 + 1), fence), want_f32(static_cast<size_t>(K * 32 + 1), 0.0f);
          const int64_t pairs = (K + 1) / 2;
          std::vector<uint32_t> bf16(static_cast<size_t>(pairs * 32 + 1), 77u), want_bf16(bf16.size(), 0u);
          want_f32.back() = fence, want_bf16.back() = 77u;
          for (int64_t n = 0; n < num_n; ++n) {
            for (int64_t k = 0; k < K; ++k) {
              const float x = w.data[w.At(n, k)];
              want_f32[static_cast<size_t>(k * 32 + n)] = x;
              if (!IsTiny(x)) {
                want_bf16[static_cast<size_t>(k / 2 * 32 + n)] |= static_cast<uint32_t>(ToBf16(x).bits) << (k % 2 * 16);
              }
            }
          }
          table->pack_f32(w.data.data(), w.n_stride, w.k_stride, num_n, K, f32.data());
          table->pack_bf16(w.data.data(), w.n_stride, w.k_stride, num_n, K, bf16.data());
          ExpectSameBits(f32, want_f32);
          EXPECT_EQ(bf16.back(), 77u);
          for (uint32_t& pair : bf16) pair = WithoutTiny(pair);
          want_bf16.back() = bf16.back();
          EXPECT_EQ(bf16, want_bf16);
        }
      }
    }
  }
}

TEST(Pack, BothAtOnceIsEitherAlone) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const int64_t cols : {32, 64, 160}) {
      for (const bool stream : {false, true}) {
        SCOPED_TRACE(fmt::format("{} columns {} stream {}", table->name, cols, stream));
        Rng rng(2);
        Matrix w(32, cols, false, 5, rng);
        for (size_t i = 0; i < kSpecials.size(); ++i) {
          w.data[w.At(0, static_cast<int64_t>(i))] = kSpecials[i];
          w.data[w.At(static_cast<int64_t>(i), 31)] = kSpecials[i];
        }
        const auto check = [&]<class T>(T, auto pack_both, auto pack_one, int64_t per_pair) {
          // A gap of a panel between the transposed panels: they belong to a higher matrix.
          const int64_t panel = 32 * 32 / per_pair, panels = cols / 32, size = cols * 32 / per_pair;
          struct alignas(64) Line {
            T elements[64 / sizeof(T)];
          };
          const auto make = [](int64_t elements) {
            return std::vector<Line>(static_cast<size_t>(elements) * sizeof(T) / 64, [] {
              Line line;
              std::fill_n(line.elements, 64 / sizeof(T), T{77});
              return line;
            }());
          };
          auto forward = make(size), transposed = make(2 * size), want_forward = make(size), want_transposed = make(2 * size);
          const auto at = [](std::vector<Line>& lines, int64_t i) { return lines[0].elements + i; };
          pack_both(w.data.data(), w.n_stride, cols, stream, at(forward, 0), at(transposed, 0), 2 * panel);
          pack_one(w.data.data(), w.n_stride, 1, 32, cols, at(want_forward, 0));
          for (int64_t p = 0; p < panels; ++p)
            pack_one(w.data.data() + 32 * p, 1, w.n_stride, 32, 32, at(want_transposed, 2 * p * panel));
          EXPECT_EQ(std::memcmp(forward.data(), want_forward.data(), forward.size() * 64), 0);
          EXPECT_EQ(std::memcmp(transposed.data(), want_transposed.data(), transposed.size() * 64), 0);
        };
        check(0.0f, table->pack_both_f32, table->pack_f32, 1);
        check(uint32_t{0}, table->pack_both_bf16, table->pack_bf16, 2);
      }
    }
  }
}

TEST(ToBf16, EveryTableRoundsAsTheDefinition) {
  Rng rng(2);
  for (const int64_t n : kSizes) {
    std::vector<float> x;
    for (int64_t i = 0; i < n; ++i) {
      x.push_back(i < static_cast<int64_t>(kSpecials.size()) ? kSpecials[static_cast<size_t>(i)]
                                                             : std::bit_cast<float>(static_cast<uint32_t>(rng.Next())));
    }
    for (const KernelTable* table : SupportedKernelTables()) {
      SCOPED_TRACE(fmt::format("{} n {}", table->name, n));
      std::vector<Bf16> out(x.size() + 1, Bf16{77});
      table->to_bf16(x.data(), n, out.data());
      EXPECT_EQ(out.back().bits, 77);
      for (size_t i = 0; i < x.size(); ++i) ExpectRounded(out[i].bits, x[i]);
    }
  }
}

// Every width up to a panel, at strides of its own; past the caches too, where a row is a whole line.
TEST(ToBf16, RowsOfATileGoWhereTheyBelong) {
  Rng rng(3);
  const AlignedBytes storage = AllocateAligned(kMaxTileRows * 96 * sizeof(Bf16));
  const auto out = reinterpret_cast<Bf16*>(storage.get());
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const int64_t rows : {int64_t{0}, int64_t{1}, int64_t{5}, kMaxTileRows}) {
      for (int64_t n = 0; n <= kPanel; ++n) {
        for (const bool stream : {false, true}) {
          if (stream && n != kPanel) continue;
          SCOPED_TRACE(fmt::format("{} rows {} n {} stream {}", table->name, rows, n, stream));
          const auto x = NormalFloats(kMaxTileRows * 40, rng);
          std::fill_n(out, kMaxTileRows * 96, Bf16{77});
          table->round_rows(rows, n, x.data(), 40, out, 96, stream);
          table->stream_fence();
          for (int64_t r = 0; r < kMaxTileRows; ++r) {
            for (int64_t i = 0; i < 96; ++i) {
              const Bf16 want = r < rows && i < n ? ToBf16(x[static_cast<size_t>(r * 40 + i)]) : Bf16{77};
              ASSERT_EQ(out[r * 96 + i].bits, want.bits) << r << " " << i;
            }
          }
        }
      }
    }
  }
}

TEST(Interleave, PairsTwoRowsOrOneWithZeros) {
  Rng rng(3);
  for (const int64_t n : kSizes) {
    auto x0 = NormalFloats(n, rng), x1 = NormalFloats(n, rng);
    for (size_t i = 0; i < std::min(x0.size(), kSpecials.size()); ++i)
      x0[i] = kSpecials[i], x1[x1.size() - 1 - i] = kSpecials[i];
    for (const KernelTable* table : SupportedKernelTables()) {
      SCOPED_TRACE(fmt::format("{} n {}", table->name, n));
      std::vector<uint32_t> two(x0.size() + 1, 77), one(x0.size() + 1, 77);
      table->interleave_bf16(x0.data(), x1.data(), n, two.data());
      table->interleave_bf16(x0.data(), nullptr, n, one.data());
      EXPECT_EQ(two.back(), 77u);
      EXPECT_EQ(one.back(), 77u);
      for (size_t i = 0; i < x0.size(); ++i) {
        ExpectRounded(static_cast<uint16_t>(two[i]), x0[i]), ExpectRounded(static_cast<uint16_t>(two[i] >> 16), x1[i]);
        ExpectRounded(static_cast<uint16_t>(one[i]), x0[i]);
        EXPECT_EQ(one[i] >> 16, 0u);
      }
    }
  }
}

// Every step of a contraction in groups of columns, each word where it belongs, zeros behind the last.
TEST(Spread, CutsStepsIntoGroupsOfColumns) {
  Rng rng(4);
  enum Kind { kFloats, kRounded, kPairs };
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const Kind kind : {kFloats, kRounded, kPairs}) {
      for (const bool panels : {false, true}) {
        for (const bool two : {false, true}) {
          for (const int64_t n : {1, 5, 6, 12, 15, 16, 17, 31, 32, 33, 64, 100}) {
            SCOPED_TRACE(fmt::format("{} kind {} panels {} two {} n {}", table->name, static_cast<int>(kind), panels, two, n));
            const int64_t width = panels ? 32 : table->max_rows, groups = (n + width - 1) / width, steps = 3;
            const int64_t stride = steps * width + kMaxTileRows;
            const auto x0 = NormalFloats(n, rng), x1 = NormalFloats(n, rng);
            std::vector<Bf16> b0, b1;
            for (int64_t i = 0; i < n; ++i)
              b0.push_back(ToBf16(x0[static_cast<size_t>(i)])), b1.push_back(ToBf16(x1[static_cast<size_t>(i)]));
            std::vector<uint32_t> out(static_cast<size_t>(groups * stride + 1), 77u);
            for (int64_t s = 0; s < steps; ++s) {
              uint32_t* to = out.data() + s * width;
              if (kind == kFloats) table->spread_f32(x0.data(), n, panels, stride, to);
              if (kind == kRounded) table->spread_rounded(x0.data(), two ? x1.data() : nullptr, n, panels, stride, to);
              if (kind == kPairs) table->spread_bf16(b0.data(), two ? b1.data() : nullptr, n, panels, stride, to);
            }
            EXPECT_EQ(out.back(), 77u);
            for (int64_t s = 0; s < steps; ++s) {
              for (int64_t i = 0; i < groups * width; ++i) {
                const auto at = static_cast<size_t>(i);
                uint32_t want = 0;
                if (i < n) {
                  want = kind == kFloats ? std::bit_cast<uint32_t>(x0[at])
                                         : b0[at].bits | (two ? static_cast<uint32_t>(b1[at].bits) << 16 : 0u);
                }
                ASSERT_EQ(out[static_cast<size_t>(i / width * stride + s * width + i % width)], want)
                    << "step " << s << " word " << i;
              }
            }
          }
        }
      }
    }
  }
}

TEST(Interleave, PutsTheRowsOfATileBesideEachOther) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (int64_t rows = 1; rows <= table->max_rows; ++rows) {
      for (const int64_t K : {0, 1, 3, 4, 15, 16, 17, 33, 100}) {
        SCOPED_TRACE(fmt::format("{} rows {} K {}", table->name, rows, K));
        std::vector<std::vector<uint32_t>> words(static_cast<size_t>(rows));
        std::vector<const uint32_t*> a;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t k = 0; k < K; ++k) words[static_cast<size_t>(r)].push_back(static_cast<uint32_t>(1000 * r + k));
          a.push_back(words[static_cast<size_t>(r)].data());
        }
        std::vector<uint32_t> out(static_cast<size_t>(K * table->max_rows + kMaxTileRows + 1), 0xffffffffu);
        table->interleave_tile(rows, K, a.data(), out.data());
        for (int64_t k = 0; k < K; ++k) {
          for (int64_t r = 0; r < rows; ++r)
            ASSERT_EQ(out[static_cast<size_t>(k * table->max_rows + r)], static_cast<uint32_t>(1000 * r + k));
        }
        EXPECT_EQ(out.back(), 0xffffffffu) << "wrote further than promised";
      }
    }
  }
}

}  // namespace
}  // namespace moe::test
