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
  int64_t row, work;
};

// How a problem of M rows, `panels` panels and a contraction of K is cut.
struct ItemSplit {
  int64_t M, panels, K;
  int64_t row_block, panel_group;
};

template <class F>
void ForEachItem(int64_t problem, const ItemSplit& s, F&& add) {
  for (int64_t row = 0; row < s.M; row += s.row_block) {
    const int64_t rows = std::min(s.row_block, s.M - row);
    for (int64_t panel = 0; panel < s.panels; panel += s.panel_group) {
      const int64_t panels = std::min(s.panel_group, s.panels - panel);
      add(Item{static_cast<int32_t>(problem), static_cast<int32_t>(panel), static_cast<int32_t>(panels),
               static_cast<int32_t>(rows), row, rows * panels * s.K});
    }
  }
}

// Items of all problems, largest first. split(i) says how problem i is cut.
template <class Split>
std::span<Item> MakeItems(int64_t num_problems, Split&& split, ExecContext& ctx) {
  int64_t count = 0;
  for (int64_t i = 0; i < num_problems; ++i) {
    const ItemSplit s = split(i);
    count += CeilDiv(s.M, s.row_block) * CeilDiv(s.panels, s.panel_group);
  }
  auto items = ctx.arena.Alloc<Item>(count);
  count = 0;
  for (int64_t i = 0; i < num_problems; ++i)
    ForEachItem(i, split(i), [&](const Item& item) { items[static_cast<size_t>(count++)] = item; });
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    if (a.work != b.work) return a.work > b.work;
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
    const std::byte* b = w.data + panel * w.panel_bytes();
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
  // Few panels per item when the work is small, so that every thread gets some.
  int64_t tiles = 0;
  for (const GemmProblem& p : problems) tiles += CeilDiv(p.c.rows, kRowBlock) * p.weight->num_panels();
  const int64_t group = std::clamp<int64_t>(tiles / (4 * ctx.pool.num_threads()), 1, kPanelGroup);
  const auto items = MakeItems(
      static_cast<int64_t>(problems.size()),
      [&](int64_t i) -> ItemSplit {
        const GemmProblem& p = problems[static_cast<size_t>(i)];
        return {
            .M = p.c.rows, .panels = p.weight->num_panels(), .K = p.weight->K, .row_block = kRowBlock, .panel_group = group};
      },
      ctx);
  const int64_t a_size = kRowBlock * max_pairs, tile_size = kMaxTileRows * kPanel;
  const auto a = ctx.arena.Alloc<uint32_t>(a_size * ctx.pool.num_threads());
  const auto tile_scratch = ctx.arena.Alloc<float>(tile_size * ctx.pool.num_threads());
  ctx.pool.ParallelFor(static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    const Item& item = items[static_cast<size_t>(i)];
    RunItem(problems[static_cast<size_t>(item.problem)], item,
            {a.subspan(static_cast<size_t>(thread * a_size), static_cast<size_t>(a_size)),
             tile_scratch.subspan(static_cast<size_t>(thread * tile_size), static_cast<size_t>(tile_size))},
            ctx.kernels);
  });
}

// ---- weight gradients -------------------------------------------------------------------------------------------------------

namespace {

constexpr int64_t kGradRows = 512;    // rows of d_w in a work item
constexpr int64_t kGradPanels = 16;   // and its panels: the cut operands of a chunk stay in L2
constexpr int64_t kGradMinRows = 64;  // not cut smaller
constexpr int64_t kGradMinPanels = 2;
constexpr int64_t kGradChunk = 128;  // steps of the contraction at once: two panels of a chunk stay in L1

const float* SourceRow(const WeightGradProblem& p, int64_t row) {
  return p.x.row(p.x_rows.empty() ? row : p.x_rows[static_cast<size_t>(row)]);
}

// Rows of the contraction in one step: bf16 products take two at a time.
int64_t RowsPerStep(const WeightGradProblem& p) {
  return p.format == DType::kBf16 ? 2 : 1;
}

// Halves the items of a problem until they are small enough beside the whole work that no thread waits long for the last.
std::pair<int64_t, int64_t> GradItemShape(const WeightGradProblem& p, double largest_work) {
  int64_t rows = kGradRows, panels = kGradPanels;
  const auto work = [&] {
    return static_cast<double>(p.d_y.rows) * static_cast<double>(std::min(rows, p.d_w.rows)) *
           static_cast<double>(std::min(panels * kPanel, p.d_w.cols));
  };
  while (work() > largest_work && (rows > kGradMinRows || panels > kGradMinPanels)) {
    const bool rows_longer = std::min(rows, p.d_w.rows) >= std::min(panels * kPanel, p.d_w.cols);
    if ((rows_longer && rows > kGradMinRows) || panels == kGradMinPanels) {
      rows /= 2;
    } else {
      panels /= 2;
    }
  }
  return {rows, panels};
}

// Cuts steps [begin, begin+steps) of columns [column, column+columns) of d_y or x into panels [..][kGradChunk][32], floats or
// bf16 pairs of consecutive rows: then a tile walks the contraction along contiguous memory.
template <class Row>
void Cut(const WeightGradProblem& p, Row&& row, int64_t begin, int64_t steps, int64_t column, int64_t columns, uint32_t* out,
         const KernelTable& k) {
  const int64_t panel = kGradChunk * kPanel;
  for (int64_t s = 0; s < steps; ++s, out += kPanel) {
    if (p.format == DType::kBf16) {
      const int64_t m = 2 * (begin + s);
      k.panels_bf16(row(m) + column, m + 1 < p.d_y.rows ? row(m + 1) + column : nullptr, columns, out, panel);
    } else {
      k.panels_f32(row(begin + s) + column, columns, reinterpret_cast<float*>(out), panel);
    }
  }
}

// d_w [rows of one d_y panel, one panel] += product of `steps` steps; a starts at the first row, c is where to add.
void AddTile(DType format, int64_t rows, int64_t steps, const uint32_t* a, const uint32_t* b, float* c, int64_t ldc,
             int64_t columns, float* tile, const KernelTable& k) {
  const bool direct = columns == kPanel;
  float* to = direct ? c : tile;
  const int64_t to_stride = direct ? ldc : kPanel;
  if (format == DType::kBf16) {
    k.outer_bf16(rows, steps, a, kPanel, b, kPanel, to, to_stride, direct);
  } else {
    k.outer_f32(rows, steps, reinterpret_cast<const float*>(a), kPanel, reinterpret_cast<const float*>(b), kPanel, to,
                to_stride, direct);
  }
  for (int64_t r = 0; r < rows && !direct; ++r) k.add(tile + r * kPanel, columns, c + r * ldc);
}

// Chunks have a fixed size at absolute offsets and are added to d_w in order, however d_w was cut into items.
void RunGradItem(const WeightGradProblem& p, const Item& item, uint32_t* scratch, float* tile, const KernelTable& k) {
  const int64_t steps = CeilDiv(p.d_y.rows, RowsPerStep(p)),
                columns = std::min(p.d_w.cols - item.panel * kPanel, item.panels * kPanel);
  uint32_t *d_y = scratch, *x = scratch + CeilDiv(item.rows, kPanel) * kPanel * kGradChunk;
  for (int64_t begin = 0; begin < steps; begin += kGradChunk) {
    const int64_t here = std::min(kGradChunk, steps - begin);
    Cut(
        p, [&](int64_t m) { return p.d_y.row(m); }, begin, here, item.row, item.rows, d_y, k);
    Cut(
        p, [&](int64_t m) { return SourceRow(p, m); }, begin, here, item.panel * kPanel, columns, x, k);
    for (int64_t block = 0; block < item.rows; block += kPanel) {
      const int64_t block_end = std::min<int64_t>(item.rows, block + kPanel);
      for (int64_t panel = 0; panel < item.panels; ++panel) {
        const int64_t column = (item.panel + panel) * kPanel;
        for (int64_t row = block; row < block_end; row += k.max_rows) {
          AddTile(p.format, std::min(k.max_rows, block_end - row), here, d_y + block * kGradChunk + row - block,
                  x + panel * kPanel * kGradChunk, p.d_w.row(item.row + row) + column, p.d_w.stride,
                  std::min(kPanel, p.d_w.cols - column), tile, k);
        }
      }
    }
  }
}

}  // namespace

void GroupedWeightGrad(std::span<const WeightGradProblem> problems, ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  double work = 0;
  for (const WeightGradProblem& p : problems) {
    CheckRows(p.x, p.x_rows, p.d_y.rows);
    MOE_CHECK(p.format == DType::kF32 || p.format == DType::kBf16, "no product of {}", Name(p.format));
    MOE_CHECK(p.d_w.rows == p.d_y.cols && p.d_w.cols == p.x.cols, "d_w [{},{}], expected [{},{}]", p.d_w.rows, p.d_w.cols,
              p.d_y.cols, p.x.cols);
    work += static_cast<double>(p.d_y.rows) * static_cast<double>(p.d_w.size());
  }
  const double largest_work = work / static_cast<double>(8 * ctx.pool.num_threads());
  const auto items = MakeItems(
      static_cast<int64_t>(problems.size()),
      [&](int64_t i) -> ItemSplit {
        const WeightGradProblem& p = problems[static_cast<size_t>(i)];
        const auto [rows, panels] = GradItemShape(p, largest_work);
        return {.M = p.d_y.rows == 0 ? 0 : p.d_w.rows,
                .panels = CeilDiv(p.d_w.cols, kPanel),
                .K = p.d_y.rows,
                .row_block = rows,
                .panel_group = panels};
      },
      ctx);
  int64_t scratch_size = 0;
  for (const Item& item : items)
    scratch_size = std::max(scratch_size, (CeilDiv(item.rows, kPanel) + item.panels) * kPanel * kGradChunk);
  const int64_t tile_size = kMaxTileRows * kPanel;
  const auto scratch = ctx.arena.Alloc<uint32_t>(scratch_size * ctx.pool.num_threads());
  const auto tiles = ctx.arena.Alloc<float>(tile_size * ctx.pool.num_threads());
  ctx.pool.ParallelFor(static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    const Item& item = items[static_cast<size_t>(i)];
    RunGradItem(problems[static_cast<size_t>(item.problem)], item, scratch.data() + thread * scratch_size,
                tiles.data() + thread * tile_size, ctx.kernels);
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
