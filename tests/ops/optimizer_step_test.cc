#include "moe/ops/optimizer_step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/test_context.h"

namespace moe::test {
namespace {

constexpr AdamwStep kStep{.lr = 0.01f,
                          .beta1 = 0.9f,
                          .beta2 = 0.95f,
                          .epsilon = 1e-8f,
                          .correction1 = 0.19f,
                          .correction2 = 0.0975f,
                          .grad_scale = 0.7f};

// Parameters of these shapes, those of a matrix packed, with all that a step changes.
struct Tensors {
  ParameterStore store;
  std::vector<PackedParameter> packed;
  std::vector<Tensor> m, v;

  Tensors(const std::vector<std::vector<int64_t>>& shapes, DType format, ExecContext& ctx) {
    Rng rng(1);
    packed.reserve(shapes.size());
    for (const auto& shape : shapes) {
      Parameter& p = store.Add(std::to_string(m.size()), shape, true);
      FillNormal(p.value.span(), rng);
      if (shape.size() > 1) packed.emplace_back(&p, format).Repack(true, ctx);
      FillNormal(m.emplace_back(shape).span(), rng);
      for (float& x : v.emplace_back(shape).span()) x = static_cast<float>(rng.Uniform());
    }
    store.AllocateGradients();
    for (Parameter& p : store.all()) FillNormal(p.grad.span(), rng);
  }

  std::vector<AdamwTensor> List() {
    std::vector<AdamwTensor> list;
    size_t i = 0, next_packed = 0;
    for (Parameter& p : store.all()) {
      PackedParameter* packs = p.value.shape().size() > 1 ? &packed[next_packed++] : nullptr;
      list.push_back(
          {.parameter = &p, .packed = packs, .m = m[i].span(), .v = v[i].span(), .weight_decay = i % 2 == 0 ? 0.1f : 0});
      ++i;
    }
    return list;
  }

  // Element by element, then all packs from the masters.
  void StepThenRepack(ExecContext& ctx) {
    for (const AdamwTensor& t : List()) {
      AdamwStep step = kStep;
      step.weight_decay = t.weight_decay;
      Parameter& p = *t.parameter;
      ctx.kernels.adamw(step, p.value.size(), 0, p.grad.data(), p.value.data(), t.m.data(), t.v.data());
      if (t.packed != nullptr) t.packed->Repack(true, ctx);
    }
  }
};

bool SameBytes(const PackedWeight& a, const PackedWeight& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes())) == 0;
}

void ExpectSame(Tensors& got, Tensors& want) {
  const auto a = got.List(), b = want.List();
  for (size_t i = 0; i < a.size(); ++i) {
    const auto& shape = a[i].parameter->value.shape();
    SCOPED_TRACE(fmt::format("[{}]", fmt::join(shape, ",")));
    ExpectSameBits(a[i].parameter->value.span(), b[i].parameter->value.span());
    ExpectSameBits(a[i].m, b[i].m);
    ExpectSameBits(a[i].v, b[i].v);
    EXPECT_TRUE(std::ranges::all_of(a[i].parameter->grad.span(), [](float g) { return g == 0; }));
    for (int64_t e = 0; a[i].packed != nullptr && e < a[i].packed->count(); ++e) {
      EXPECT_TRUE(SameBytes(a[i].packed->forward(e), b[i].packed->forward(e))) << "forward " << e;
      EXPECT_TRUE(SameBytes(a[i].packed->transposed(e), b[i].packed->transposed(e))) << "transposed " << e;
    }
  }
}

TEST(AdamwPass, EqualsTheStepAndARepackAfterIt) {
  const std::vector<std::vector<int64_t>> shapes = {{1, 1},       {1},         {32, 32},   {33, 65}, {31, 7},
                                                    {2, 64, 513}, {3, 40, 70}, {2, 16385}, {16385},  {5, 97, 33},
                                                    {700, 31},    {3, 2, 1},   {65, 64}};
  for (const KernelTable* table : SupportedKernelTables()) {
    for (const DType format : {DType::kF32, DType::kBf16}) {
      TestContext one(1, table);
      Tensors want(shapes, format, one.ctx);
      want.StepThenRepack(one.ctx);
      for (const int threads : {1, 2, 3, 4}) {
        SCOPED_TRACE(fmt::format("{} {} threads {}", table->name, Name(format), threads));
        TestContext t(threads, table);
        Tensors got(shapes, format, t.ctx);
        AdamwPass(kStep, got.List(), t.ctx);
        ExpectSame(got, want);
      }
    }
  }
}

// The best table, but counts the blocks that are packed past the caches and those that are not.
struct CountsStreams {
  static inline std::atomic<int64_t> past_caches, others;
  static inline const KernelTable* best;
  KernelTable table;

  CountsStreams() : table(*SupportedKernelTables()[0]) {
    best = SupportedKernelTables()[0], past_caches = others = 0;
    table.pack_both_f32 = [](const float* w, int64_t stride, int64_t cols, bool stream, auto... to) {
      ++(stream ? past_caches : others), best->pack_both_f32(w, stride, cols, stream, to...);
    };
    table.pack_both_bf16 = [](const float* w, int64_t stride, int64_t cols, bool stream, auto... to) {
      ++(stream ? past_caches : others), best->pack_both_bf16(w, stride, cols, stream, to...);
    };
  }
};

// So much in either format that packs are written past the caches: more than 32 MiB.
TEST(AdamwPass, TheSizeOfTheStepChangesNoBit) {
  for (const DType format : {DType::kF32, DType::kBf16}) {
    SCOPED_TRACE(Name(format));
    const std::vector<std::vector<int64_t>> shapes = {{4, 512, 512}, {1030, 672}};
    CountsStreams counts;
    TestContext t(2, &counts.table);
    Tensors want(shapes, format, t.ctx), got(shapes, format, t.ctx);
    want.StepThenRepack(t.ctx);
    AdamwPass(kStep, got.List(), t.ctx);
    EXPECT_GT(counts.past_caches, 0);
    EXPECT_EQ(counts.others, 0);
    ExpectSame(got, want);
  }
}

TEST(AdamwPass, SkipsExpertsWithoutTokensAndNothingElse) {
  TestContext t(2);
  const std::vector<std::vector<int64_t>> shapes = {{3, 40, 70}, {3}};
  Tensors got(shapes, DType::kF32, t.ctx), want(shapes, DType::kF32, t.ctx), before(shapes, DType::kF32, t.ctx);
  want.StepThenRepack(t.ctx);
  const std::vector<int64_t> counts = {0, 7, 0};
  auto list = got.List();
  for (AdamwTensor& tensor : list) tensor.tokens_per_expert = counts;
  AdamwPass(kStep, list, t.ctx);
  for (size_t i = 0; i < list.size(); ++i) {
    const int64_t size = list[i].parameter->value.size() / 3;
    for (int64_t e = 0; e < 3; ++e) {
      Tensors& like = e == 1 ? want : before;
      const auto part = [&](std::span<const float> all) {
        return all.subspan(static_cast<size_t>(e * size), static_cast<size_t>(size));
      };
      const AdamwTensor other = like.List()[i];
      ExpectSameBits(part(list[i].parameter->value.span()), part(other.parameter->value.span()));
      ExpectSameBits(part(list[i].m), part(other.m));
      ExpectSameBits(part(list[i].v), part(other.v));
      if (list[i].packed == nullptr) continue;
      EXPECT_TRUE(SameBytes(list[i].packed->forward(e), other.packed->forward(e)));
      EXPECT_TRUE(SameBytes(list[i].packed->transposed(e), other.packed->transposed(e)));
    }
  }
}

TEST(AdamwPass, MisuseIsCaught) {
  const ThrowingChecks guard;
  TestContext t;
  ParameterStore store;
  Parameter &a = store.Add("a", {2, 4, 4}, true), &b = store.Add("b", {2, 4, 4}, true);
  PackedParameter of_b(&b, DType::kF32), never_packed(&a, DType::kF32);
  of_b.Repack(true, t.ctx);
  std::vector<float> m(32), v(32), few(31);
  const std::vector<int64_t> counts(3);
  const auto pass = [&](const AdamwTensor& tensor) { AdamwPass(kStep, {&tensor, 1}, t.ctx); };
  EXPECT_THROW(pass({.parameter = &a, .m = m, .v = v}), CheckError);  // no gradient
  store.AllocateGradients();
  pass({.parameter = &a, .m = m, .v = v});
  AdamwPass(kStep, {}, t.ctx);
  EXPECT_THROW(pass({.m = m, .v = v}), CheckError);
  EXPECT_THROW(pass({.parameter = &a, .m = few, .v = v}), CheckError);
  EXPECT_THROW(pass({.parameter = &a, .m = m, .v = few}), CheckError);
  EXPECT_THROW(pass({.parameter = &a, .packed = &of_b, .m = m, .v = v}), CheckError);
  EXPECT_THROW(pass({.parameter = &a, .packed = &never_packed, .m = m, .v = v}), CheckError);
  EXPECT_THROW(pass({.parameter = &a, .m = m, .v = v, .tokens_per_expert = counts}), CheckError);
  never_packed.Repack(false, t.ctx);  // for inference only
  EXPECT_THROW(pass({.parameter = &a, .packed = &never_packed, .m = m, .v = v}), CheckError);
}

}  // namespace
}  // namespace moe::test
