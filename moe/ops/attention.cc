#include "moe/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "moe/ops/attention_blocks.h"

namespace moe {
namespace {

constexpr int64_t kQueryRows = 96;  // of a work item: a multiple of every table's tile

// Stacked rows [row, row+rows) of a segment for one key/value head: row s is query head s % R of the group at position
// first_position + s / R, so that the heads of a group share keys, values and tiles.
struct Item {
  int32_t segment, kv_head, rows;
  int64_t row, cost;
};

// Where the transposed keys of a segment lie when its items share them; -1: each item turns its own.
struct SharedKeys {
  int64_t offset;
  int64_t blocks;
};

struct Scratch {
  std::span<float> q, out, scores, keys, values, max, sum, rescale;
};

struct Sizes {
  int64_t R, P, padded;  // query heads of a group; head width, and the same in whole panels
  int64_t block;         // floats of a transposed key block
};

void RunItem(const AttentionShape& shape, const Sizes& z, const AttentionSegment& segment, const Item& item,
             MatView<const float> q, const float* shared_keys, MatView<float> out, MatView<float> log_sum_exp,
             const Scratch& scratch, const KernelTable& k) {
  const auto head_of = [&](int64_t s) { return item.kv_head * z.R + s % z.R; };
  for (int64_t r = 0; r < item.rows; ++r) {
    const int64_t s = item.row + r;
    float* row = scratch.q.data() + r * z.P;
    std::memcpy(row, q.row(segment.row_begin + s / z.R) + head_of(s) * z.P, static_cast<size_t>(z.P) * sizeof(float));
    k.scale(shape.scale, z.P, row);
    scratch.max[static_cast<size_t>(r)] = -INFINITY, scratch.sum[static_cast<size_t>(r)] = 0.0f;
  }
  const int64_t num_keys = segment.first_position + (item.row + item.rows - 1) / z.R + 1;
  const float* k_head = segment.k + item.kv_head * z.P;
  const float* v_head = segment.v + item.kv_head * z.P;
  for (int64_t begin = 0; begin < num_keys; begin += kKeyBlock) {
    const int64_t keys_here = std::min(kKeyBlock, num_keys - begin);
    const float* keys = shared_keys != nullptr ? shared_keys + begin / kKeyBlock * z.block : scratch.keys.data();
    if (shared_keys == nullptr)
      TransposeBlock(k_head + begin * segment.kv_stride, segment.kv_stride, keys_here, z.P, scratch.keys.data(), k);
    const BlockRows values =
        PanelRows(v_head + begin * segment.kv_stride, segment.kv_stride, keys_here, z.P, scratch.values.data());
    // Rows that stand before this block do not see it.
    const int64_t first = std::max<int64_t>(0, (begin - segment.first_position) * z.R - item.row);
    for (int64_t r0 = first; r0 < item.rows; r0 += k.max_rows) {
      const int64_t rows = std::min(k.max_rows, item.rows - r0);
      const float* a[kMaxTileRows];
      int32_t valid[kMaxTileRows];
      for (int64_t r = 0; r < rows; ++r) {
        a[r] = scratch.q.data() + (r0 + r) * z.P;
        const int64_t position = segment.first_position + (item.row + r0 + r) / z.R;
        valid[r] = static_cast<int32_t>(std::min(kKeyBlock, position + 1 - begin));
      }
      const int64_t widest = valid[rows - 1];
      float* scores = scratch.scores.data();
      for (int64_t c = 0; c < widest; c += kPanel)
        k.tile_f32(rows, z.P, a, keys + c * z.P, kPanel, scores + c, kKeyBlock, false);
      k.softmax_block(rows, valid, scores, scratch.max.data() + r0, scratch.sum.data() + r0, scratch.rescale.data());
      float* o = scratch.out.data() + r0 * z.padded;
      for (int64_t r = 0; r < rows; ++r) {
        const float factor = scratch.rescale[static_cast<size_t>(r)];
        if (begin > 0 && factor != 1.0f) k.scale(factor, z.padded, o + r * z.padded);
        a[r] = scores + r * kKeyBlock;
      }
      for (int64_t c = 0; c < z.padded; c += kPanel)
        k.tile_f32(rows, widest, a, values.at(c), values.stride(c), o + c, z.padded, begin > 0);
    }
  }
  for (int64_t r = 0; r < item.rows; ++r) {
    const int64_t s = item.row + r, row = segment.row_begin + s / z.R;
    const float sum = scratch.sum[static_cast<size_t>(r)];
    float* o = scratch.out.data() + r * z.padded;
    k.scale(1.0f / sum, z.P, o);
    std::memcpy(out.row(row) + head_of(s) * z.P, o, static_cast<size_t>(z.P) * sizeof(float));
    if (!log_sum_exp.empty()) log_sum_exp(row, head_of(s)) = scratch.max[static_cast<size_t>(r)] + std::log(sum);
  }
}

}  // namespace

void AttentionForward(const AttentionShape& shape, MatView<const float> q, std::span<const AttentionSegment> segments,
                      MatView<float> out, MatView<float> log_sum_exp, ExecContext& ctx) {
  CheckShape(shape, ctx);
  const int64_t H = shape.num_heads, G = shape.num_kv_heads, P = shape.head_width;
  MOE_CHECK(q.cols == H * P && out.rows == q.rows && out.cols == q.cols, "q [{},{}] out [{},{}], expected [T,{}]", q.rows,
            q.cols, out.rows, out.cols, H * P);
  MOE_CHECK(log_sum_exp.empty() || (log_sum_exp.rows == q.rows && log_sum_exp.cols == H),
            "log_sum_exp [{},{}], expected [{},{}]", log_sum_exp.rows, log_sum_exp.cols, q.rows, H);
  const Sizes z{.R = H / G, .P = P, .padded = RoundUpToPanel(P), .block = kKeyBlock * P};
  Arena::Scope scope(ctx.arena);

  // Segments of several items turn their keys once, beforehand.
  const auto shared = ctx.arena.Alloc<SharedKeys>(static_cast<int64_t>(segments.size()));
  int64_t num_items = 0, shared_blocks = 0, jobs = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const AttentionSegment& s = segments[i];
    MOE_CHECK(s.row_begin >= 0 && s.num_rows >= 0 && s.row_begin + s.num_rows <= q.rows && s.first_position >= 0,
              "segment {}: rows {}+{} of {}, position {}", i, s.row_begin, s.num_rows, q.rows, s.first_position);
    MOE_CHECK(s.num_rows == 0 || (s.k != nullptr && s.v != nullptr && s.kv_stride >= G * P), "segment {}: kv_stride {}", i,
              s.kv_stride);
    const int64_t blocks_of_rows = CeilDiv(s.num_rows * z.R, kQueryRows);
    num_items += blocks_of_rows * G;
    shared[i] = {-1, CeilDiv(s.first_position + s.num_rows, kKeyBlock)};
    if (blocks_of_rows < 2) continue;
    shared[i].offset = shared_blocks * z.block;
    shared_blocks += shared[i].blocks * G;
    jobs += shared[i].blocks;
  }
  struct Job {
    int32_t segment, block;
  };
  const auto keys = ctx.arena.Alloc<float>(shared_blocks * z.block);
  const auto key_jobs = ctx.arena.Alloc<Job>(jobs);
  const auto items = ctx.arena.Alloc<Item>(num_items);
  num_items = jobs = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const AttentionSegment& s = segments[i];
    for (int64_t row = 0; row < s.num_rows * z.R; row += kQueryRows) {
      const int64_t rows = std::min(kQueryRows, s.num_rows * z.R - row);
      const int64_t cost = rows * (s.first_position + (row + rows - 1) / z.R + 1);
      for (int64_t g = 0; g < G; ++g) {
        items[static_cast<size_t>(num_items++)] = {static_cast<int32_t>(i), static_cast<int32_t>(g), static_cast<int32_t>(rows),
                                                   row, cost};
      }
    }
    for (int64_t block = 0; shared[i].offset >= 0 && block < shared[i].blocks; ++block)
      key_jobs[static_cast<size_t>(jobs++)] = {static_cast<int32_t>(i), static_cast<int32_t>(block)};
  }
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    if (a.cost != b.cost) return a.cost > b.cost;
    if (a.segment != b.segment) return a.segment < b.segment;
    return a.kv_head != b.kv_head ? a.kv_head < b.kv_head : a.row < b.row;
  });
  ctx.pool.ParallelFor(jobs, [&](int64_t j, int) {
    const Job& job = key_jobs[static_cast<size_t>(j)];
    const AttentionSegment& s = segments[static_cast<size_t>(job.segment)];
    const SharedKeys& to = shared[static_cast<size_t>(job.segment)];
    const int64_t begin = job.block * kKeyBlock, keys_here = std::min(kKeyBlock, s.first_position + s.num_rows - begin);
    for (int64_t g = 0; g < G; ++g) {
      TransposeBlock(s.k + begin * s.kv_stride + g * P, s.kv_stride, keys_here, P,
                     keys.data() + to.offset + (g * to.blocks + job.block) * z.block, ctx.kernels);
    }
  });

  const int64_t threads = ctx.pool.num_threads();
  const auto scratch = ctx.arena.Alloc<Scratch>(threads);
  for (Scratch& s : scratch) {
    s.q = ctx.arena.Alloc<float>(kQueryRows * P);
    s.out = ctx.arena.Alloc<float>(kQueryRows * z.padded);
    s.scores = ctx.arena.Alloc<float>(kMaxTileRows * kKeyBlock);
    s.keys = ctx.arena.Alloc<float>(z.block);
    s.values = ctx.arena.Alloc<float>(kKeyBlock * kPanel);
    s.max = ctx.arena.Alloc<float>(kQueryRows), s.sum = ctx.arena.Alloc<float>(kQueryRows);
    s.rescale = ctx.arena.Alloc<float>(kMaxTileRows);
  }
  ctx.pool.ParallelFor(num_items, [&](int64_t i, int thread) {
    const Item& item = items[static_cast<size_t>(i)];
    const SharedKeys& from = shared[static_cast<size_t>(item.segment)];
    RunItem(shape, z, segments[static_cast<size_t>(item.segment)], item, q,
            from.offset < 0 ? nullptr : keys.data() + from.offset + item.kv_head * from.blocks * z.block, out, log_sum_exp,
            scratch[static_cast<size_t>(thread)], ctx.kernels);
  });
}

}  // namespace moe
