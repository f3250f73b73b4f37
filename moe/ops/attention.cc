#include "moe/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "moe/ops/attention_blocks.h"

namespace moe {
namespace {

constexpr int64_t kQueryRows = 96;  // of a work item: a multiple of every table's tile

// Stacked rows [row, row+rows) of a segment for each of `heads` key/value heads: row s is query head s % R of the group at
// position first_position + s / R, so that the heads of a group share keys, values and tiles.
struct Item {
  int32_t segment, kv_head, heads, rows;
  int64_t row;
  int64_t cost;  // of the whole segment
};

// Where the transposed keys of a segment lie when its items share them; -1: each item turns its own.
struct SharedKeys {
  int64_t offset;
  int64_t blocks;
};

// Of one thread. Rows of an item's heads lie one head after the other, kQueryRows in all.
struct Scratch {
  std::span<float> q, out, max, sum;
  std::span<float> scores, rescale;  // of one tile
  std::span<float> keys, value_tail;
  std::span<int64_t> position;  // of each stacked row
};

struct Sizes {
  int64_t R, P, padded;  // query heads of a group; head width, and the same in whole panels
  int64_t block;         // floats of a transposed key block
};

// fn(r, row of q, query head) for the rows of an item, head by head.
template <class F>
void ForEachRow(const Sizes& z, const AttentionSegment& segment, const Item& item, F&& fn) {
  for (int64_t g = 0, r = 0; g < item.heads; ++g) {
    int64_t i = item.row / z.R, head = item.row % z.R;
    for (int64_t end = r + item.rows; r < end; ++r) {
      fn(r, segment.row_begin + i, (item.kv_head + g) * z.R + head);
      if (++head == z.R) head = 0, ++i;
    }
  }
}

// A decode reads keys and values once, from memory, head by head in short pieces: so slowly that it pays to walk the rows of
// the block first, all heads of the item in one go, as the hardware foresees it.
void Touch(const float* rows, int64_t stride, int64_t count, int64_t width) {
  constexpr int64_t kLine = 16;  // floats
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < width; c += kLine) static_cast<void>(*static_cast<const volatile float*>(rows + i * stride + c));
  }
}

// One head's rows, of which the first is row `at` of the scratch, against the block of keys that begins at `begin`.
void RunBlock(const Sizes& z, const AttentionSegment& segment, const Item& item, int64_t at, int64_t begin, const float* keys,
              const BlockRows& values, const Scratch& scratch, const KernelTable& k) {
  // Rows that stand before this block do not see it.
  const int64_t first = std::max<int64_t>(0, (begin - segment.first_position) * z.R - item.row);
  for (int64_t r0 = first; r0 < item.rows; r0 += k.max_rows) {
    const int64_t rows = std::min(k.max_rows, item.rows - r0), s0 = at + r0;
    const float* a[kMaxTileRows];
    int32_t valid[kMaxTileRows];
    for (int64_t r = 0; r < rows; ++r) {
      a[r] = scratch.q.data() + (s0 + r) * z.P;
      valid[r] = static_cast<int32_t>(std::min(kKeyBlock, scratch.position[static_cast<size_t>(s0 + r)] + 1 - begin));
    }
    const int64_t widest = valid[rows - 1];
    float* scores = scratch.scores.data();
    for (int64_t c = 0; c < widest; c += kPanel)
      k.tile_f32(rows, z.P, a, keys + c * z.P, kPanel, scores + c, kKeyBlock, false, {});
    k.softmax_block(rows, valid, scores, scratch.max.data() + s0, scratch.sum.data() + s0, scratch.rescale.data());
    float* o = scratch.out.data() + s0 * z.padded;
    for (int64_t r = 0; r < rows; ++r) {
      const float factor = scratch.rescale[static_cast<size_t>(r)];
      if (begin > 0 && factor != 1.0f) k.scale(factor, z.padded, o + r * z.padded);
      a[r] = scores + r * kKeyBlock;
    }
    for (int64_t c = 0; c < z.padded; c += kPanel)
      k.tile_f32(rows, widest, a, values.at(c), values.stride(c), o + c, z.padded, begin > 0, {});
  }
}

void RunItem(const AttentionShape& shape, const Sizes& z, const AttentionSegment& segment, const Item& item,
             MatView<const float> q, const float* shared_keys, MatView<float> out, MatView<float> log_sum_exp,
             const Scratch& scratch, const KernelTable& k) {
  const auto row_bytes = static_cast<size_t>(z.P) * sizeof(float);
  const int64_t rows = item.heads * item.rows;
  ForEachRow(z, segment, item, [&](int64_t r, int64_t row, int64_t head) {
    std::memcpy(scratch.q.data() + r * z.P, q.row(row) + head * z.P, row_bytes);
    scratch.position[static_cast<size_t>(r)] = segment.first_position + row - segment.row_begin;
  });
  k.scale(shape.scale, rows * z.P, scratch.q.data());
  std::fill_n(scratch.max.begin(), rows, -INFINITY);
  std::fill_n(scratch.sum.begin(), rows, 0.0f);

  const int64_t num_keys = scratch.position[static_cast<size_t>(item.rows - 1)] + 1, stride = segment.kv_stride;
  for (int64_t begin = 0; begin < num_keys; begin += kKeyBlock) {
    const int64_t keys_here = std::min(kKeyBlock, num_keys - begin);
    if (shared_keys == nullptr) {
      const int64_t at = begin * stride + item.kv_head * z.P;
      Touch(segment.k + at, stride, keys_here, item.heads * z.P);
      Touch(segment.v + at, stride, keys_here, item.heads * z.P);
    }
    for (int64_t g = 0; g < item.heads; ++g) {
      const int64_t column = (item.kv_head + g) * z.P, at = begin * stride + column;
      const float* keys = scratch.keys.data();
      if (shared_keys != nullptr) {
        keys = shared_keys + begin / kKeyBlock * z.block;
      } else {
        TransposeBlock(segment.k + at, stride, keys_here, z.P, scratch.keys.data(), k);
      }
      const BlockRows values = PanelRows(segment.v + at, stride, keys_here, z.P, scratch.value_tail.data());
      RunBlock(z, segment, item, g * item.rows, begin, keys, values, scratch, k);
    }
  }
  ForEachRow(z, segment, item, [&](int64_t r, int64_t row, int64_t head) {
    const float sum = scratch.sum[static_cast<size_t>(r)];
    float* o = scratch.out.data() + r * z.padded;
    k.scale(1.0f / sum, z.P, o);
    std::memcpy(out.row(row) + head * z.P, o, row_bytes);
    if (!log_sum_exp.empty()) log_sum_exp(row, head) = scratch.max[static_cast<size_t>(r)] + std::log(sum);
  });
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

  // Segments with more rows than an item takes turn their keys once, beforehand; the others, decodes above all, walk several
  // heads at a time, so that memory is read in long pieces, but leave work for every thread.
  const auto shared = ctx.arena.Alloc<SharedKeys>(static_cast<int64_t>(segments.size()));
  int64_t num_items = 0, shared_blocks = 0, jobs = 0, num_small = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const AttentionSegment& s = segments[i];
    MOE_CHECK(s.row_begin >= 0 && s.num_rows >= 0 && s.row_begin + s.num_rows <= q.rows && s.first_position >= 0,
              "segment {}: rows {}+{} of {}, position {}", i, s.row_begin, s.num_rows, q.rows, s.first_position);
    MOE_CHECK(s.num_rows == 0 || (s.k != nullptr && s.v != nullptr && s.kv_stride >= G * P), "segment {}: kv_stride {}", i,
              s.kv_stride);
    const int64_t blocks_of_rows = CeilDiv(s.num_rows * z.R, kQueryRows);
    num_items += blocks_of_rows * G;
    shared[i] = {-1, CeilDiv(s.first_position + s.num_rows, kKeyBlock)};
    if (blocks_of_rows < 2) {
      num_small += blocks_of_rows;
      continue;
    }
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
  const int64_t max_heads = std::max<int64_t>(1, num_small * G / (4 * ctx.pool.num_threads()));
  num_items = jobs = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const AttentionSegment& s = segments[i];
    const int64_t stacked = s.num_rows * z.R, cost = s.num_rows * (s.first_position + s.num_rows);
    const int64_t heads = stacked > kQueryRows ? 1 : std::min({G, max_heads, kQueryRows / std::max<int64_t>(1, stacked)});
    for (int64_t row = 0; row < stacked; row += kQueryRows) {
      for (int64_t g = 0; g < G; g += heads) {
        items[static_cast<size_t>(num_items++)] = {static_cast<int32_t>(i),
                                                   static_cast<int32_t>(g),
                                                   static_cast<int32_t>(std::min(heads, G - g)),
                                                   static_cast<int32_t>(std::min(kQueryRows, stacked - row)),
                                                   row,
                                                   cost};
      }
    }
    for (int64_t block = 0; shared[i].offset >= 0 && block < shared[i].blocks; ++block)
      key_jobs[static_cast<size_t>(jobs++)] = {static_cast<int32_t>(i), static_cast<int32_t>(block)};
  }
  // Largest first; items that share keys and values stay together, those with the most keys first.
  std::sort(items.begin(), items.begin() + num_items, [](const Item& a, const Item& b) {
    if (a.cost != b.cost) return a.cost > b.cost;
    if (a.segment != b.segment) return a.segment < b.segment;
    return a.kv_head != b.kv_head ? a.kv_head < b.kv_head : a.row > b.row;
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
    s.value_tail = ctx.arena.Alloc<float>(kKeyBlock * kPanel);
    s.max = ctx.arena.Alloc<float>(kQueryRows), s.sum = ctx.arena.Alloc<float>(kQueryRows);
    s.position = ctx.arena.Alloc<int64_t>(kQueryRows);
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
