#include "moe/ops/gemm.h"

#include <algorithm>
#include <cstring>

#include "moe/ops/chunks.h"

namespace moe {
namespace {

constexpr int64_t kMaxTileRows = 16;  // no table has more
constexpr int64_t kRowBlock = 240;    // rows of a work item, a multiple of every table's tile: they stay in L2 across panels
constexpr int64_t kPanelGroup = 8;    // panels of a work item when rows are many

// One piece of the work list: rows [row, row+rows) by panels [panel, panel+panels) of a problem.
struct Item {
  int32_t problem, panel, panels, rows;
  int64_t row;
};

template <class F>
void ForEachItem(int64_t problem, int64_t M, int64_t panels, int64_t row_block, int64_t panel_group, F&& add) {
  for (int64_t row = 0; row < M; row += row_block) {
    for (int64_t panel = 0; panel < panels; panel += panel_group) {
      add(Item{static_cast<int32_t>(problem), static_cast<int32_t>(panel),
               static_cast<int32_t>(std::min(panel_group, panels - panel)), static_cast<int32_t>(std::min(row_block, M - row)),
               row});
    }
  }
}

// Items of all problems, largest first. `shape(i)` gives {M, panels} of problem i.
template <class Shape>
std::span<Item> MakeItems(int64_t num_problems, Shape&& shape, ExecContext& ctx) {
  // Few panels per item when the work is small, so that every thread gets some.
  int64_t tiles = 0;
  for (int64_t i = 0; i < num_problems; ++i) tiles += CeilDiv(shape(i).first, kRowBlock) * shape(i).second;
  const int64_t group = std::clamp<int64_t>(tiles / (4 * ctx.pool.num_threads()), 1, kPanelGroup);
  int64_t count = 0;
  for (int64_t i = 0; i < num_problems; ++i)
    ForEachItem(i, shape(i).first, shape(i).second, kRowBlock, group, [&](const Item&) { ++count; });
  auto items = ctx.arena.Alloc<Item>(count);
  count = 0;
  for (int64_t i = 0; i < num_problems; ++i)
    ForEachItem(i, shape(i).first, shape(i).second, kRowBlock, group,
                [&](const Item& item) { items[static_cast<size_t>(count++)] = item; });
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    const int64_t size_a = int64_t{a.rows} * a.panels, size_b = int64_t{b.rows} * b.panels;
    if (size_a != size_b) return size_a > size_b;
    if (a.problem != b.problem) return a.problem < b.problem;
    return a.row != b.row ? a.row < b.row : a.panel < b.panel;
  });
  return items;
}

const float* SourceRow(const GemmProblem& p, int64_t row) {
  return p.a.row(p.a_rows.empty() ? row : p.a_rows[static_cast<size_t>(row)]);
}

// Per thread: bf16 copies of the rows of an item, one tile of results, one SwiGLU tile.
struct Scratch {
  std::span<uint32_t> a;
  std::span<float> tile;
};

void RunItem(const GemmProblem& p, const Item& item, Scratch scratch, const KernelTable& k) {
  const PackedWeight& w = *p.weight;
  const bool bf16 = w.format == DType::kBf16;
  const int64_t pairs = CeilDiv(w.K, 2);
  if (bf16) {
    for (int64_t r = 0; r < item.rows; ++r) {
      auto* out = reinterpret_cast<Bf16*>(scratch.a.data() + r * pairs);
      k.to_bf16(SourceRow(p, item.row + r), w.K, out);
      if (w.K % 2 != 0) out[w.K] = Bf16{0};
    }
  }
  const float* a_f32[kMaxTileRows];
  const uint32_t* a_bf16[kMaxTileRows];
  for (int64_t panel = item.panel; panel < item.panel + item.panels; ++panel) {
    const std::byte* b = w.panel(panel);
    const int64_t column = panel * kPanel, columns = std::min(kPanel, w.N - column);
    for (int64_t r0 = 0; r0 < item.rows; r0 += k.max_rows) {
      const int64_t rows = std::min(k.max_rows, item.rows - r0), row = item.row + r0;
      const bool direct = p.epilogue != Epilogue::kSwiglu && columns == kPanel;
      float* c = direct ? p.c.row(row) + column : scratch.tile.data();
      const int64_t ldc = direct ? p.c.stride : kPanel;
      const bool accumulate = direct && p.epilogue == Epilogue::kAccumulate;
      if (bf16) {
        for (int64_t r = 0; r < rows; ++r) a_bf16[r] = scratch.a.data() + (r0 + r) * pairs;
        k.tile_bf16(rows, pairs, a_bf16, reinterpret_cast<const uint32_t*>(b), kPanel, c, ldc, accumulate);
      } else {
        for (int64_t r = 0; r < rows; ++r) a_f32[r] = SourceRow(p, row + r);
        k.tile_f32(rows, w.K, a_f32, reinterpret_cast<const float*>(b), kPanel, c, ldc, accumulate);
      }
      if (direct) continue;
      for (int64_t r = 0; r < rows; ++r) {
        const float* tile_row = c + r * kPanel;
        if (p.epilogue == Epilogue::kSwiglu) {
          if (!p.pre_activation.empty())
            std::memcpy(p.pre_activation.row(row + r) + column, tile_row, static_cast<size_t>(columns) * sizeof(float));
          k.swiglu(tile_row, columns / 2, p.c.row(row + r) + column / 2);
        } else if (p.epilogue == Epilogue::kAccumulate) {
          k.add(tile_row, columns, p.c.row(row + r) + column);
        } else {
          std::memcpy(p.c.row(row + r) + column, tile_row, static_cast<size_t>(columns) * sizeof(float));
        }
      }
    }
  }
}

// M rows of `source`: all of them in order, or chosen ones. When M is 0, nothing is looked at: an expert without tokens has an
// empty choice.
void CheckRows(MatView<const float> source, std::span<const int32_t> chosen, int64_t M) {
  if (M == 0) return;
  MOE_CHECK(chosen.empty() ? source.rows == M : static_cast<int64_t>(chosen.size()) == M, "{} rows ({} chosen), expected {}",
            source.rows, chosen.size(), M);
  for (const int32_t row : chosen) MOE_CHECK(row >= 0 && row < source.rows, "row {} of {}", row, source.rows);
}

void CheckProblem(const GemmProblem& p) {
  MOE_CHECK(p.weight != nullptr && !p.weight->empty(), "a product without a weight");
  const PackedWeight& w = *p.weight;
  MOE_CHECK(p.a.cols == w.K, "a has {} columns, the weight {} inputs", p.a.cols, w.K);
  const int64_t M = p.c.rows;
  CheckRows(p.a, p.a_rows, M);
  if (p.epilogue == Epilogue::kSwiglu) {
    MOE_CHECK(w.N % kPanel == 0 && p.c.cols == w.N / 2, "SwiGLU of {} outputs into {} columns", w.N, p.c.cols);
    MOE_CHECK(p.pre_activation.empty() || (p.pre_activation.rows == M && p.pre_activation.cols == w.N),
              "pre_activation [{},{}], expected [{},{}]", p.pre_activation.rows, p.pre_activation.cols, M, w.N);
  } else {
    MOE_CHECK(p.c.cols == w.N, "c has {} columns, the weight {} outputs", p.c.cols, w.N);
    MOE_CHECK(p.pre_activation.empty(), "pre_activation without an activation");
  }
}

}  // namespace

void GroupedGemm(std::span<const GemmProblem> problems, ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  int64_t max_pairs = 0;
  for (const GemmProblem& p : problems) {
    CheckProblem(p);
    if (p.weight->format == DType::kBf16) max_pairs = std::max(max_pairs, CeilDiv(p.weight->K, 2));
  }
  MOE_CHECK(ctx.kernels.max_rows <= kMaxTileRows, "{} rows in a tile", ctx.kernels.max_rows);
  const auto items = MakeItems(
      static_cast<int64_t>(problems.size()),
      [&](int64_t i) {
        return std::pair{problems[static_cast<size_t>(i)].c.rows, problems[static_cast<size_t>(i)].weight->num_panels()};
      },
      ctx);
  const int64_t a_size = kRowBlock * max_pairs, tile_size = kMaxTileRows * kPanel;
  const auto a = ctx.arena.Alloc<uint32_t>(a_size * ctx.pool.num_threads());
  const auto tiles = ctx.arena.Alloc<float>(tile_size * ctx.pool.num_threads());
  ctx.pool.ParallelFor(static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    const Item& item = items[static_cast<size_t>(i)];
    RunItem(problems[static_cast<size_t>(item.problem)], item,
            {a.subspan(static_cast<size_t>(thread * a_size), static_cast<size_t>(a_size)),
             tiles.subspan(static_cast<size_t>(thread * tile_size), static_cast<size_t>(tile_size))},
            ctx.kernels);
  });
}

// ---- weight gradients -------------------------------------------------------------------------------------------------------

namespace {

// Operands of one problem as the kernel wants them: float32 in place when x is not gathered, else copies; bf16 pairs of rows.
struct GradOperands {
  const void* d_y;
  const void* x;
  int64_t d_y_stride, x_stride;  // elements: floats, or pairs
  int64_t steps;                 // rows, or pairs of rows
};

struct RowPairJob {
  const WeightGradProblem* problem;
  uint32_t* d_y;
  uint32_t* x;
  int64_t step;
};

const float* SourceRow(const WeightGradProblem& p, int64_t row) {
  return p.x.row(p.x_rows.empty() ? row : p.x_rows[static_cast<size_t>(row)]);
}

}  // namespace

void GroupedWeightGrad(std::span<const WeightGradProblem> problems, ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  const KernelTable& k = ctx.kernels;
  const int64_t count = static_cast<int64_t>(problems.size());
  const auto operands = ctx.arena.Alloc<GradOperands>(count);
  int64_t num_jobs = 0;
  for (const WeightGradProblem& p : problems) {
    const int64_t M = p.d_y.rows;
    CheckRows(p.x, p.x_rows, M);
    MOE_CHECK(p.format == DType::kF32 || p.format == DType::kBf16, "no product of {}", Name(p.format));
    MOE_CHECK(p.d_w.rows == p.d_y.cols && p.d_w.cols == p.x.cols, "d_w [{},{}], expected [{},{}]", p.d_w.rows, p.d_w.cols,
              p.d_y.cols, p.x.cols);
    if (p.format == DType::kBf16) num_jobs += CeilDiv(M, 2);
  }
  const auto jobs = ctx.arena.Alloc<RowPairJob>(num_jobs);
  num_jobs = 0;
  for (int64_t i = 0; i < count; ++i) {
    const WeightGradProblem& p = problems[static_cast<size_t>(i)];
    GradOperands& o = operands[static_cast<size_t>(i)];
    const int64_t M = p.d_y.rows, N = p.d_y.cols, K = p.x.cols;
    if (p.format == DType::kBf16) {
      // Columns padded to the panel: the kernel reads 32 at a time.
      const int64_t x_stride = CeilDiv(K, kPanel) * kPanel, steps = CeilDiv(M, 2);
      auto d_y = ctx.arena.Alloc<uint32_t>(steps * N), x = ctx.arena.Alloc<uint32_t>(steps * x_stride);
      o = {d_y.data(), x.data(), N, x_stride, steps};
      for (int64_t s = 0; s < steps; ++s)
        jobs[static_cast<size_t>(num_jobs++)] = {&p, d_y.data() + s * N, x.data() + s * x_stride, s};
    } else if (p.x_rows.empty() && K % kPanel == 0) {
      o = {p.d_y.data, p.x.data, p.d_y.stride, p.x.stride, M};
    } else {
      const int64_t x_stride = CeilDiv(K, kPanel) * kPanel;
      auto x = ctx.arena.AllocZero<float>(M * x_stride);
      ctx.pool.ParallelFor(M, [&](int64_t m, int) {
        std::memcpy(x.data() + m * x_stride, SourceRow(p, m), static_cast<size_t>(K) * sizeof(float));
      });
      o = {p.d_y.data, x.data(), p.d_y.stride, x_stride, M};
    }
  }
  ctx.pool.ParallelFor(CeilDiv(num_jobs, 16), [&](int64_t block, int) {
    for (int64_t j = block * 16; j < std::min(num_jobs, block * 16 + 16); ++j) {
      const RowPairJob& job = jobs[static_cast<size_t>(j)];
      const WeightGradProblem& p = *job.problem;
      const int64_t m = 2 * job.step, N = p.d_y.cols, K = p.x.cols;
      const bool two = m + 1 < p.d_y.rows;
      k.interleave_bf16(p.d_y.row(m), two ? p.d_y.row(m + 1) : nullptr, N, job.d_y);
      k.interleave_bf16(SourceRow(p, m), two ? SourceRow(p, m + 1) : nullptr, K, job.x);
      for (int64_t i = K; i < CeilDiv(K, kPanel) * kPanel; ++i) job.x[i] = 0;
    }
  });

  const auto items = MakeItems(
      count,
      [&](int64_t i) {
        const WeightGradProblem& p = problems[static_cast<size_t>(i)];
        return std::pair{p.d_y.rows == 0 ? int64_t{0} : p.d_w.rows, CeilDiv(p.d_w.cols, kPanel)};
      },
      ctx);
  const int64_t tile_size = kMaxTileRows * kPanel;
  const auto tiles = ctx.arena.Alloc<float>(tile_size * ctx.pool.num_threads());
  ctx.pool.ParallelFor(static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    const Item& item = items[static_cast<size_t>(i)];
    const WeightGradProblem& p = problems[static_cast<size_t>(item.problem)];
    const GradOperands& o = operands[static_cast<size_t>(item.problem)];
    float* tile = tiles.data() + thread * tile_size;
    // The contraction goes in chunks of fixed size, so that both operands' slices stay in L2; each chunk adds to d_w in order.
    constexpr int64_t kChunk = 256;
    for (int64_t s0 = 0; s0 < o.steps; s0 += kChunk) {
      const int64_t steps = std::min(kChunk, o.steps - s0);
      for (int64_t panel = item.panel; panel < item.panel + item.panels; ++panel) {
        const int64_t column = panel * kPanel, columns = std::min(kPanel, p.d_w.cols - column);
        const bool direct = columns == kPanel;
        for (int64_t r0 = 0; r0 < item.rows; r0 += k.max_rows) {
          const int64_t rows = std::min(k.max_rows, item.rows - r0), row = item.row + r0;
          float* c = direct ? p.d_w.row(row) + column : tile;
          const int64_t ldc = direct ? p.d_w.stride : kPanel;
          if (p.format == DType::kBf16) {
            k.outer_bf16(rows, steps, static_cast<const uint32_t*>(o.d_y) + s0 * o.d_y_stride + row, o.d_y_stride,
                         static_cast<const uint32_t*>(o.x) + s0 * o.x_stride + column, o.x_stride, c, ldc, direct);
          } else {
            k.outer_f32(rows, steps, static_cast<const float*>(o.d_y) + s0 * o.d_y_stride + row, o.d_y_stride,
                        static_cast<const float*>(o.x) + s0 * o.x_stride + column, o.x_stride, c, ldc, direct);
          }
          if (direct) continue;
          for (int64_t r = 0; r < rows; ++r) k.add(c + r * kPanel, columns, p.d_w.row(row + r) + column);
        }
      }
    }
  });
}

// ---- packing ----------------------------------------------------------------------------------------------------------------

int64_t PackedBytes(DType format, int64_t N, int64_t K, PackSide side) {
  return side == PackSide::kForward ? PackedWeight::Bytes(format, N, K) : PackedWeight::Bytes(format, K, N);
}

PackedWeight Pack(MatView<const float> w, DType format, PackSide side, std::span<std::byte> bytes, ExecContext& ctx) {
  MOE_CHECK(format == DType::kF32 || format == DType::kBf16, "no packed format {}", Name(format));
  const bool forward = side == PackSide::kForward;
  const PackedWeight packed{
      .format = format, .N = forward ? w.rows : w.cols, .K = forward ? w.cols : w.rows, .data = bytes.data()};
  MOE_CHECK(static_cast<int64_t>(bytes.size()) == packed.bytes(), "{} bytes to pack into, expected {}", bytes.size(),
            packed.bytes());
  const int64_t n_stride = forward ? w.stride : 1, k_stride = forward ? 1 : w.stride;
  ctx.pool.ParallelFor(packed.num_panels(), [&](int64_t panel, int) {
    const float* from = w.data + panel * kPanel * n_stride;
    const int64_t num_n = std::min(kPanel, packed.N - panel * kPanel);
    std::byte* to = bytes.data() + panel * packed.panel_bytes();
    if (format == DType::kBf16) {
      ctx.kernels.pack_bf16(from, n_stride, k_stride, num_n, packed.K, reinterpret_cast<uint32_t*>(to));
    } else {
      ctx.kernels.pack_f32(from, n_stride, k_stride, num_n, packed.K, reinterpret_cast<float*>(to));
    }
  });
  return packed;
}

}  // namespace moe
