// Products and weight gradients with all their data, held against the double twin.
#pragma once

#include <cmath>
#include <vector>

#include "moe/ops/gemm.h"
#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/reference/gemm.h"
#include "testing/reference/rows.h"
#include "testing/shapes.h"
#include "testing/test_context.h"

namespace moe::test {

inline constexpr DType kFormats[] = {DType::kF32, DType::kBf16};

// A product with all its data: a [source_rows,K] between NaNs, rows chosen from it or not, w [N,K] packed in either format.
struct Product {
  int64_t M, N, K;
  DType format;
  Epilogue epilogue;
  FencedMatrix a, w, c, pre;
  std::vector<int32_t> rows;
  AlignedBytes bytes;
  PackedWeight packed;
  std::vector<float> before;  // what c holds when it is added to

  struct Options {
    DType format = DType::kF32;
    Epilogue epilogue = Epilogue::kStore;
    bool gather = false;
    bool keep_pre = false;
    int64_t gap = 3;  // between rows
  };
  Product(GemmShape s, const Options& o, Rng& rng, ExecContext& ctx)
      : M(s.M),
        N(s.N),
        K(s.K),
        format(o.format),
        epilogue(o.epilogue),
        a(o.gather ? s.M / 2 + 3 : s.M, s.K, o.gap),
        w(s.N, s.K, o.gap),
        c(s.M, o.epilogue == Epilogue::kSwiglu ? s.N / 2 : s.N, o.gap),
        pre(o.keep_pre ? s.M : 0, o.keep_pre ? s.N : 0, o.gap) {
    FillNormal(a.view(), rng), FillNormal(w.view(), rng);
    if (o.gather) rows = RandomInts(M, a.view().rows, rng);
    const auto size = static_cast<size_t>(PackedBytes(format, N, K, PackSide::kForward));
    bytes = AllocateAligned(size);
    packed = Pack(w.view(), format, PackSide::kForward, {bytes.get(), size}, ctx);
    if (epilogue == Epilogue::kAccumulate) {
      FillNormal(c.view(), rng);
      before = c.dense();
    }
  }
  GemmProblem problem() {
    GemmProblem p{.a = a.view(), .a_rows = rows, .weight = &packed, .epilogue = epilogue, .c = c.view()};
    if (pre.view().rows > 0) p.pre_activation = pre.view();
    return p;
  }
  // A copy of c as it was, to run again into.
  void Refill() {
    c = FencedMatrix(c.view().rows, c.view().cols, c.view().stride - c.view().cols);
    if (!before.empty()) c.Fill(before);
  }
  void Expect() const {
    const bool bf16 = format == DType::kBf16;
    const auto row = [&](int64_t m) { return rows.empty() ? m : rows[static_cast<size_t>(m)]; };
    auto want = Multiply(
        M, N, K, [&](int64_t m, int64_t k) { return AsInput(a.view()(row(m), k), bf16); },
        [&](int64_t n, int64_t k) { return AsInput(w.view()(n, k), bf16); });
    std::vector<double> bounds;
    for (size_t i = 0; i < want.value.size(); ++i) {
      if (!before.empty()) want.value[i] += before[i], want.sum_abs[i] += std::fabs(before[i]);
      bounds.push_back(DotTolerance(K + 1, want.sum_abs[i]).absolute);
    }
    EXPECT_TRUE(a.Intact() && c.Intact() && pre.Intact());
    if (epilogue != Epilogue::kSwiglu) return ExpectClose(c.dense(), want.value, bounds);
    if (pre.view().rows > 0) ExpectClose(pre.dense(), want.value, bounds);
    // h = silu(gate) up: |silu'| < 1.1, |silu(x)| <= |x|
    std::vector<double> h, h_bounds;
    for (int64_t m = 0; m < M; ++m) {
      const auto begin = want.value.begin() + m * N;
      const std::vector<double> h_row = ReferenceSwiglu(std::vector<double>(begin, begin + N));
      for (int64_t i = 0; i < N / 2; ++i) {
        const auto gate = static_cast<size_t>(m * N + i / 16 * 32 + i % 16), up = gate + 16;
        h.push_back(h_row[static_cast<size_t>(i)]);
        h_bounds.push_back(1.1 * bounds[gate] * (std::fabs(want.value[up]) + bounds[up]) +
                           std::fabs(want.value[gate]) * bounds[up] + 8 * kEpsF32 * std::fabs(h.back()) + 1e-37);
      }
    }
    ExpectClose(c.dense(), h, h_bounds);
  }
};

// A gradient of a weight that is added to what d_w holds.
struct WeightGrad {
  int64_t M, N, K;
  DType format;
  FencedMatrix d_y, x, d_w;
  std::vector<int32_t> rows;
  std::vector<float> before;

  WeightGrad(GemmShape s, DType f, bool gather, Rng& rng, int64_t gap = 3)
      : M(s.M), N(s.N), K(s.K), format(f), d_y(s.M, s.N, gap), x(gather ? s.M / 2 + 3 : s.M, s.K, gap), d_w(s.N, s.K, gap) {
    FillNormal(d_y.view(), rng), FillNormal(x.view(), rng), FillNormal(d_w.view(), rng);
    if (gather) rows = RandomInts(M, x.view().rows, rng);
    before = d_w.dense();
  }
  WeightGradProblem problem() {
    return {.d_y = d_y.view(), .x = x.view(), .x_rows = rows, .d_w = d_w.view(), .format = format};
  }
  void Expect() const {
    const bool bf16 = format == DType::kBf16;
    const auto row = [&](int64_t m) { return rows.empty() ? m : rows[static_cast<size_t>(m)]; };
    auto want = Multiply(
        N, K, M, [&](int64_t n, int64_t m) { return AsInput(d_y.view()(m, n), bf16); },
        [&](int64_t k, int64_t m) { return AsInput(x.view()(row(m), k), bf16); });
    std::vector<double> bounds;
    for (size_t i = 0; i < want.value.size(); ++i) {
      want.value[i] += before[i];
      bounds.push_back(DotTolerance(M + 2, want.sum_abs[i] + std::fabs(before[i])).absolute);
    }
    EXPECT_TRUE(d_y.Intact() && x.Intact() && d_w.Intact());
    ExpectClose(d_w.dense(), want.value, bounds);
    if (M == 0) ExpectSameBits(d_w.dense(), before);
  }
};

}  // namespace moe::test
