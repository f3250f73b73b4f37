#include "moe/ops/packed_parameter.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/reference/gemm.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

std::vector<double> Bounds(const ReferenceProduct& p, int64_t K) {
  std::vector<double> bounds;
  for (const double sum_abs : p.sum_abs) bounds.push_back(DotTolerance(K, sum_abs).absolute);
  return bounds;
}

TEST(PackedParameter, EveryMatrixMultipliesForwardAndBackward) {
  for (const DType format : {DType::kF32, DType::kBf16}) {
    for (const bool stacked : {false, true}) {
      SCOPED_TRACE(fmt::format("{} stacked {}", Name(format), stacked));
      const bool bf16 = format == DType::kBf16;
      const int64_t E = stacked ? 3 : 1, N = 37, K = 50, T = 9;
      TestContext t(2);
      Rng rng(1);
      ParameterStore store;
      Parameter& parameter =
          store.Add("w", stacked ? std::vector<int64_t>{E, N, K} : std::vector<int64_t>{N, K}, true, stacked ? E : 0);
      FillNormal(parameter.value.span(), rng);
      store.AllocateGradients();
      PackedParameter w(&parameter, format);
      EXPECT_EQ(w.count(), E);
      EXPECT_EQ(w.N(), N);
      EXPECT_EQ(w.K(), K);
      w.Repack(true, t.ctx);
      FencedMatrix x(T, K), d_y(T, N);
      FillNormal(x.view(), rng), FillNormal(d_y.view(), rng);
      for (int64_t e = 0; e < E; ++e) {
        const MatView<const float> master(parameter.value.data() + e * N * K, N, K);
        FencedMatrix y(T, N), d_x(T, K);
        Gemm({.a = x.view(), .weight = &w.forward(e), .c = y.view()}, t.ctx);
        Gemm({.a = d_y.view(), .weight = &w.transposed(e), .c = d_x.view()}, t.ctx);
        const auto want_y = Multiply(
            T, N, K, [&](int64_t m, int64_t k) { return AsInput(x.view()(m, k), bf16); },
            [&](int64_t n, int64_t k) { return AsInput(master(n, k), bf16); });
        const auto want_d_x = Multiply(
            T, K, N, [&](int64_t m, int64_t n) { return AsInput(d_y.view()(m, n), bf16); },
            [&](int64_t k, int64_t n) { return AsInput(master(n, k), bf16); });
        ExpectClose(y.dense(), want_y.value, Bounds(want_y, K));
        ExpectClose(d_x.dense(), want_d_x.value, Bounds(want_d_x, N));
      }
      if (stacked) continue;
      // The same through Linear, which also adds to the gradient.
      FencedMatrix y(T, N), d_x(T, K);
      LinearForward(w, x.view(), y.view(), Epilogue::kStore, t.ctx);
      LinearBackward(w, x.view(), d_y.view(), d_x.view(), Epilogue::kStore, t.ctx);
      LinearBackward(w, x.view(), d_y.view(), {}, Epilogue::kStore, t.ctx);
      auto want_d_w = Multiply(
          N, K, T, [&](int64_t n, int64_t m) { return AsInput(d_y.view()(m, n), bf16); },
          [&](int64_t k, int64_t m) { return AsInput(x.view()(m, k), bf16); });
      for (double& v : want_d_w.value) v *= 2;
      for (double& v : want_d_w.sum_abs) v *= 2;
      ExpectClose(w.grad(), want_d_w.value, Bounds(want_d_w, 2 * T));
      EXPECT_TRUE(y.Intact() && d_x.Intact());
    }
  }
}

TEST(PackedParameter, RepackingFollowsTheMasterIntoTheSameStorage) {
  TestContext t;
  ParameterStore store;
  Parameter& parameter = store.Add("w", {2, 3}, true);
  PackedParameter w(&parameter, DType::kF32);
  w.Repack(false, t.ctx);
  const std::byte* data = w.forward().data;
  for (float& x : parameter.value.span()) x = 5;
  w.Repack(false, t.ctx);
  EXPECT_EQ(w.forward().data, data);
  std::vector<float> x = {1, 2, 3}, y(2);
  LinearForward(w, MatView<float>(x.data(), 1, 3), {y.data(), 1, 2}, Epilogue::kStore, t.ctx);
  EXPECT_EQ(y, (std::vector<float>{30, 30}));
  w.DropMaster();
  EXPECT_TRUE(parameter.value.empty());
  LinearForward(w, MatView<float>(x.data(), 1, 3), {y.data(), 1, 2}, Epilogue::kAccumulate, t.ctx);
  EXPECT_EQ(y, (std::vector<float>{60, 60}));
}

TEST(PackedParameter, SharesStorageThatSomebodyElseOwns) {
  ParameterStore store;
  PackedParameter a(&store.Add("a", {4, 32, 8}, true), DType::kBf16), b(&store.Add("b", {4, 32, 8}, true), DType::kBf16);
  EXPECT_EQ(a.StorageBytes(false), 4 * 32 * 8 * 2);
  EXPECT_EQ(a.StorageBytes(true), 4 * 32 * 8 * 2 + 4 * 32 * 32 * 2);  // 8 outputs are padded to a panel
  const auto size = static_cast<size_t>(a.StorageBytes(false));
  const AlignedBytes bytes = AllocateAligned(size);
  a.UseStorage({bytes.get(), size}, false), b.UseStorage({bytes.get(), size}, false);
  EXPECT_EQ(a.forward(3).data, b.forward(3).data);
  EXPECT_EQ(a.forward(0).data, bytes.get());
  EXPECT_EQ(a.forward(1).data, bytes.get() + size / 4);
}

TEST(PackedParameter, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  ParameterStore store;
  EXPECT_THROW(PackedParameter(&store.Add("vector", {4}, false), DType::kF32), CheckError);
  PackedParameter w(&store.Add("w", {4, 4}, true), DType::kF32);
  EXPECT_THROW(w.grad(), CheckError);  // none allocated
  std::byte few[16];
  EXPECT_THROW(w.UseStorage(few, false), CheckError);
  const auto size = static_cast<size_t>(w.StorageBytes(false));
  const AlignedBytes bytes = AllocateAligned(size + kAlignment);
  EXPECT_NO_THROW(w.UseStorage({bytes.get(), size}, false));
  EXPECT_THROW(w.UseStorage({bytes.get() + 4, size}, false), CheckError);
  EXPECT_THROW(w.UseStorage({bytes.get() + kAlignment / 2, size}, false), CheckError);
  w.DropMaster();
  EXPECT_THROW(w.Repack(false, t.ctx), CheckError);
}

}  // namespace
}  // namespace moe::test
