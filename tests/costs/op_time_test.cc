#include "moe/costs/op_time.h"

#include <gtest/gtest.h>

#include <cmath>

namespace moe {
namespace {

// Cache 100 GB/s up to 1 MB, memory 10 GB/s from 100 MB on; 1 TFLOP/s.
MachineProfile Machine(int threads = 1) {
  MachineProfile m;
  m.threads = threads;
  m.weights_bytes_per_s.points = {{1e6, 100e9}, {100e6, 10e9}};
  m.peak_f32 = m.peak_bf16 = 1e12;
  m.barrier_s = 1e-6;
  Complete(m);
  return m;
}

TEST(Overlapped, LiesBetweenTheLargerAndTheSum) {
  for (const double a : {0.0, 1e-6, 0.3, 1.0, 7.0}) {
    for (const double b : {0.0, 1e-6, 0.3, 1.0, 7.0}) {
      double last = a + b;
      for (const double overlap : {1.0, 2.0, 4.0, 8.0, 64.0}) {
        const double s = Overlapped(a, b, overlap);
        EXPECT_GE(s, std::max(a, b));
        EXPECT_LE(s, last * (1 + 1e-15)) << a << " " << b << " " << overlap;  // the more overlap, the less
        EXPECT_EQ(s, Overlapped(b, a, overlap));
        last = s;
      }
    }
  }
  EXPECT_DOUBLE_EQ(Overlapped(3, 4, 2), 5);
  EXPECT_DOUBLE_EQ(Overlapped(3, 4, 1), 7);
  EXPECT_EQ(Overlapped(0, 0, 4), 0);
}

TEST(Conditions, SlowMemoryLeavesTheCacheAlone) {
  const MachineProfile m = Machine();
  EXPECT_DOUBLE_EQ((Conditions{m}).BytesPerS(1e3), 100e9);
  EXPECT_DOUBLE_EQ((Conditions{m}).BytesPerS(1e9), 10e9);
  EXPECT_DOUBLE_EQ((Conditions{.machine = m, .memory = 0.5}).BytesPerS(1e3), 100e9);
  EXPECT_DOUBLE_EQ((Conditions{.machine = m, .memory = 0.5}).BytesPerS(1e9), 5e9);
  EXPECT_DOUBLE_EQ((Conditions{.machine = m, .compute = 0.5}).BytesPerS(1e3), 50e9);
  EXPECT_DOUBLE_EQ((Conditions{.machine = m, .compute = 0.5}).BytesPerS(1e9), 10e9);
  // Both halved is half of it everywhere; none is what was measured.
  for (const double set : {1e3, 3e6, 1e7, 5e7, 1e9}) {
    EXPECT_NEAR((Conditions{m}).BytesPerS(set), m.weights_bytes_per_s.At(set), 1e-6 * 10e9);
    EXPECT_NEAR((Conditions{.machine = m, .memory = 0.5, .compute = 0.5}).BytesPerS(set), 0.5 * m.weights_bytes_per_s.At(set),
                1);
  }
  // Half way in log x 55 GB/s: 0.0818 ns of a byte's 0.1818 lie between 0.01 (cache) and 0.1 (memory).
  const double here = 1 / 55e9, missed = (here - 0.01e-9) / (0.1e-9 - 0.01e-9);
  EXPECT_NEAR((Conditions{.machine = m, .memory = 0.5}).BytesPerS(1e7), 1 / ((1 - missed) * 0.01e-9 + missed * 0.2e-9), 1e3);
}

TEST(Conditions, OfAMachineWithoutCaches) {
  MachineProfile m = Machine();
  m.weights_bytes_per_s.points = {{1e6, 10e9}};
  for (const double set : {1.0, 1e6, 1e12}) EXPECT_EQ((Conditions{.machine = m, .memory = 0.5}).BytesPerS(set), 5e9);
}

TEST(ProductTime, IsCountedByHand) {
  MachineProfile m = Machine();
  m.streams[0] = {.format = DType::kF32, .efficiency = 0.5, .overlap = 1, .matrix_s = 1e-6, .list_s = 2e-6};
  m.products[0] = {.format = DType::kF32, .kind = ProductKind::kLinear, .step_s = {{{1, 1e-9}}}, .panel_s = {{{1, 1e-7}}}};
  const RowsOfMatrices rows[] = {{3, 2}, {1, 5}, {7, 0}};  // the last have nothing to do
  const ProductOp op{
      .format = DType::kF32, .N = 65, .K = 100, .bytes = 1e6, .reuse_bytes = 1e9, .row_bytes = 1e5, .rows = rows};
  const OpTime t = TimeOf(op, {m});
  // 65 outputs fill three panels.
  EXPECT_DOUBLE_EQ(t.compute_s, 3 * (3 * (100 * 2e-9 + 2e-7) + 1 * (100 * 5e-9 + 5e-7)));
  EXPECT_DOUBLE_EQ(t.memory_s, 1e6 / (10e9 * 0.5) + 1e5 / 100e9);
  EXPECT_DOUBLE_EQ(t.fixed_s, 1e-6 + 4 * 1e-6 + 2e-6);
  EXPECT_DOUBLE_EQ(t.s, t.compute_s + t.memory_s + t.fixed_s);                                     // overlap 1: none
  EXPECT_EQ(TimeOf(ProductOp{.format = DType::kF32, .N = 65, .K = 100, .bytes = 1e6}, {m}).s, 0);  // nobody's rows
  // Of slower cores all that the cores do.
  const OpTime slow = TimeOf(op, {.machine = m, .compute = 0.5});
  EXPECT_DOUBLE_EQ(slow.compute_s, 2 * t.compute_s);
  EXPECT_DOUBLE_EQ(slow.fixed_s, 2 * t.fixed_s);
}

TEST(RowWorkTime, GoesInTurnsOfAllThreads) {
  const MachineProfile two = Machine(2);
  const double value_s = two.row_op_s[static_cast<size_t>(RowOp::kAdd)];
  const auto compute = [&](double values, double chunks) {
    return TimeOf(RowWork{.op = RowOp::kAdd, .values = values, .chunks = chunks}, {two}).compute_s;
  };
  EXPECT_DOUBLE_EQ(compute(2000, 2), 2000 * value_s);
  EXPECT_DOUBLE_EQ(compute(1000, 1), 2000 * value_s);  // one of the two waits
  EXPECT_DOUBLE_EQ(compute(3000, 3), 4000 * value_s);
  EXPECT_EQ(TimeOf(RowWork{.op = RowOp::kAdd, .values = 1000, .chunks = 1}, {two}).fixed_s, 0);  // nobody is called
  EXPECT_EQ(TimeOf(RowWork{.op = RowOp::kAdd, .values = 2000, .chunks = 2}, {two}).fixed_s, two.barrier_s);
  EXPECT_EQ(TimeOf(RowWork{.op = RowOp::kAdd}, {two}).s, 0);
  const OpTime alone = TimeOf(RowWork{.op = RowOp::kCopyAlone, .values = 3000, .chunks = 3}, {two});
  EXPECT_DOUBLE_EQ(alone.compute_s, 3000 * two.row_op_s[static_cast<size_t>(RowOp::kCopyAlone)]);
  EXPECT_EQ(alone.fixed_s, 0);
}

// Chunks are of so many rows whatever the number of rows: the last is what is left, the fraction. More rows are never less
// work.
TEST(RowWorkTime, NeverFallsWithTheRows) {
  constexpr double kWidth = 256, kRowsOfChunk = 32;
  for (const int threads : {1, 2, 3, 16}) {
    const MachineProfile m = Machine(threads);
    double last = 0;
    for (double rows = 1; rows <= 2000; ++rows) {
      const RowWork work{.op = RowOp::kNorm, .values = rows * kWidth, .chunks = rows / kRowsOfChunk};
      const double s = TimeOf(work, {m}).s;
      ASSERT_GE(s, last * (1 - 1e-12)) << rows << " rows on " << threads << " threads";
      last = s;
    }
  }
}

TEST(AttentionTime, IsCountedByHand) {
  MachineProfile m = Machine();
  const AttentionCost cost{.format = DType::kBf16,
                           .pair_s = {{{1, 2e-12}, {4, 1e-12}}},
                           .backward_pair_s = {{{1, 5e-12}}},
                           .row_s = 1e-9,
                           .efficiency = 0.5,
                           .overlap = 1};
  AttentionOp op{.heads = 8, .kv_heads = 2, .head_width = 64, .segments = 3, .rows = 1, .first_position = 127};
  EXPECT_EQ(op.pairs(), 3 * 128);
  EXPECT_EQ(op.kv_bytes(), 3 * 128 * 2 * 2 * 64 * 4);
  op.kv_working_set = 1e9;
  const OpTime t = TimeOf(op, cost, {m});
  EXPECT_DOUBLE_EQ(t.compute_s, 384 * 8 * 64 * 1e-12 + 3 * 8 * 1e-9);  // four query rows share their keys
  EXPECT_DOUBLE_EQ(t.memory_s, op.kv_bytes() / 5e9);
  EXPECT_DOUBLE_EQ(t.s, t.compute_s + t.memory_s + t.fixed_s);
  op.backward = true;
  EXPECT_DOUBLE_EQ(TimeOf(op, cost, {m}).compute_s, 384 * 8 * 64 * 5e-12 + 3 * 8 * 1e-9);
  // Of a prompt every row sees itself and those before it.
  const AttentionOp prompt{.heads = 1, .kv_heads = 1, .head_width = 2, .segments = 2, .rows = 5};
  EXPECT_EQ(prompt.pairs(), 2 * (1 + 2 + 3 + 4 + 5));
}

// Keys are computed in panels of 32, and none is left out.
TEST(AttentionTime, ComputesWholePanelsOfKeys) {
  AttentionOp op{.segments = 3, .rows = 1, .first_position = 127};
  EXPECT_EQ(op.computed_pairs(), 3 * 128);
  op.first_position = 128;
  EXPECT_EQ(op.computed_pairs(), 3 * 160);
  for (const double first : {0.0, 1.0, 31.0, 32.0, 100.0}) {
    double last = 0;
    for (const double rows : {1, 2, 3, 31, 32, 33, 64, 500}) {
      op.first_position = first, op.rows = rows;
      EXPECT_GE(op.computed_pairs(), op.pairs()) << first << " " << rows;
      EXPECT_LE(op.computed_pairs(), op.pairs() + 3 * rows * 32) << first << " " << rows;
      EXPECT_GT(op.computed_pairs(), last) << first << " " << rows;
      last = op.computed_pairs();
    }
  }
}

}  // namespace
}  // namespace moe
