#include "moe/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "moe/ops/attention_blocks.h"

namespace moe {
namespace {

constexpr int64_t kQueryRows = 96;  // of a work item: a multiple of every table's tile

constexpr int64_t kStages = 3;

// Stacked rows [row, row+rows) of a segment for each of `heads` key/value heads: row s is query head s % R of the group at
// position first_position + s / R, so that the heads of a group share keys, values and tiles.
struct Item {
  int32_t segment, kv_head, heads, rows;
  int64_t row;
  int64_t cost;  // of the whole segment
};

// Which blocks hold a segment's keys and values when its items share them; -1: each item lays out its own.
struct SharedBlocks {
  int64_t first;  // of the first head; the others follow
  int64_t count;  // of one head
};

// Blocks of keys, transposed, and of values, spread, one after the other.
template <class Word>
struct Blocks {
  Word *keys, *values;
};

// Of one thread. Rows of an item's heads lie one head after the other, kQueryRows in all.
template <class Word>
struct Scratch {
  std::span<Word> q, q_tiles;  // rows; the same, turned tile by tile, of items of one head
  std::span<float> out, max, sum;
  std::span<float> scores;  // of kStages tiles
  std::span<Word> p;        // the same
  Blocks<Word> block;
  std::span<float> value_tail;
  std::span<int64_t> position;  // of each stacked row
};

struct Sizes {
  int64_t R, P, padded;  // query heads of a group; head width, and the same in whole panels
  int64_t words;         // of a head's row
  int64_t keys, values;  // words of a block of keys, of values
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

template <class Word>
void RowPointers(const Word* rows, int64_t count, int64_t stride, const Word** a) {
  for (int64_t r = 0; r < count; ++r) a[r] = rows + r * stride;
}

// The parts of a row's sum in a tree.
float Fold(const float* parts) {
  static_assert(kSoftmaxSums == 16);
  float eight[8], four[4];
  for (int i = 0; i < 8; ++i) eight[i] = parts[i] + parts[i + 8];
  for (int i = 0; i < 4; ++i) four[i] = eight[i] + eight[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// A decode reads keys and values once, from memory, head by head in short pieces: so slowly that it pays to walk the rows of
// the block first, all heads of the item in one go, as the hardware foresees it.
void Touch(const float* rows, int64_t stride, int64_t count, int64_t width) {
  constexpr int64_t kLine = 16;  // floats
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < width; c += kLine) static_cast<void>(*static_cast<const volatile float*>(rows + i * stride + c));
  }
}

// One head's rows, of which the first is row `at` of the scratch, against the block of keys that begins at `begin`. Tiles go
// through three stages, each stage a tile behind the one before it: nothing waits for the results of what was just issued.
template <class Word>
void RunBlock(const Sizes& z, const AttentionSegment& segment, const Item& item, int64_t at, int64_t begin, const Word* keys,
              const BlockRows<Word>& values, const Scratch<Word>& scratch, const KernelTable& k) {
  const auto dots = ForWords<Word>(k.outer_f32, k.outer_bf16);
  const auto dots_of_rows = ForWords<Word>(k.tile_f32, k.tile_bf16);
  const auto weighted_sums = ForWords<Word>(k.block_f32, k.block_bf16);
  // Tiles whose rows all stand before this block do not see it.
  const int64_t first = std::max<int64_t>(0, (begin - segment.first_position) * z.R - item.row) / k.max_rows;
  const int64_t num_tiles = CeilDiv(item.rows, k.max_rows) - first;
  const int64_t* const position = scratch.position.data() + at;
  const auto rows_of = [&](int64_t r0) { return std::min(k.max_rows, item.rows - r0); };
  const auto widest = [&](int64_t r0) { return std::min(kKeyBlock, position[r0 + rows_of(r0) - 1] + 1 - begin); };
  const auto scores = [&](int64_t t) { return scratch.scores.data() + t % kStages * kMaxTileRows * kKeyBlock; };
  const auto p = [&](int64_t t) { return scratch.p.data() + t % kStages * kMaxTileRows * kKeyBlock / kPerWord<Word>; };
  for (int64_t step = 0; step < num_tiles + 2; ++step) {
    if (const int64_t t = step; t < num_tiles) {
      const int64_t r0 = (first + t) * k.max_rows, rows = rows_of(r0), columns = widest(r0);
      const Word* a[kMaxTileRows];
      if (item.heads > 1) RowPointers(scratch.q.data() + (at + r0) * z.words, rows, z.words, a);
      for (int64_t c = 0; c < columns; c += kPanel) {
        const Word* b = keys + c * z.words;
        if (item.heads > 1) {
          dots_of_rows(rows, z.words, a, b, kPanel, scores(t) + c, kKeyBlock, false, {});
        } else {
          dots(rows, z.words, scratch.q_tiles.data() + r0 * z.words, k.max_rows, b, kPanel, scores(t) + c, kKeyBlock, false,
               {});
        }
      }
    }
    if (const int64_t t = step - 1; t >= 0 && t < num_tiles) {
      const int64_t r0 = (first + t) * k.max_rows, rows = rows_of(r0), s0 = at + r0;
      int32_t valid[kMaxTileRows];
      for (int64_t r = 0; r < rows; ++r) valid[r] = static_cast<int32_t>(std::min(kKeyBlock, position[r0 + r] + 1 - begin));
      float rescale[kMaxTileRows];
      float* powers = nullptr;
      uint32_t* pairs = nullptr;
      if constexpr (kPerWord<Word> == 2) {
        pairs = p(t);
      } else {
        powers = p(t);
      }
      const bool moved = k.softmax_block(rows, valid, scores(t), scratch.max.data() + s0,
                                         scratch.sum.data() + s0 * kSoftmaxSums, rescale, powers, pairs);
      for (int64_t r = 0; begin > 0 && moved && r < rows; ++r) {
        if (rescale[r] != 1) k.scale(rescale[r], z.padded, scratch.out.data() + (s0 + r) * z.padded);
      }
    }
    if (const int64_t t = step - 2; t >= 0) {
      const int64_t r0 = (first + t) * k.max_rows;
      const int64_t words = CeilDiv(widest(r0), kPerWord<Word>);
      float* const out = scratch.out.data() + (at + r0) * z.padded;
      for (int64_t c = 0; c < z.padded; c += kPanel)
        weighted_sums(rows_of(r0), words, p(t), values.at(c), values.stride_at(c), out + c, z.padded, begin > 0);
    }
  }
}

// shared: the segment's blocks of the item's head, or null.
template <class Word>
void RunItem(const AttentionShape& shape, const Sizes& z, const AttentionSegment& segment, const Item& item,
             MatView<const float> q, Blocks<Word> shared, MatView<float> out, MatView<float> log_sum_exp,
             const Scratch<Word>& scratch, const KernelTable& k) {
  const auto row_bytes = static_cast<size_t>(z.P) * sizeof(float);
  const int64_t rows = item.heads * item.rows;
  // What is rounded afterwards is scaled where the results will be.
  float* scaled = kPerWord<Word> == 2 ? scratch.out.data() : reinterpret_cast<float*>(scratch.q.data());
  ForEachRow(z, segment, item, [&](int64_t r, int64_t row, int64_t head) {
    std::memcpy(scaled + r * z.P, q.row(row) + head * z.P, row_bytes);
    scratch.position[static_cast<size_t>(r)] = segment.first_position + row - segment.row_begin;
  });
  k.scale(shape.scale, rows * z.P, scaled);
  if constexpr (kPerWord<Word> == 2) k.to_bf16(scaled, rows * z.P, reinterpret_cast<Bf16*>(scratch.q.data()));
  for (int64_t r0 = 0; item.heads == 1 && r0 < rows; r0 += k.max_rows) {
    const int64_t here = std::min(k.max_rows, rows - r0);
    const uint32_t* a[kMaxTileRows];
    RowPointers(reinterpret_cast<const uint32_t*>(scratch.q.data()) + r0 * z.words, here, z.words, a);
    k.interleave_tile(here, z.words, a, reinterpret_cast<uint32_t*>(scratch.q_tiles.data() + r0 * z.words));
  }
  std::fill_n(scratch.max.begin(), rows, -INFINITY);
  std::fill_n(scratch.sum.begin(), rows * kSoftmaxSums, 0.0f);

  const int64_t num_keys = scratch.position[static_cast<size_t>(item.rows - 1)] + 1, stride = segment.kv_stride;
  for (int64_t begin = 0; begin < num_keys; begin += kKeyBlock) {
    const int64_t keys_here = std::min(kKeyBlock, num_keys - begin);
    if (shared.keys == nullptr) {
      const int64_t at = begin * stride + item.kv_head * z.P;
      Touch(segment.k + at, stride, keys_here, item.heads * z.P);
      Touch(segment.v + at, stride, keys_here, item.heads * z.P);
    }
    for (int64_t g = 0; g < item.heads; ++g) {
      const int64_t column = (item.kv_head + g) * z.P, at = begin * stride + column;
      const float *k_rows = segment.k + at, *v_rows = segment.v + at;
      const Word* keys = scratch.block.keys;
      BlockRows<Word> values;
      if (shared.keys != nullptr) {
        keys = shared.keys + begin / kKeyBlock * z.keys;
        values = SpreadRows<Word>(shared.values + begin / kKeyBlock * z.values, z.P);
      } else {
        TransposeBlock(k_rows, stride, keys_here, z.P, scratch.block.keys, k);
        if constexpr (kPerWord<Word> == 2) {
          SpreadBlock(v_rows, stride, keys_here, z.P, scratch.block.values, k);
          values = SpreadRows<Word>(scratch.block.values, z.P);
        } else {
          values = RowsInPlace(v_rows, stride, keys_here, z.P, scratch.value_tail.data());
        }
      }
      RunBlock(z, segment, item, g * item.rows, begin, keys, values, scratch, k);
    }
  }
  ForEachRow(z, segment, item, [&](int64_t r, int64_t row, int64_t head) {
    const float sum = Fold(scratch.sum.data() + r * kSoftmaxSums);
    float* o = scratch.out.data() + r * z.padded;
    k.scale(1.0f / sum, z.P, o);
    std::memcpy(out.row(row) + head * z.P, o, row_bytes);
    if (!log_sum_exp.empty()) log_sum_exp(row, head) = scratch.max[static_cast<size_t>(r)] + std::log(sum);
  });
}

template <class Word>
void Forward(const AttentionShape& shape, MatView<const float> q, std::span<const AttentionSegment> segments,
             MatView<float> out, MatView<float> log_sum_exp, ExecContext& ctx) {
  const int64_t H = shape.num_heads, G = shape.num_kv_heads, P = shape.head_width, words = P / kPerWord<Word>;
  const Sizes z{.R = H / G,
                .P = P,
                .padded = RoundUpToPanel(P),
                .words = words,
                .keys = kKeyBlock * words,
                .values = RoundUpToPanel(P) * kKeyBlock / kPerWord<Word>};
  Arena::Scope scope(ctx.arena);

  // Segments with more rows than an item takes lay out their keys and values once, beforehand; the others, decodes above all,
  // walk several heads at a time, so that memory is read in long pieces, but leave work for every thread.
  const auto shared = ctx.arena.Alloc<SharedBlocks>(static_cast<int64_t>(segments.size()));
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
    shared[i].first = shared_blocks;
    shared_blocks += shared[i].count * G;
    jobs += shared[i].count;
  }
  struct Job {
    int32_t segment, block;
  };
  const auto keys = ctx.arena.Alloc<Word>(shared_blocks * z.keys), values = ctx.arena.Alloc<Word>(shared_blocks * z.values);
  const auto block_jobs = ctx.arena.Alloc<Job>(jobs);
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
    for (int64_t block = 0; shared[i].first >= 0 && block < shared[i].count; ++block)
      block_jobs[static_cast<size_t>(jobs++)] = {static_cast<int32_t>(i), static_cast<int32_t>(block)};
  }
  // Largest first; items that share keys and values stay together, those with the most keys first.
  std::sort(items.begin(), items.begin() + num_items, [](const Item& a, const Item& b) {
    if (a.cost != b.cost) return a.cost > b.cost;
    if (a.segment != b.segment) return a.segment < b.segment;
    return a.kv_head != b.kv_head ? a.kv_head < b.kv_head : a.row > b.row;
  });
  ctx.pool.ParallelFor(jobs, [&](int64_t j, int) {
    const Job& job = block_jobs[static_cast<size_t>(j)];
    const AttentionSegment& s = segments[static_cast<size_t>(job.segment)];
    const SharedBlocks& to = shared[static_cast<size_t>(job.segment)];
    const int64_t begin = job.block * kKeyBlock, keys_here = std::min(kKeyBlock, s.first_position + s.num_rows - begin);
    for (int64_t g = 0; g < G; ++g) {
      const int64_t at = begin * s.kv_stride + g * P, block = to.first + g * to.count + job.block;
      TransposeBlock(s.k + at, s.kv_stride, keys_here, P, keys.data() + block * z.keys, ctx.kernels);
      SpreadBlock(s.v + at, s.kv_stride, keys_here, P, values.data() + block * z.values, ctx.kernels);
    }
  });

  const int64_t threads = ctx.pool.num_threads();
  const auto scratch = ctx.arena.Alloc<Scratch<Word>>(threads);
  for (Scratch<Word>& s : scratch) {
    s.q = ctx.arena.Alloc<Word>(kQueryRows * words);
    s.q_tiles = ctx.arena.Alloc<Word>(kQueryRows * words + kMaxTileRows);
    s.out = ctx.arena.Alloc<float>(kQueryRows * z.padded);
    s.scores = ctx.arena.Alloc<float>(kStages * kMaxTileRows * kKeyBlock);
    s.p = ctx.arena.Alloc<Word>(kStages * kMaxTileRows * kKeyBlock / kPerWord<Word>);
    s.block = {ctx.arena.Alloc<Word>(z.keys).data(), kPerWord<Word> == 2 ? ctx.arena.Alloc<Word>(z.values).data() : nullptr};
    s.value_tail = ctx.arena.Alloc<float>(kPerWord<Word> == 2 ? 0 : kKeyBlock * kPanel);
    s.max = ctx.arena.AllocZero<float>(kQueryRows + kMaxTileRows);
    s.sum = ctx.arena.Alloc<float>(kQueryRows * kSoftmaxSums);
    s.position = ctx.arena.Alloc<int64_t>(kQueryRows);
  }
  ctx.pool.ParallelFor(num_items, [&](int64_t i, int thread) {
    const Item& item = items[static_cast<size_t>(i)];
    const SharedBlocks& from = shared[static_cast<size_t>(item.segment)];
    const int64_t block = from.first + item.kv_head * from.count;
    const Blocks<Word> blocks =
        from.first < 0 ? Blocks<Word>{} : Blocks<Word>{keys.data() + block * z.keys, values.data() + block * z.values};
    RunItem(shape, z, segments[static_cast<size_t>(item.segment)], item, q, blocks, out, log_sum_exp,
            scratch[static_cast<size_t>(thread)], ctx.kernels);
  });
}

}  // namespace

void AttentionForward(const AttentionShape& shape, MatView<const float> q, std::span<const AttentionSegment> segments,
                      MatView<float> out, MatView<float> log_sum_exp, ExecContext& ctx) {
  CheckShape(shape, ctx);
  const int64_t H = shape.num_heads, P = shape.head_width;
  MOE_CHECK(q.cols == H * P && out.rows == q.rows && out.cols == q.cols, "q [{},{}] out [{},{}], expected [T,{}]", q.rows,
            q.cols, out.rows, out.cols, H * P);
  MOE_CHECK(log_sum_exp.empty() || (log_sum_exp.rows == q.rows && log_sum_exp.cols == H),
            "log_sum_exp [{},{}], expected [{},{}]", log_sum_exp.rows, log_sum_exp.cols, q.rows, H);
  if (shape.format == DType::kBf16) return Forward<uint32_t>(shape, q, segments, out, log_sum_exp, ctx);
  Forward<float>(shape, q, segments, out, log_sum_exp, ctx);
}

}  // namespace moe
