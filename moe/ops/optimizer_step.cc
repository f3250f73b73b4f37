#include "moe/ops/optimizer_step.h"

#include <algorithm>

#include "moe/base/cpu_info.h"
#include "moe/ops/chunks.h"

namespace moe {
namespace {

// A block's new values stay in L2 until they are packed. Whole rows of a panel belong to one item: prefetchers run past the end
// of every piece of a row, and what they bring must be of use to the same core. Best are blocks of whole rows, one stream each:
// of kAdamwWholeRows a panel's values are 256 KiB.
constexpr int64_t kBlockColumns = 1024;   // of longer rows
constexpr int64_t kItemElements = 16384;  // at least, where the matrix has as many
constexpr int64_t kItemColumns = 16384;   // at most: longer rows are shared
// A step over less may find its packs in the cache afterwards. Virtual machines name caches of hundreds of megabytes, of which
// they have a part.
constexpr int64_t kMostCacheBytes = int64_t{32} << 20;

// How a tensor is cut: `count` matrices [N,K], each into items of `rows` by `cols`.
struct Cut {
  int64_t first_item, count, N, K, rows, cols;
  int64_t row_items() const { return CeilDiv(N, rows); }
  int64_t col_items() const { return CeilDiv(K, cols); }
  int64_t num_items() const { return count * row_items() * col_items(); }
};

Cut CutOf(const AdamwTensor& t, int64_t first_item) {
  const int64_t size = t.parameter->value.size();
  if (t.packed == nullptr) {  // a row per expert, or all in one
    const int64_t count = std::max<int64_t>(1, std::ssize(t.tokens_per_expert));
    return {first_item, count, 1, size / count, 1, kItemColumns};
  }
  const int64_t N = t.packed->N(), K = t.packed->K(), cols = std::min(K, kItemColumns);
  const int64_t panels = std::max<int64_t>(1, kItemElements / std::max<int64_t>(1, kPanel * cols));
  return {first_item, t.packed->count(), N, K, panels * kPanel, std::max<int64_t>(1, cols)};
}

void CheckTensor(const AdamwTensor& t) {
  MOE_CHECK(t.parameter != nullptr, "a step of no parameter");
  const Parameter& p = *t.parameter;
  const auto size = static_cast<size_t>(p.value.size());
  MOE_CHECK(p.grad.span().size() == size && t.m.size() == size && t.v.size() == size,
            "{}: grad [{}] m [{}] v [{}], expected [{}]", p.name, p.grad.span().size(), t.m.size(), t.v.size(), size);
  MOE_CHECK(t.tokens_per_expert.empty() || (p.value.shape()[0] == std::ssize(t.tokens_per_expert)),
            "{}: counts of {} experts, of {}", p.name, t.tokens_per_expert.size(), p.value.shape()[0]);
  if (t.packed == nullptr) return;
  MOE_CHECK(&t.packed->parameter() == &p, "{}: the packs of {}", p.name, t.packed->parameter().name);
  MOE_CHECK(std::ssize(t.packed->transposed_all()) == t.packed->count(), "{} was never packed for training", p.name);
}

struct Piece {  // of one matrix
  int64_t matrix, row, rows, col, cols;
};

void RunPiece(const AdamwStep& step, const AdamwTensor& t, const Cut& cut, const Piece& p, bool stream, const KernelTable& k) {
  const int64_t K = cut.K, matrix = p.matrix * cut.N * K, panel_rows = t.packed == nullptr ? p.rows : kPanel;
  float *grad = t.parameter->grad.data() + matrix, *value = t.parameter->value.data() + matrix;
  float *m = t.m.data() + matrix, *v = t.v.data() + matrix;
  const bool whole_rows = t.packed == nullptr || K <= kAdamwWholeRows;
  const int64_t block = whole_rows ? p.cols : kBlockColumns, col_end = p.col + p.cols, row_end = p.row + p.rows;
  for (int64_t row = p.row; row < row_end; row += panel_rows) {
    const int64_t rows = std::min(panel_rows, row_end - row);
    for (int64_t col = p.col; col < col_end; col += block) {
      const int64_t cols = std::min(block, col_end - col);
      for (int64_t r = row; r < row + rows; ++r) {
        // Where the memory does not go on by itself, next come the row below; the block to the right; the panel below.
        int64_t next = whole_rows ? 0 : K;
        if (!whole_rows && r + 1 == row + rows)
          next = col + cols < col_end ? cols - (rows - 1) * K : r + 1 < row_end ? K - (col - p.col) : 0;
        const int64_t at = r * K + col;
        k.adamw(step, cols, next, grad + at, value + at, m + at, v + at);
      }
      if (t.packed != nullptr) t.packed->PackBlock(p.matrix, row, rows, col, cols, stream, k);
    }
  }
}

}  // namespace

void AdamwPass(const AdamwStep& step, std::span<const AdamwTensor> tensors, ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  const auto cuts = ctx.arena.Alloc<Cut>(std::ssize(tensors));
  int64_t num_items = 0, bytes = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    CheckTensor(tensors[i]);
    cuts[i] = CutOf(tensors[i], num_items);
    num_items += cuts[i].num_items();
    bytes += 4 * 4 * tensors[i].parameter->value.size();
    if (tensors[i].packed != nullptr) bytes += tensors[i].packed->StorageBytes(true);
  }
  const int64_t cache = GetCpuInfo().l3_bytes;
  const bool stream = bytes > (cache > 0 ? std::min(cache, kMostCacheBytes) : kMostCacheBytes);
  ctx.pool.ParallelFor(num_items, [&](int64_t item, int) {
    const auto after =
        std::upper_bound(cuts.begin(), cuts.end(), item, [](int64_t i, const Cut& c) { return i < c.first_item; });
    const Cut& cut = *(after - 1);
    const AdamwTensor& t = tensors[static_cast<size_t>(&cut - cuts.data())];
    const int64_t i = item - cut.first_item, col_item = i % cut.col_items(), row_item = i / cut.col_items() % cut.row_items();
    const int64_t matrix = i / (cut.col_items() * cut.row_items()), row = row_item * cut.rows, col = col_item * cut.cols;
    if (!t.tokens_per_expert.empty() && t.tokens_per_expert[static_cast<size_t>(matrix)] == 0) return;
    AdamwStep own = step;
    own.weight_decay = t.weight_decay;
    RunPiece(own, t, cut, {matrix, row, std::min(cut.rows, cut.N - row), col, std::min(cut.cols, cut.K - col)}, stream,
             ctx.kernels);
  });
}

}  // namespace moe
