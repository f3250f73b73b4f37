// d_w [N,K] += d_y^T x. The contraction goes over rows, or pairs of rows in bf16. Every work item lays out what its tiles read,
// a part of the rows at a time, in memory of its thread that stays in L2: d_y in columns of a tile's height, x in panels.

#include <cstring>

#include "moe/ops/gemm.h"
#include "moe/ops/work_list.h"

namespace moe {
namespace {

constexpr int64_t kChunk = 256;  // steps of the contraction at a time; the sums of each go on from those of the one before it
// What an item lays out at a time: panels, times steps, that stay in L2; tiles, times steps, that are read once.
constexpr int64_t kPanelSteps = 16 * kChunk, kTileSteps = 128 * kChunk;
// Of so few steps, and fewer, laying x out again costs less than to leave a row of d_w before its end.
constexpr int64_t kWholeRowSteps = 8;
constexpr int64_t kAhead = 4;  // steps from what is laid out to what is asked of memory
// A cache line more than they need lies between the columns of tiles and the panels: at a power of two they would share a few
// sets of the caches.
constexpr int64_t kGap = 16;  // words

// Of one thread, in words of four bytes: floats, or pairs of bf16.
struct Scratch {
  uint32_t* d_y;  // [tiles][steps][max_rows]
  uint32_t* x;    // [panels][steps][32]
  float* tile;    // [kMaxTileRows, kPanel]
};

// Row m of a matrix, chosen or not.
const void* RowOf(const ConstAnyMat& matrix, std::span<const int32_t> chosen, int64_t m) {
  return matrix.row(chosen.empty() ? m : chosen[static_cast<size_t>(m)]);
}

// Steps [begin, end) of columns [column, column+columns) of one operand, as [columns / width, stride apart][steps][width]: in
// panels, or in columns of a tile's height.
void LayOut(const ConstAnyMat& matrix, std::span<const int32_t> chosen, const WeightGradProblem& p, int64_t column,
            int64_t columns, bool panels, int64_t begin, int64_t end, int64_t stride, uint32_t* out, const KernelTable& k) {
  const int64_t M = p.d_y.rows, width = panels ? kPanel : k.max_rows;
  const auto at = [&](int64_t m) {
    return static_cast<const std::byte*>(RowOf(matrix, chosen, m)) + column * SizeOf(matrix.dtype);
  };
  for (int64_t s = begin; s < end; ++s, out += width) {
    for (int64_t m = 2 * (s + kAhead); m < std::min(M, 2 * (s + kAhead + 1)); ++m)
      AskFor(at(m), columns * SizeOf(matrix.dtype));
    if (p.format == DType::kF32) {
      k.spread_f32(reinterpret_cast<const float*>(at(s)), columns, panels, stride, out);
      continue;
    }
    const std::byte *x0 = at(2 * s), *x1 = 2 * s + 1 < M ? at(2 * s + 1) : nullptr;
    if (matrix.dtype == DType::kF32) {
      k.spread_rounded(reinterpret_cast<const float*>(x0), reinterpret_cast<const float*>(x1), columns, panels, stride, out);
    } else {
      k.spread_bf16(reinterpret_cast<const Bf16*>(x0), reinterpret_cast<const Bf16*>(x1), columns, panels, stride, out);
    }
  }
}

void CheckProblem(const WeightGradProblem& p) {
  CheckExtents(p.d_y, "d_y"), CheckExtents(p.x, "x"), CheckExtents(p.d_w, "d_w");
  CheckRows(p.x, p.x_rows, p.d_y.rows);
  MOE_CHECK(p.format == DType::kF32 || p.format == DType::kBf16, "no product of {}", Name(p.format));
  MOE_CHECK(p.d_w.rows == p.d_y.cols && p.d_w.cols == p.x.cols, "d_w [{},{}], expected [{},{}]", p.d_w.rows, p.d_w.cols,
            p.d_y.cols, p.x.cols);
  for (const DType dtype : {p.d_y.dtype, p.x.dtype})
    MOE_CHECK(dtype == DType::kF32 || p.format == DType::kBf16, "a product of {} in {}", Name(dtype), Name(p.format));
}

int64_t Steps(const WeightGradProblem& p) {
  return p.format == DType::kBf16 ? CeilDiv(p.d_y.rows, 2) : p.d_y.rows;
}

WorkShape ShapeOf(const WeightGradProblem& p, const KernelTable& k) {
  const int64_t steps = Steps(p), at_once = std::clamp<int64_t>(steps, 1, kChunk);
  return {
      .tiles = steps == 0 ? 0 : CeilDiv(p.d_w.rows, k.max_rows),
      .panels = CeilDiv(p.d_w.cols, kPanel),
      .steps = steps,
      .limits = {
          .tiles = kTileSteps / at_once, .panels = kPanelSteps / at_once, .least = 48, .whole_rows = steps <= kWholeRowSteps}};
}

// Of `rows` rows of d_w, `panels` panels wide, one of as many parts as there are panels, in the order in which they lie: memory
// streams what it is asked for in order, and would be at as many places as a tile has rows otherwise.
[[gnu::always_inline]] inline void AskForPart(MatView<float> d_w, int64_t row, int64_t rows, int64_t column, int64_t panels,
                                              int64_t part) {
  for (int64_t i = part * rows; i < (part + 1) * rows; ++i)
    AskFor(d_w.row(row + i / panels) + column + i % panels * kPanel, kPanel * int64_t{sizeof(float)});
}

void RunItem(const WeightGradProblem& p, const WorkItem& item, const Scratch& scratch, const KernelTable& k) {
  const int64_t all_steps = Steps(p), at_once = std::min(all_steps, kChunk);
  const int64_t tile_stride = at_once * k.max_rows + kGap, panel_stride = at_once * kPanel + kGap;
  const int64_t row0 = item.tile * k.max_rows, num_rows = std::min(item.tiles * k.max_rows, p.d_w.rows - row0);
  const int64_t column0 = item.panel * kPanel, num_columns = std::min(item.panels * kPanel, p.d_w.cols - column0);
  for (int64_t s0 = 0; s0 < all_steps; s0 += at_once) {
    const int64_t end = std::min(all_steps, s0 + at_once), steps = end - s0;
    LayOut(p.d_y, {}, p, row0, num_rows, /*panels=*/false, s0, end, tile_stride, scratch.d_y, k);
    LayOut(p.x, p.x_rows, p, column0, num_columns, /*panels=*/true, s0, end, panel_stride, scratch.x, k);
    // Along the rows of d_w, which come from memory and go back to it.
    for (int64_t i = 0; i < item.tiles; ++i) {
      const int64_t row = row0 + i * k.max_rows, rows = std::min(k.max_rows, p.d_w.rows - row);
      const uint32_t* a = scratch.d_y + i * tile_stride;
      for (int64_t panel = 0; panel < item.panels; ++panel) {
        const int64_t column = column0 + panel * kPanel, columns = std::min(kPanel, p.d_w.cols - column);
        const uint32_t* b = scratch.x + panel * panel_stride;
        const bool direct = columns == kPanel;
        float* c = direct ? p.d_w.row(row) + column : scratch.tile;
        const int64_t ldc = direct ? p.d_w.stride : kPanel;
        AskForPart(p.d_w, row + k.max_rows, std::min(k.max_rows, row0 + num_rows - row - k.max_rows), column0, item.panels,
                   panel);
        if (p.format == DType::kBf16) {
          k.outer_bf16(rows, steps, a, k.max_rows, b, kPanel, c, ldc, direct, {});
        } else {
          k.outer_f32(rows, steps, reinterpret_cast<const float*>(a), k.max_rows, reinterpret_cast<const float*>(b), kPanel, c,
                      ldc, direct, {});
        }
        if (direct) continue;
        for (int64_t r = 0; r < rows; ++r) k.add(c + r * kPanel, columns, p.d_w.row(row + r) + column);
      }
    }
  }
}

}  // namespace

void GroupedWeightGrad(std::span<const WeightGradProblem> problems, ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  const KernelTable& k = ctx.kernels;
  MOE_CHECK(k.max_rows <= kMaxTileRows, "{} rows in a tile", k.max_rows);
  for (const WeightGradProblem& p : problems) CheckProblem(p);
  const auto items = MakeWorkList(
      static_cast<int64_t>(problems.size()), [&](int64_t i) { return ShapeOf(problems[static_cast<size_t>(i)], k); }, ctx);
  // As much as any number of rows could need: what a step takes must not depend on where its tokens go.
  int64_t d_y_size = 0, x_size = 0;
  for (const WeightGradProblem& p : problems) {
    const int64_t tiles = CeilDiv(p.d_w.rows, k.max_rows), panels = CeilDiv(p.d_w.cols, kPanel);
    d_y_size = std::max(d_y_size, std::min(kTileSteps, tiles * kChunk) * k.max_rows + tiles * kGap);
    x_size = std::max(x_size, std::min(kPanelSteps, panels * kChunk) * kPanel + panels * kGap);
  }
  const auto scratch = ctx.arena.Alloc<Scratch>(ctx.pool.num_threads());
  for (Scratch& s : scratch) {
    s = {.d_y = ctx.arena.Alloc<uint32_t>(d_y_size).data(),
         .x = ctx.arena.Alloc<uint32_t>(x_size).data(),
         .tile = ctx.arena.Alloc<float>(kMaxTileRows * kPanel).data()};
  }
  ctx.pool.ParallelFor(static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    const WorkItem& item = items[static_cast<size_t>(i)];
    RunItem(problems[static_cast<size_t>(item.problem)], item, scratch[static_cast<size_t>(thread)], k);
  });
}

}  // namespace moe
