#include "moe/ops/gemm.h"

#include <cstring>

#include "moe/base/cpu_info.h"
#include "moe/ops/work_list.h"

namespace moe {
namespace {

constexpr WorkLimits kLimits = {.tiles = 16, .panels = 64};
constexpr int64_t kLeastL2 = int64_t{1} << 20;  // where the size is not known

const std::byte* SourceRow(const GemmProblem& p, int64_t row) {
  return static_cast<const std::byte*>(p.a.row(p.a_rows.empty() ? row : p.a_rows[static_cast<size_t>(row)]));
}

// Can the tiles read the problem's own rows? They must be of the weight's format, and in whole pairs.
bool IsAsTilesRead(const GemmProblem& p) {
  if (p.a.dtype != p.weight->format) return false;
  if (p.a.dtype == DType::kF32) return true;
  return p.weight->K % 2 == 0 && p.a.stride % 2 == 0 && reinterpret_cast<uintptr_t>(p.a.data) % 4 == 0;
}

// Steps of the contraction: values, or pairs in bf16. A step of a row is a word of four bytes.
int64_t Steps(const PackedWeight& w) {
  return w.format == DType::kBf16 ? CeilDiv(w.K, 2) : w.K;
}
// Words between copies of rows: an odd number of cache lines, as rows at a power of two would share a few sets of L1 and drive
// each other out.
int64_t CopyStride(const PackedWeight& w) {
  constexpr int64_t kLine = 16;
  return (CeilDiv(Steps(w), kLine) | 1) * kLine;
}

// Rows [row, row+rows) as words: where they are, or copied.
void FindRows(const GemmProblem& p, int64_t row, int64_t rows, uint32_t* copies, const uint32_t** out, const KernelTable& k) {
  const int64_t K = p.weight->K, stride = CopyStride(*p.weight);
  const bool in_place = IsAsTilesRead(p);
  for (int64_t r = 0; r < rows; ++r) {
    const std::byte* from = SourceRow(p, row + r);
    out[r] = reinterpret_cast<const uint32_t*>(from);
    if (in_place) continue;
    uint32_t* to = copies + r * stride;
    out[r] = to;
    if (p.a.dtype == p.weight->format) {
      std::memcpy(to, from, static_cast<size_t>(K * SizeOf(p.a.dtype)));
    } else {
      k.to_bf16(reinterpret_cast<const float*>(from), K, reinterpret_cast<Bf16*>(to));
    }
    if (p.weight->format == DType::kBf16 && K % 2 != 0) reinterpret_cast<Bf16*>(to)[K] = Bf16{0};
  }
}

// Of one thread.
struct Scratch {
  uint32_t* copies;       // [kMaxTileRows, CopyStride] rows of a tile
  uint32_t* interleaved;  // [tiles of an item][steps][max_rows]
  float* tile;            // [kMaxTileRows, kPanel] one product
  float* half;            // [kMaxTileRows, kPanel / 2] after SwiGLU
};

// Columns [column, column+columns) of rows [row, row+rows) from a dense tile.
void WriteRows(const float* tile, int64_t stride, int64_t rows, int64_t columns, const AnyMat& c, int64_t row, int64_t column,
               bool add, bool stream, const KernelTable& k) {
  if (c.dtype == DType::kBf16) {
    return k.round_rows(rows, columns, tile, stride, static_cast<Bf16*>(c.row(row)) + column, c.stride, stream);
  }
  for (int64_t r = 0; r < rows; ++r, tile += stride) {
    if (add) {
      k.add(tile, columns, static_cast<float*>(c.row(row + r)) + column);
    } else {
      std::memcpy(static_cast<float*>(c.row(row + r)) + column, tile, static_cast<size_t>(columns) * sizeof(float));
    }
  }
}

// Is it worth turning the rows of an item? The tiles then read one stream and need one address for all rows, but each panel has
// to pay for its part of the turning.
bool Interleaves(const WorkItem& item, const KernelSwitches& switches) {
  return item.tiles > 1 && item.panels >= switches.least_panels;
}

// `after`: the panel that this thread will probably read first when it is done here; null: unknown.
// `stream`: c goes past the caches.
void RunItem(const GemmProblem& p, const WorkItem& item, int64_t tiles, const std::byte* after, bool interleaved, bool stream,
             const Scratch& scratch, const KernelTable& k) {
  MOE_CHECK(item.tiles > 0, "an item of {} tiles", item.tiles);
  const PackedWeight& w = *p.weight;
  const bool bf16 = w.format == DType::kBf16, gated = p.epilogue == Epilogue::kSwiglu;
  const int64_t steps = Steps(w);
  // All tiles of the problem are of almost the same height: a last one of few rows would take as long as a full one.
  int64_t begin[kLimits.tiles + 1];  // rows of tile i: [i], up to [i+1]
  for (int64_t i = 0; i <= item.tiles; ++i) begin[i] = p.c.rows * (item.tile + i) / tiles;
  const uint32_t* a[kMaxTileRows];
  for (int64_t i = 0; interleaved && i < item.tiles; ++i) {
    const int64_t row = begin[i], rows = begin[i + 1] - row;
    const int64_t share = CeilDiv(w.panel_bytes(), item.tiles);  // of the first panel
    AskFor(w.panel(item.panel) + i * share, std::min(share, w.panel_bytes() - i * share));
    FindRows(p, row, rows, scratch.copies, a, k);
    k.interleave_tile(rows, steps, a, scratch.interleaved + i * steps * k.max_rows);
  }
  const int64_t share_step = 4 * kPanel / item.tiles;  // bytes of the next panel that a tile asks for at each of its steps
  for (int64_t panel = item.panel; panel < item.panel + item.panels; ++panel) {
    const std::byte* b = w.panel(panel);
    const std::byte* following = panel + 1 == item.panel + item.panels ? after : w.panel(panel + 1);
    const int64_t column = panel * kPanel, columns = std::min(kPanel, w.N - column);
    const bool direct = !gated && columns == kPanel && p.c.dtype == DType::kF32, streams = direct && stream;
    for (int64_t i = 0; i < item.tiles; ++i) {
      const int64_t row = begin[i], rows = begin[i + 1] - row;
      float* c = direct ? static_cast<float*>(p.c.row(row)) + column : scratch.tile;
      const int64_t ldc = direct ? p.c.stride : kPanel;
      const bool accumulate = !p.bias.empty() || (direct && p.epilogue == Epilogue::kAccumulate);
      for (int64_t r = 0; !p.bias.empty() && r < rows; ++r) {
        std::memcpy(c + r * ldc, p.bias.data() + column, static_cast<size_t>(columns) * sizeof(float));
        std::fill(c + r * ldc + columns, c + r * ldc + kPanel, 0.0f);  // none but of a dense tile's last columns
      }
      // Each tile asks for its share of the next panel.
      TileHints hints{.stream = streams};
      if (following != nullptr) hints.b = following + i * share_step * steps, hints.b_step = share_step;
      if (direct && !streams && i + 1 < item.tiles) hints.c = c + rows * ldc;
      const auto* b_f32 = reinterpret_cast<const float*>(b);
      const auto* b_bf16 = reinterpret_cast<const uint32_t*>(b);
      if (interleaved) {
        const uint32_t* from = scratch.interleaved + i * steps * k.max_rows;
        if (bf16) {
          k.outer_bf16(rows, steps, from, k.max_rows, b_bf16, kPanel, c, ldc, accumulate, hints);
        } else {
          k.outer_f32(rows, steps, reinterpret_cast<const float*>(from), k.max_rows, b_f32, kPanel, c, ldc, accumulate, hints);
        }
      } else {
        FindRows(p, row, rows, scratch.copies, a, k);
        if (bf16) {
          k.tile_bf16(rows, steps, a, b_bf16, kPanel, c, ldc, accumulate, hints);
        } else {
          k.tile_f32(rows, steps, reinterpret_cast<const float* const*>(a), b_f32, kPanel, c, ldc, accumulate, hints);
        }
      }
      if (direct) continue;
      if (!gated) {
        WriteRows(c, kPanel, rows, columns, p.c, row, column, p.epilogue == Epilogue::kAccumulate, stream && columns == kPanel,
                  k);
        continue;
      }
      if (!p.pre_activation.empty()) WriteRows(c, kPanel, rows, columns, p.pre_activation, row, column, false, false, k);
      k.swiglu(c, rows * kPanel / 2, scratch.half);
      WriteRows(scratch.half, kPanel / 2, rows, columns / 2, p.c, row, column / 2, false, false, k);
    }
  }
  if (stream) k.stream_fence();
}

// Can c be written past the caches, in whole lines?
bool CanStream(const GemmProblem& p) {
  return p.epilogue == Epilogue::kStore && p.bias.empty() && reinterpret_cast<uintptr_t>(p.c.data) % kAlignment == 0 &&
         p.c.stride * SizeOf(p.c.dtype) % kAlignment == 0;
}

void CheckProblem(const GemmProblem& p) {
  MOE_CHECK(p.weight != nullptr && !p.weight->empty(), "a product without a weight");
  const PackedWeight& w = *p.weight;
  MOE_CHECK(w.N >= 0 && w.K >= 0, "a weight [{},{}]", w.N, w.K);
  CheckExtents(p.a, "a"), CheckExtents(p.c, "c"), CheckExtents(p.pre_activation, "pre_activation");
  MOE_CHECK(p.a.cols == w.K, "a has {} columns, the weight {} inputs", p.a.cols, w.K);
  const int64_t M = p.c.rows;
  CheckRows(p.a, p.a_rows, M);
  MOE_CHECK(p.a.dtype == DType::kF32 || w.format == DType::kBf16, "a of {} by a weight of {}", Name(p.a.dtype), Name(w.format));
  MOE_CHECK(p.bias.empty() || (static_cast<int64_t>(p.bias.size()) == w.N && p.epilogue != Epilogue::kAccumulate),
            "a bias of {} for {} outputs, epilogue {}", p.bias.size(), w.N, static_cast<int>(p.epilogue));
  MOE_CHECK(p.c.dtype == DType::kF32 || p.epilogue != Epilogue::kAccumulate, "sums in {}", Name(p.c.dtype));
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

int64_t CachedOutputBytes(int num_threads) {
  return num_threads * std::max(GetCpuInfo().l2_bytes, kLeastL2);
}

void GroupedGemm(std::span<const GemmProblem> problems, ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  const KernelTable& k = ctx.kernels;
  MOE_CHECK(k.max_rows <= kMaxTileRows, "{} rows in a tile", k.max_rows);
  // What a step takes must not depend on where its tokens go: as if one problem had all rows.
  int64_t all_rows = 0, copies = 0, interleaved = 0;  // words
  for (const GemmProblem& p : problems) CheckProblem(p), all_rows += p.c.rows;
  const int64_t tiles = std::min(kLimits.tiles, CeilDiv(all_rows, k.max_rows));
  for (const GemmProblem& p : problems) {
    copies = std::max(copies, CopyStride(*p.weight) * k.max_rows);
    interleaved = std::max(interleaved, Steps(*p.weight) * k.max_rows * tiles);
  }
  const auto tiles_of = [&](const GemmProblem& p) { return CeilDiv(p.c.rows, k.max_rows); };
  const auto items = MakeWorkList(
      static_cast<int64_t>(problems.size()),
      [&](int64_t i) {
        const GemmProblem& p = problems[static_cast<size_t>(i)];
        return WorkShape{tiles_of(p), p.weight->num_panels(), Steps(*p.weight), kLimits};
      },
      ctx);
  // What the threads' L2 cannot keep is written past the caches: no line is read to be overwritten, and the rows of c, often at
  // a stride of a power of two, do not drive the operands out.
  int64_t written = 0;
  for (const GemmProblem& p : problems) written += p.c.rows * p.c.cols * SizeOf(p.c.dtype);
  const bool stream =
      written > (ctx.switches.stream_bytes > 0 ? ctx.switches.stream_bytes : CachedOutputBytes(ctx.pool.num_threads()));
  const auto scratch = ctx.arena.Alloc<Scratch>(ctx.pool.num_threads());
  for (Scratch& s : scratch) {
    s = {.copies = ctx.arena.Alloc<uint32_t>(copies).data(),
         .interleaved = ctx.arena.Alloc<uint32_t>(interleaved + kMaxTileRows).data(),
         .tile = ctx.arena.Alloc<float>(kMaxTileRows * kPanel).data(),
         .half = ctx.arena.Alloc<float>(kMaxTileRows * kPanel / 2).data()};
  }
  ctx.pool.ParallelFor(static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    const WorkItem& item = items[static_cast<size_t>(i)];
    const GemmProblem& p = problems[static_cast<size_t>(item.problem)];
    // Items are handed out in order, so the next one of this thread is as many further on as there are threads, give or take.
    const int64_t next = i + ctx.pool.num_threads();
    const std::byte* after = nullptr;
    if (next < static_cast<int64_t>(items.size())) {
      const WorkItem& other = items[static_cast<size_t>(next)];
      after = problems[static_cast<size_t>(other.problem)].weight->panel(other.panel);
    }
    RunItem(p, item, tiles_of(p), after, Interleaves(item, ctx.switches), stream && CanStream(p),
            scratch[static_cast<size_t>(thread)], k);
  });
}

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
  CheckExtents(w, "w");
  MOE_CHECK(reinterpret_cast<uintptr_t>(bytes.data()) % kAlignment == 0, "bytes to pack into at {}, expected a multiple of {}",
            static_cast<const void*>(bytes.data()), kAlignment);
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
