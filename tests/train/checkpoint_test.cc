#include "moe/train/checkpoint.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "testing/matchers.h"
#include "testing/random.h"
#include "testing/temp_dir.h"

namespace moe {
namespace {

using test::TempDir;

struct Weights {
  ParameterStore store;
  Optimizer optimizer;

  explicit Weights(uint64_t seed, std::vector<int64_t> shape = {3, 5, 7}) {
    store.Add("embedding", {11, 4}, true);
    store.Add("experts", std::move(shape), true, 3);
    optimizer.Reset(store);
    Rng rng(seed);
    size_t i = 0;
    for (Parameter& p : store.all()) {
      test::FillNormal(p.value.span(), rng);
      test::FillNormal(optimizer.m[i].span(), rng);
      test::FillNormal(optimizer.v[i].span(), rng);
      ++i;
    }
  }
};

void ExpectSame(const Weights& a, const Weights& b) {
  for (size_t i = 0; i < a.store.all().size(); ++i) {
    test::ExpectSameBits(a.store.all()[i].value.span(), b.store.all()[i].value.span());
    test::ExpectSameBits(a.optimizer.m[i].span(), b.optimizer.m[i].span());
    test::ExpectSameBits(a.optimizer.v[i].span(), b.optimizer.v[i].span());
  }
}

TrainState StateOf(int64_t step) {
  return {.step = step,
          .seconds = 0.1,
          .best_loss = 1.0 / 3,
          .best_bits_per_byte = 2.0 / 3,
          .best_step = 4,
          .metrics_bytes = 1234,
          .pending_line = "{\"a\": 1}",
          .recipe = "[train]\nsteps = 3\n",
          .data_digest = "00ff",
          .tokenizer_digest = "11ee",
          .weights_digest = "33ee",
          .validation_digest = "22dd",
          .capacity_factors = {-1, 1.0 / 3, 2},
          .kernels = "scalar"};
}

void Save(const TempDir& dir, const Weights& weights, int64_t step) {
  const Status saved = SaveTrainState(dir.path().string(), StateOf(step), weights.store, weights.optimizer);
  ASSERT_TRUE(saved) << saved.error().Message();
}

// In place: replacing a file waits for the disk.
void FlipBit(const std::string& path, size_t byte) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(byte));
  const char flipped = static_cast<char>(file.get() ^ 16);
  file.seekp(static_cast<std::streamoff>(byte));
  file.put(flipped);
  ASSERT_TRUE(file.flush());
}

TEST(Checkpoint, ComesBackBitForBit) {
  const TempDir dir;
  const Weights weights(1);
  EXPECT_FALSE(HoldsTrainState(dir.path().string()));
  Save(dir, weights, 7);
  EXPECT_TRUE(HoldsTrainState(dir.path().string()));
  const auto opened = OpenTrainState(dir.path().string());
  ASSERT_TRUE(opened) << opened.error().Message();
  EXPECT_EQ(opened->warning, "");
  const TrainState want = StateOf(7);
  EXPECT_EQ(opened->state.step, want.step);
  EXPECT_EQ(opened->state.seconds, want.seconds);
  EXPECT_EQ(opened->state.best_loss, want.best_loss);
  EXPECT_EQ(opened->state.best_bits_per_byte, want.best_bits_per_byte);
  EXPECT_EQ(opened->state.best_step, want.best_step);
  EXPECT_EQ(opened->state.metrics_bytes, want.metrics_bytes);
  EXPECT_EQ(opened->state.pending_line, want.pending_line);
  EXPECT_EQ(opened->state.capacity_factors, want.capacity_factors);
  EXPECT_EQ(opened->state.recipe, want.recipe);
  EXPECT_EQ(opened->state.data_digest, want.data_digest);
  EXPECT_EQ(opened->state.tokenizer_digest, want.tokenizer_digest);
  EXPECT_EQ(opened->state.weights_digest, want.weights_digest);
  EXPECT_EQ(opened->state.validation_digest, want.validation_digest);
  EXPECT_EQ(opened->state.kernels, want.kernels);
  Weights read(2);
  const Status status = ReadTrainState(*opened, read.store, read.optimizer);
  ASSERT_TRUE(status) << status.error().Message();
  ExpectSame(read, weights);
  EXPECT_EQ(read.optimizer.steps_done, 7);
}

TEST(Checkpoint, NoEvaluationYetIsInfinity) {
  const TempDir dir;
  const Weights weights(1);
  TrainState state = StateOf(0);
  state.best_loss = std::numeric_limits<double>::infinity();
  state.pending_line = "";
  ASSERT_TRUE(SaveTrainState(dir.path().string(), state, weights.store, weights.optimizer));
  const auto opened = OpenTrainState(dir.path().string());
  ASSERT_TRUE(opened) << opened.error().Message();
  EXPECT_EQ(opened->state.best_loss, std::numeric_limits<double>::infinity());
}

TEST(Checkpoint, TheOneBeforeIsKept) {
  const TempDir dir;
  for (int64_t step = 1; step <= 3; ++step) Save(dir, Weights(static_cast<uint64_t>(step)), step);
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) names.insert(entry.path().filename().string());
  EXPECT_EQ(names, (std::set<std::string>{kTrainStateName, kPreviousTrainStateName}));
  std::filesystem::remove(dir / kTrainStateName);  // as after a crash between two renames
  const auto opened = OpenTrainState(dir.path().string());
  ASSERT_TRUE(opened) << opened.error().Message();
  EXPECT_EQ(opened->state.step, 2);
  EXPECT_EQ(opened->warning, "");
}

TEST(Checkpoint, ADamagedOneIsNamedAndTheOneBeforeTakesItsPlace) {
  for (const bool truncate : {false, true}) {
    const TempDir dir;
    const Weights first(1);
    Save(dir, first, 1);
    Save(dir, Weights(2), 2);
    const std::string last = dir / kTrainStateName;
    const std::string bytes = test::ReadFile(last);
    if (truncate) {
      test::WriteFile(last, bytes.substr(0, bytes.size() - 10));
    } else {
      FlipBit(last, bytes.size() - 10);
    }
    const auto opened = OpenTrainState(dir.path().string());
    ASSERT_TRUE(opened) << opened.error().Message();
    EXPECT_EQ(opened->state.step, 1);
    EXPECT_TRUE(opened->warning.starts_with("[" + last + "] ")) << opened->warning;
    EXPECT_NE(opened->warning.find("step 1"), std::string::npos) << opened->warning;
    if (!truncate) {
      EXPECT_NE(opened->warning.find("v.experts"), std::string::npos) << opened->warning;
    }
    Weights read(3);
    ASSERT_TRUE(ReadTrainState(*opened, read.store, read.optimizer));
    ExpectSame(read, first);
    // from here on the good one is the last one, and the next checkpoint keeps it
    Save(dir, Weights(4), 2);
    const auto next = OpenTrainState(dir.path().string());
    ASSERT_TRUE(next);
    EXPECT_EQ(next->state.step, 2);
    EXPECT_TRUE(std::filesystem::exists(dir / kPreviousTrainStateName));
  }
}

TEST(Checkpoint, WithoutAGoodOneTheErrorNamesFileAndTensor) {
  const TempDir dir;
  Save(dir, Weights(1), 1);
  const std::string last = dir / kTrainStateName;
  const std::string bytes = test::ReadFile(last);
  FlipBit(last, bytes.size() - 10);
  auto opened = OpenTrainState(dir.path().string());
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().where, last);
  EXPECT_NE(opened.error().what.find("v.experts"), std::string::npos) << opened.error().Message();

  test::WriteFile(last, bytes);
  Save(dir, Weights(2), 2);
  FlipBit(last, bytes.size() - 10);
  FlipBit(dir / kPreviousTrainStateName, bytes.size() - 10);
  opened = OpenTrainState(dir.path().string());
  ASSERT_FALSE(opened);
  EXPECT_NE(opened.error().what.find(kPreviousTrainStateName), std::string::npos) << opened.error().Message();
}

TEST(Checkpoint, NoFlippedBitGoesUnnoticed) {
  const TempDir dir;
  Save(dir, Weights(1), 1);
  const std::string path = dir / kTrainStateName, bytes = test::ReadFile(path);
  for (size_t byte = 0; byte < bytes.size(); byte += byte < 600 ? 1 : 97) {
    FlipBit(path, byte);
    EXPECT_FALSE(OpenTrainState(dir.path().string())) << "byte " << byte;
    FlipBit(path, byte);
  }
  EXPECT_TRUE(OpenTrainState(dir.path().string()));
}

TEST(Checkpoint, OfAnotherModelIsRefusedAndChangesNothing) {
  const TempDir dir;
  Save(dir, Weights(1), 1);
  const auto opened = OpenTrainState(dir.path().string());
  ASSERT_TRUE(opened);
  const auto expect_error = [&](Weights& weights, const std::string& part) {
    const std::vector<float> before(weights.store.all()[0].value.span().begin(), weights.store.all()[0].value.span().end());
    const Status status = ReadTrainState(*opened, weights.store, weights.optimizer);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().where, dir / kTrainStateName);
    EXPECT_NE(status.error().what.find(part), std::string::npos) << status.error().Message();
    test::ExpectSameBits(weights.store.all()[0].value.span(), before);
  };
  Weights other_shape(2, {3, 7, 5});
  expect_error(other_shape, "tensor 'master.experts': got f32 [3,5,7], expected f32 [3,7,5]");
  Weights one_more(2);
  one_more.store.Add("norm", {4}, false);
  one_more.optimizer.Reset(one_more.store);
  expect_error(one_more, "got no tensor 'master.norm'");
  Weights one_less(2);
  one_less.store.all().pop_back();
  one_less.optimizer.Reset(one_less.store);
  expect_error(one_less, "got the unknown tensor 'master.experts'");
}

TEST(Checkpoint, OtherFilesAreNotCheckpoints) {
  const TempDir dir;
  test::WriteFile(dir / kTrainStateName, "hello");
  EXPECT_FALSE(OpenTrainState(dir.path().string()));
  auto writer = SafetensorsWriter::Create(dir / kTrainStateName, {{"x", DType::kF32, {1}}}, {.checksums = true});
  ASSERT_TRUE(writer);
  ASSERT_TRUE(writer->AppendFloats("x", std::vector<float>{1}));
  ASSERT_TRUE(writer->Commit());
  const auto opened = OpenTrainState(dir.path().string());
  ASSERT_FALSE(opened);
  EXPECT_NE(opened.error().what.find("is no checkpoint of moe train"), std::string::npos);
  EXPECT_FALSE(OpenTrainState(dir / "nowhere"));
}

}  // namespace
}  // namespace moe
