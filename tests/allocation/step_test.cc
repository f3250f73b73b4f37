// The promise of "no allocation in a step after warm-up", counted at malloc itself: operator new, the arena and the tensors all
// end there. In a binary of its own, because it replaces malloc for all of it.

#include <gtest/gtest.h>
#include <malloc.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <functional>
#include <memory>

#include "moe/base/rng.h"
#include "moe/model/kv_cache.h"
#include "moe/train/trainer.h"
#include "testing/test_context.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MOE_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MOE_SANITIZED 1
#endif
#endif

namespace {

std::atomic<int64_t> g_allocations{0};  // of all threads since the start of the program

void Count() {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

#ifdef MOE_SANITIZED  // a sanitizer has its own malloc, which tells who asks
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*, size_t),
                                                         void (*free_hook)(const volatile void*));
namespace {
const bool g_hooked =
    __sanitizer_install_malloc_and_free_hooks([](const volatile void*, size_t) { Count(); }, [](const volatile void*) {}) > 0;
}  // namespace
#else
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* p, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
  Count();
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  Count();
  return __libc_calloc(count, size);
}
void* realloc(void* p, size_t size) {
  Count();
  return __libc_realloc(p, size);
}
void* memalign(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** p, size_t alignment, size_t size) {
  Count();
  *p = __libc_memalign(alignment, size);
  return *p == nullptr ? ENOMEM : 0;
}
}
#endif

namespace moe::test {
namespace {

constexpr int kWarmUp = 2, kSteps = 8;

// The compiler may leave out what nobody looks at.
void Look(const void* p) {
  __asm__ volatile("" : : "g"(p) : "memory");
}

template <class Fn>
int64_t AllocationsIn(Fn&& fn) {
  const int64_t before = g_allocations;
  fn();
  return g_allocations - before;
}

TEST(Counting, SeesEveryWayToMemory) {
  EXPECT_EQ(AllocationsIn([] {}), 0);
  EXPECT_EQ(AllocationsIn([] { Look(std::make_unique<int>(1).get()); }), 1);
  EXPECT_EQ(AllocationsIn([] { Look(std::vector<float>(1000).data()); }), 1);
  EXPECT_EQ(AllocationsIn([] { Look(std::string(100, 'x').data()); }), 1);
  EXPECT_EQ(AllocationsIn([] { Look(AllocateAligned(5000000).get()); }), 1);
  EXPECT_GE(AllocationsIn([] { Look(Tensor({3, 5}).data()); }), 1);
  EXPECT_EQ(AllocationsIn([] {
              const std::array<char, 64> large{};
              const std::function<int()> f = [large] { return large[0]; };
              Look(&f);
            }),
            1);
  ThreadPool pool(2);
  EXPECT_GE(AllocationsIn([&] { pool.ParallelFor(8, [](int64_t, int) { Look(std::vector<int>(10).data()); }); }), 8);
}

struct Case {
  Executor executor;
  DType dtype;
  bool capacity;
};

std::string Label(const Case& c) {
  const char* names[] = {"grouped", "padded", "loop", "block_sparse"};
  return fmt::format("{}_{}{}", names[static_cast<size_t>(c.executor)], Name(c.dtype), c.capacity ? "_capacity" : "");
}

class Steps : public testing::TestWithParam<Case> {
 protected:
  Recipe MakeRecipe() const {
    Recipe recipe;
    recipe.model = {.layers = 2,
                    .hidden = 48,
                    .heads = 2,
                    .kv_heads = 2,
                    .head_width = 24,
                    .context = 32,
                    .experts = 6,
                    .top_k = 2,
                    .expert_width = 48,
                    .shared_experts = 1,
                    .shared_expert_width = 32,
                    .capacity_factor = GetParam().capacity ? 1.25 : 0,
                    .executor = GetParam().executor};
    recipe.train.steps = 100;
    recipe.train.batch_tokens = 128, recipe.train.micro_batch_tokens = 64, recipe.train.context = 32;
    recipe.train.min_lr = 1e-4;
    recipe.train.dtype = GetParam().dtype;
    return recipe;
  }
  static constexpr int64_t kVocab = 70;
};

// Loads of experts differ from step to step, and with them what a step takes from the arena. So the first round may still grow
// it, which is all that may be allocated; the same steps once more find everything there.
TEST_P(Steps, TrainingAllocatesNothingAfterWarmUp) {
  for (const bool skip_idle : {false, true}) {
    Recipe recipe = MakeRecipe();
    recipe.train.skip_idle_experts = skip_idle;
    TestContext t(2);
    Model model(MakeModelConfig(recipe, kVocab, 0, 1, "test").value(), recipe.train.dtype, true);
    Corpus corpus;
    corpus.documents.emplace_back();
    Rng rng(1);
    for (int i = 0; i < 5000; ++i) corpus.documents[0].push_back(static_cast<int32_t>(rng.Below(kVocab)));
    corpus.num_tokens = 5000;
    Trainer trainer(recipe, corpus, std::vector<int32_t>(kVocab, 1), model);
    StepMetrics metrics;
    for (const bool again : {false, true}) {
      trainer.Restart(t.ctx);
      for (int i = 0; i < kSteps; ++i) {
        const int64_t blocks = t.arena.num_allocations();
        bool done = false;
        const int64_t allocations = AllocationsIn([&] { done = trainer.Step(metrics, t.ctx).has_value(); });
        ASSERT_TRUE(done);
        if (again || (i >= kWarmUp && t.arena.num_allocations() == blocks)) {
          EXPECT_EQ(allocations, 0) << "step " << i << (again ? " again" : "");
        }
      }
    }
  }
}

TEST_P(Steps, DecodingAllocatesNothingAfterWarmUp) {
  const Recipe recipe = MakeRecipe();
  TestContext t(2);
  Model model(MakeModelConfig(recipe, kVocab, 0, 1, "test").value(), recipe.train.dtype, false);
  model.Initialize(1, t.ctx);
  constexpr int32_t kSequences = 5;
  KvCache cache = KvCache::Make(model.config(), kSequences, 32);
  std::vector<RowInfo> rows(kSequences);
  std::vector<int32_t> logit_rows(kSequences);
  StepStats stats;
  for (const bool again : {false, true}) {
    Rng rng(2);
    for (int i = 0; i < kSteps; ++i) {
      for (int32_t s = 0; s < kSequences; ++s) {
        rows[static_cast<size_t>(s)] = {.sequence = s, .position = i, .token_id = static_cast<int32_t>(rng.Below(kVocab))};
        logit_rows[static_cast<size_t>(s)] = s;
      }
      const int64_t blocks = t.arena.num_allocations();
      bool done = false;
      const int64_t allocations = AllocationsIn([&] {
        t.arena.Reset();
        done = model.Forward({rows, logit_rows, &cache}, i % 2 == 0 ? &stats : nullptr, t.ctx).has_value();
      });
      ASSERT_TRUE(done);
      if (again || (i >= kWarmUp && t.arena.num_allocations() == blocks)) {
        EXPECT_EQ(allocations, 0) << "step " << i << (again ? " again" : "");
      }
    }
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const Executor executor : {Executor::kGrouped, Executor::kPadded, Executor::kLoop, Executor::kBlockSparse}) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const bool capacity : {false, true}) cases.push_back({executor, dtype, capacity});
    }
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(All, Steps, testing::ValuesIn(Cases()), [](const auto& c) { return Label(c.param); });

}  // namespace
}  // namespace moe::test
