// d_w [N,K] += d_y^T x. Both operands are first laid out as the tiles read them, step by step of the contraction, which goes
// over rows, or pairs of rows in bf16: d_y in columns of a tile's height, x in panels.

#include <cstring>

#include "moe/ops/gemm.h"
#include "moe/ops/work_list.h"

namespace moe {
namespace {

constexpr int64_t kStepsPerJob = 16;
// Steps of the contraction at a time, so that both operands' slices stay in L2. A chunk's sums go on from those of the one
// before it.
constexpr int64_t kChunk = 512;

// One problem's operands, in words of four bytes: floats, or pairs of bf16.
struct Operands {
  uint32_t* d_y;  // [N / max_rows][steps][max_rows]
  uint32_t* x;    // [K / 32][steps][32]
  int64_t steps;
};

// Row m of a matrix, chosen or not.
const void* RowOf(const ConstAnyMat& matrix, std::span<const int32_t> chosen, int64_t m) {
  return matrix.row(chosen.empty() ? m : chosen[static_cast<size_t>(m)]);
}

// Steps [begin, end) of one operand, as [cols / width][steps][width] with zeros where the last columns lack. `line` takes one
// step: [cols] words.
void LayOut(const ConstAnyMat& matrix, std::span<const int32_t> chosen, int64_t M, DType format, int64_t width, int64_t begin,
            int64_t end, int64_t steps, uint32_t* line, uint32_t* out, const KernelTable& k) {
  const int64_t cols = matrix.cols;
  for (int64_t s = begin; s < end; ++s) {
    const uint32_t* words = line;
    if (format == DType::kF32) {
      words = static_cast<const uint32_t*>(RowOf(matrix, chosen, s));
    } else {
      const void* first = RowOf(matrix, chosen, 2 * s);
      const void* second = 2 * s + 1 < M ? RowOf(matrix, chosen, 2 * s + 1) : nullptr;
      if (matrix.dtype == DType::kF32) {
        k.interleave_bf16(static_cast<const float*>(first), static_cast<const float*>(second), cols, line);
      } else {
        k.interleave_rows(static_cast<const Bf16*>(first), static_cast<const Bf16*>(second), cols, line);
      }
    }
    uint32_t* to = out + s * width;
    int64_t column = 0;
    for (; column + width <= cols; column += width, to += steps * width)
      std::memcpy(to, words + column, static_cast<size_t>(width) * sizeof(uint32_t));
    if (column == cols) continue;
    std::memcpy(to, words + column, static_cast<size_t>(cols - column) * sizeof(uint32_t));
    std::fill(to + cols - column, to + width, 0u);
  }
}

void CheckProblem(const WeightGradProblem& p) {
  CheckRows(p.x, p.x_rows, p.d_y.rows);
  MOE_CHECK(p.format == DType::kF32 || p.format == DType::kBf16, "no product of {}", Name(p.format));
  MOE_CHECK(p.d_w.rows == p.d_y.cols && p.d_w.cols == p.x.cols, "d_w [{},{}], expected [{},{}]", p.d_w.rows, p.d_w.cols,
            p.d_y.cols, p.x.cols);
  for (const DType dtype : {p.d_y.dtype, p.x.dtype})
    MOE_CHECK(dtype == DType::kF32 || p.format == DType::kBf16, "a product of {} in {}", Name(dtype), Name(p.format));
}

void RunItem(const WeightGradProblem& p, const Operands& o, const WorkItem& item, float* tile, const KernelTable& k) {
  for (int64_t s0 = 0; s0 < o.steps; s0 += kChunk) {
    const int64_t steps = std::min(kChunk, o.steps - s0);
    for (int64_t panel = item.panel; panel < item.panel + item.panels; ++panel) {
      const bool last = panel + 1 == item.panel + item.panels;
      const int64_t column = panel * kPanel, columns = std::min(kPanel, p.d_w.cols - column);
      const bool direct = columns == kPanel;
      const uint32_t* b = o.x + (panel * o.steps + s0) * kPanel;
      for (int64_t i = 0; i < item.tiles; ++i) {
        const int64_t row = (item.tile + i) * k.max_rows, rows = std::min(k.max_rows, p.d_w.rows - row);
        const uint32_t* a = o.d_y + ((item.tile + i) * o.steps + s0) * k.max_rows;
        float* c = direct ? p.d_w.row(row) + column : tile;
        const int64_t ldc = direct ? p.d_w.stride : kPanel;
        NextTiles next;
        if (!last) next = {.b = b + (o.steps + steps * i / item.tiles) * kPanel, .b_step = 4 * kPanel / item.tiles};
        if (direct && i + 1 < item.tiles) next.c = c + k.max_rows * ldc;
        if (p.format == DType::kBf16) {
          k.outer_bf16(rows, steps, a, k.max_rows, b, kPanel, c, ldc, direct, next);
        } else {
          k.outer_f32(rows, steps, reinterpret_cast<const float*>(a), k.max_rows, reinterpret_cast<const float*>(b), kPanel, c,
                      ldc, direct, next);
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
  const auto count = static_cast<int64_t>(problems.size());
  const auto operands = ctx.arena.Alloc<Operands>(count);
  int64_t num_jobs = 0, widest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const WeightGradProblem& p = problems[static_cast<size_t>(i)];
    CheckProblem(p);
    Operands& o = operands[static_cast<size_t>(i)];
    o.steps = p.format == DType::kBf16 ? CeilDiv(p.d_y.rows, 2) : p.d_y.rows;
    o.d_y = ctx.arena.Alloc<uint32_t>(CeilDiv(p.d_w.rows, k.max_rows) * k.max_rows * o.steps).data();
    o.x = ctx.arena.Alloc<uint32_t>(CeilDiv(p.d_w.cols, kPanel) * kPanel * o.steps).data();
    num_jobs += CeilDiv(o.steps, kStepsPerJob);
    widest = std::max({widest, p.d_w.rows, p.d_w.cols});
  }
  struct Job {
    int32_t problem, step;
  };
  const auto jobs = ctx.arena.Alloc<Job>(num_jobs);
  num_jobs = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t s = 0; s < operands[static_cast<size_t>(i)].steps; s += kStepsPerJob)
      jobs[static_cast<size_t>(num_jobs++)] = {static_cast<int32_t>(i), static_cast<int32_t>(s)};
  }
  const auto lines = ctx.arena.Alloc<uint32_t>(widest * ctx.pool.num_threads());
  ctx.pool.ParallelFor(num_jobs, [&](int64_t j, int thread) {
    const Job& job = jobs[static_cast<size_t>(j)];
    const WeightGradProblem& p = problems[static_cast<size_t>(job.problem)];
    const Operands& o = operands[static_cast<size_t>(job.problem)];
    const int64_t end = std::min(o.steps, job.step + kStepsPerJob);
    uint32_t* line = lines.data() + thread * widest;
    LayOut(p.d_y, {}, p.d_y.rows, p.format, k.max_rows, job.step, end, o.steps, line, o.d_y, k);
    LayOut(p.x, p.x_rows, p.d_y.rows, p.format, kPanel, job.step, end, o.steps, line, o.x, k);
  });

  const auto items = MakeWorkList(
      count,
      [&](int64_t i) {
        const WeightGradProblem& p = problems[static_cast<size_t>(i)];
        return WorkShape{p.d_y.rows == 0 ? 0 : CeilDiv(p.d_w.rows, k.max_rows), CeilDiv(p.d_w.cols, kPanel),
                         operands[static_cast<size_t>(i)].steps};
      },
      ctx);
  const auto tiles = ctx.arena.Alloc<float>(kMaxTileRows * kPanel * ctx.pool.num_threads());
  ctx.pool.ParallelFor(static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    const WorkItem& item = items[static_cast<size_t>(i)];
    RunItem(problems[static_cast<size_t>(item.problem)], operands[static_cast<size_t>(item.problem)], item,
            tiles.data() + thread * kMaxTileRows * kPanel, k);
  });
}

}  // namespace moe
