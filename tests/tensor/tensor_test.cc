#include "moe/tensor/tensor.h"

#include <gtest/gtest.h>

#include <numeric>
#include <type_traits>
#include <vector>

#include "moe/tensor/dtype.h"
#include "moe/tensor/packed_weight.h"
#include "moe/tensor/parameter_store.h"
#include "testing/matchers.h"
#include "testing/shapes.h"

namespace moe {
namespace {

using test::CheckError;
using test::ThrowingChecks;

TEST(MatView, AddressesRowsByStride) {
  std::vector<float> values(20);
  std::iota(values.begin(), values.end(), 0.0f);
  const MatView<float> m(values.data(), 4, 3, 5);
  EXPECT_EQ(m(0, 0), 0);
  EXPECT_EQ(m(2, 1), 11);
  EXPECT_EQ(m.row(3), values.data() + 15);
  EXPECT_EQ(m.row_span(1).size(), 3u);
  EXPECT_EQ(m.size(), 12);
  const auto rows = m.Rows(1, 2);
  EXPECT_EQ(test::Doubles(rows), (std::vector<double>{5, 6, 7, 10, 11, 12}));
  const auto cols = m.Cols(1, 2);
  EXPECT_EQ(test::Doubles(cols.Rows(2, 2)), (std::vector<double>{11, 12, 16, 17}));
  m(3, 2) = -1;
  EXPECT_EQ(values[17], -1);
}

TEST(MatView, EmptyMeansNoMemoryAndZeroRowsAreFine) {
  EXPECT_TRUE(MatView<float>().empty());
  std::vector<float> values(7);
  const MatView<float> none(values.data(), 0, 7);
  EXPECT_FALSE(none.empty());
  EXPECT_EQ(none.size(), 0);
  EXPECT_EQ(none.Rows(0, 0).rows, 0);
  EXPECT_EQ(none.Cols(7, 0).cols, 0);
}

TEST(MatView, BecomesConstButNeverBack) {
  static_assert(std::is_convertible_v<MatView<float>, MatView<const float>>);
  static_assert(!std::is_convertible_v<MatView<const float>, MatView<float>>);
  static_assert(!std::is_convertible_v<MatView<double>, MatView<const float>>);
}

TEST(MatView, DebugBuildsCheckEveryIndex) {
#ifdef NDEBUG
  GTEST_SKIP() << "release build";
#else
  const ThrowingChecks guard;
  std::vector<float> values(6);
  const MatView<float> m(values.data(), 2, 3);
  EXPECT_THROW(m.row(2), CheckError);
  EXPECT_THROW(m.row(-1), CheckError);
  EXPECT_THROW(m(0, 3), CheckError);
  EXPECT_THROW(m.Rows(1, 2), CheckError);
  EXPECT_THROW(m.Cols(2, 2), CheckError);
  EXPECT_THROW(MatView<float>(values.data(), 1, 4, 3), CheckError);
#endif
}

TEST(Tensor, StartsAsAlignedZeros) {
  for (const int64_t n : test::kSizes) {
    const Tensor t({n, 3});
    EXPECT_EQ(t.size(), 3 * n);
    EXPECT_FALSE(t.empty());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data()) % kAlignment, 0u);
    for (const float x : t.span()) EXPECT_EQ(x, 0);
  }
  EXPECT_TRUE(Tensor().empty());
  EXPECT_EQ(Tensor().size(), 0);
}

TEST(Tensor, IsSeenAsAMatrixAndBySlices) {
  const Tensor t({2, 3, 4});
  std::iota(t.span().begin(), t.span().end(), 0.0f);
  EXPECT_EQ(t.mat().rows, 6);
  EXPECT_EQ(t.mat().cols, 4);
  EXPECT_EQ(t.mat()(5, 3), 23);
  EXPECT_EQ(t.slice(1).rows, 3);
  EXPECT_EQ(t.slice(1)(0, 0), 12);
  const Tensor vector({5});
  EXPECT_EQ(vector.mat().rows, 1);
  EXPECT_EQ(vector.mat().cols, 5);
  const ThrowingChecks guard;
  EXPECT_THROW(t.slice(2), CheckError);
  EXPECT_THROW(t.slice(-1), CheckError);
  EXPECT_THROW(Tensor({2, -1}), CheckError);
}

TEST(Tensor, MovesAndLeavesNothingBehind) {
  static_assert(!std::is_copy_constructible_v<Tensor> && !std::is_copy_assignable_v<Tensor>);
  Tensor a({2, 2});
  a.data()[3] = 5;
  const float* address = a.data();
  Tensor b(std::move(a));
  EXPECT_EQ(b.data(), address);
  EXPECT_EQ(b.mat()(1, 1), 5);
  EXPECT_TRUE(a.empty());  // NOLINT(bugprone-use-after-move): what is left is the promise
  EXPECT_EQ(a.size(), 0);
  EXPECT_TRUE(a.span().empty());
  a = std::move(b);
  EXPECT_EQ(a.data(), address);
  EXPECT_EQ(a.shape(), (std::vector<int64_t>{2, 2}));
}

TEST(ParameterStore, KeepsOrderAndAddresses) {
  ParameterStore store;
  std::vector<Parameter*> added;
  for (int i = 0; i < 100; ++i) added.push_back(&store.Add("p" + std::to_string(i), {i, 2}, i % 2 == 0));
  for (size_t i = 0; i < 100; ++i) {
    EXPECT_EQ(store.Find("p" + std::to_string(i)), added[i]);
    EXPECT_EQ(&store.all()[i], added[i]);
    EXPECT_EQ(added[i]->decay, i % 2 == 0);
    EXPECT_EQ(added[i]->value.shape(), (std::vector<int64_t>{static_cast<int64_t>(i), 2}));
  }
  EXPECT_EQ(store.Find("q"), nullptr);
  EXPECT_EQ(store.num_values(), 2 * 99 * 100 / 2);
}

TEST(ParameterStore, GradientsComeOnDemand) {
  ParameterStore store;
  Parameter& a = store.Add("a", {2, 3}, true, 2);
  store.Add("nothing", {0}, false);
  EXPECT_EQ(a.experts, 2);
  EXPECT_TRUE(a.grad.empty());
  store.ZeroGradients();  // none: nothing to do
  store.AllocateGradients();
  ASSERT_EQ(a.grad.shape(), a.value.shape());
  a.grad.data()[5] = 1;
  store.AllocateGradients();  // keeps what is there
  EXPECT_EQ(a.grad.data()[5], 1);
  store.ZeroGradients();
  for (const float x : a.grad.span()) EXPECT_EQ(x, 0);
}

TEST(ParameterStore, ANameTwiceIsACheck) {
  const ThrowingChecks guard;
  ParameterStore store;
  store.Add("a", {1}, true);
  EXPECT_THROW(store.Add("a", {1}, true), CheckError);
}

TEST(DType, SizesAndNames) {
  for (const auto& [dtype, bytes, name] : {std::tuple{DType::kF32, 4, "f32"},
                                           {DType::kBf16, 2, "bf16"},
                                           {DType::kF16, 2, "f16"},
                                           {DType::kI64, 8, "i64"},
                                           {DType::kI32, 4, "i32"},
                                           {DType::kU8, 1, "u8"}}) {
    EXPECT_EQ(SizeOf(dtype), bytes);
    EXPECT_EQ(Name(dtype), name);
  }
}

TEST(PackedWeight, BytesPadColumnsToThePanelAndBf16RowsToPairs) {
  EXPECT_EQ(PackedWeight::Bytes(DType::kF32, 32, 5), 32 * 5 * 4);
  EXPECT_EQ(PackedWeight::Bytes(DType::kF32, 33, 5), 64 * 5 * 4);
  EXPECT_EQ(PackedWeight::Bytes(DType::kBf16, 32, 5), 32 * 6 * 2);
  EXPECT_EQ(PackedWeight::Bytes(DType::kBf16, 1, 4), 32 * 4 * 2);
  EXPECT_EQ(PackedWeight::Bytes(DType::kF32, 0, 4), 0);
  EXPECT_EQ(PackedWeight::Bytes(DType::kF32, 4, 0), 0);
  const PackedWeight weight{.format = DType::kBf16, .N = 70, .K = 7};
  EXPECT_TRUE(weight.empty());
  EXPECT_EQ(weight.num_panels(), 3);
  EXPECT_EQ(weight.bytes(), 96 * 8 * 2);
}

}  // namespace
}  // namespace moe
