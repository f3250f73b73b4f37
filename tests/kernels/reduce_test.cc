#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/kernels/cpu/kernel_table.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/reference/bounded.h"
#include "testing/shapes.h"

namespace moe::test {
namespace {

std::vector<int64_t> Lengths() {
  std::vector<int64_t> lengths(kSizes.begin(), kSizes.end());
  lengths.insert(lengths.end(), {255, 256, 1000, 4095, 4096, 4097, 10000});
  return lengths;
}

TEST(Reduce, DotMaxAndSumSquaresMatchTheTwin) {
  Rng rng(1);
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const int64_t n : Lengths()) {
      SCOPED_TRACE(fmt::format("{} n {}", table->name, n));
      const auto x = NormalFloats(n, rng), y = NormalFloats(n, rng);
      double dot = 0, abs = 0, squares = 0;
      float max = -INFINITY;
      for (size_t i = 0; i < x.size(); ++i) {
        dot += static_cast<double>(x[i]) * y[i], abs += std::fabs(static_cast<double>(x[i]) * y[i]);
        squares += static_cast<double>(x[i]) * x[i];
        max = std::max(max, x[i]);
      }
      ExpectClose(std::vector<float>{table->dot(x.data(), y.data(), n)}, std::vector<double>{dot}, DotTolerance(n, abs));
      const Halves half(x);
      double half_dot = 0, half_abs = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double product = static_cast<double>(half.f32[i]) * y[i];
        half_dot += product, half_abs += std::fabs(product);
      }
      ExpectClose(std::vector<float>{table->dot_bf16(half.bf16.data(), y.data(), n)}, std::vector<double>{half_dot},
                  DotTolerance(n, half_abs));
      ExpectClose(std::vector<double>{table->sum_squares(x.data(), n)}, std::vector<double>{squares},
                  DotTolerance(std::min<int64_t>(n, 4096), squares));
      EXPECT_EQ(table->max(x.data(), n), max);
    }
  }
}

// Any number of rows, of both types, upon nothing, upon a base and upon y itself; nothing beyond the last column is written.
TEST(Combine, AddsGatedRowsInOrder) {
  Rng rng(2);
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const int64_t n : Lengths()) {
      for (const int64_t count : {0, 1, 2, 8, 13}) {
        SCOPED_TRACE(fmt::format("{} n {} rows {}", table->name, n, count));
        const auto last = static_cast<size_t>(n), rows = static_cast<size_t>(count);
        const auto gate = NormalFloats(count, rng), base = NormalFloats(n, rng);
        std::vector<Halves> values;
        std::vector<const Bf16*> in_bf16;
        std::vector<const float*> in_f32;
        for (size_t r = 0; r < rows; ++r) values.emplace_back(NormalFloats(n, rng));
        for (const Halves& row : values) in_bf16.push_back(row.bf16.data()), in_f32.push_back(row.f32.data());
        for (const bool with_base : {false, true}) {
          std::vector<double> want, bounds;
          for (size_t i = 0; i < last; ++i) {
            Bounded sum(with_base ? base[i] : 0.0);
            for (size_t r = 0; r < rows; ++r) sum += Bounded(gate[r]) * Bounded(values[r].f32[i]);
            want.push_back(sum.value), bounds.push_back(sum.error);
          }
          std::vector<float> y(last + 1, -7.0f), in_place = base, of_half = y;
          in_place.push_back(-7.0f);
          const float* from = with_base ? base.data() : nullptr;
          table->combine_f32(count, gate.data(), in_f32.data(), from, n, y.data());
          table->combine_bf16(count, gate.data(), in_bf16.data(), from, n, of_half.data());
          EXPECT_EQ(y[last], -7.0f);
          ExpectSameBits(of_half, y);
          if (with_base) {
            table->combine_f32(count, gate.data(), in_f32.data(), in_place.data(), n, in_place.data());
            ExpectSameBits(in_place, y);
          }
          y.pop_back();
          ExpectClose(y, want, bounds);
        }
      }
    }
  }
}

// Upon the base, first to last: large values that cancel tell any other order.
TEST(Combine, TheOrderIsTheSlots) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const int64_t n : {1, 5, 64, 200}) {
      const auto size = static_cast<size_t>(n);
      const auto filled = [&](float value) { return Halves(std::vector<float>(size, value)); };
      const std::vector<Halves> values = {filled(0x1p30f), filled(1), filled(-0x1p30f), filled(3)};
      std::vector<const float*> in_f32;
      std::vector<const Bf16*> in_bf16;
      for (const Halves& row : values) in_f32.push_back(row.f32.data()), in_bf16.push_back(row.bf16.data());
      const std::vector<float> gate(4, 1.0f), base(size, 5.0f);
      const std::vector<float> want(size, 3.0f);  // 5 and 1 vanish beside 2^30, 3 does not
      std::vector<float> y(size), in_place = base, of_half = base;
      table->combine_f32(4, gate.data(), in_f32.data(), base.data(), n, y.data());
      table->combine_f32(4, gate.data(), in_f32.data(), in_place.data(), n, in_place.data());
      table->combine_bf16(4, gate.data(), in_bf16.data(), of_half.data(), n, of_half.data());
      EXPECT_EQ(y, want);
      EXPECT_EQ(in_place, want);
      EXPECT_EQ(of_half, want);
    }
  }
}

TEST(Reduce, MaxFindsItsValueAtEveryPlace) {
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const int64_t n : {1, 15, 16, 17, 40}) {
      for (int64_t i = 0; i < n; ++i) {
        std::vector<float> x(static_cast<size_t>(n), -5.0f);
        x[static_cast<size_t>(i)] = -1.0f;
        EXPECT_EQ(table->max(x.data(), n), -1.0f) << table->name << " n " << n << " at " << i;
      }
    }
    const std::vector<float> none(20, -INFINITY);
    EXPECT_EQ(table->max(none.data(), 20), -INFINITY);
    EXPECT_EQ(table->max(nullptr, 0), -INFINITY);
  }
}

TEST(Elementwise, ScaleAndAddTouchNothingElse) {
  Rng rng(3);
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const int64_t n : Lengths()) {
      SCOPED_TRACE(fmt::format("{} n {}", table->name, n));
      const auto x = NormalFloats(n, rng);
      const auto y = NormalFloats(n + 1, rng);
      const auto last = static_cast<size_t>(n);
      auto scaled = y, sum = y;
      table->scale(-1.5f, n, scaled.data());
      table->add(x.data(), n, sum.data());
      for (size_t i = 0; i < last; ++i) {
        EXPECT_EQ(scaled[i], -1.5f * y[i]);
        EXPECT_EQ(sum[i], y[i] + x[i]);
      }
      EXPECT_EQ(scaled[last], y[last]);
      EXPECT_EQ(sum[last], y[last]);
    }
  }
}

}  // namespace
}  // namespace moe::test
