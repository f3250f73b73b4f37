#include <algorithm>
#include <cstring>

#include "moe/ops/attention_blocks.h"

namespace moe {
namespace {

// With p = exp(s - log_sum_exp), s = scale q k^T and delta = rowsum(d_out * out) (Dao et al. 2022, algorithm 4):
//   d_v = p^T d_out    d_s = p * (d_out v^T - delta)    d_q = scale d_s k    d_k = d_s^T (scale q)
// One item is one key/value head of one segment: key blocks outside, its query heads and their rows inside, all in order, so
// nothing is summed by two threads.
struct Item {
  int32_t segment, kv_head;
};

// Words of rows lie along the head's width, for products that contract over it; words of columns along the queries, for those
// that contract over the queries. In float32 the two are the same, and the same memory.
template <class Word>
struct Scratch {
  std::span<Word> q, d_out;                  // [R*C, words of padded] rows of head r from r*C on; q holds scale * q
  std::span<Word> q_columns, d_out_columns;  // [R, words of C, padded]
  std::span<float> d_q;                      // [R*C, padded]
  std::span<float> log_sum_exp, delta;       // [R*C]
  std::span<float> staged;                   // [2, padded]
  std::span<Word> keys, values;              // transposed block
  std::span<Word> key_rows;                  // bf16: spread block; float32: [64,32]
  std::span<float> d_k, d_v;                 // [64, padded]
  std::span<float> p, d_s;                   // [64, 64]
  std::span<Word> d_s_rows;                  // [64, words of 64]
  std::span<Word> p_columns, d_s_columns;    // [words of 64, 64]
};

struct Matrices {
  MatView<const float> q, k, v, out, log_sum_exp, d_out;
  MatView<float> d_q, d_k, d_v;
};

struct Sizes {
  int64_t R, P, padded, C;  // query heads of a group; head width, and the same in whole panels; rows of the segment
};

// `count` rows of one head of x, times scale, to both kinds of words. staged [2, padded], 0 beyond the width.
template <class Word>
void LoadHead(const Sizes& z, const float* x, int64_t stride, float scale, float* staged, Word* rows, Word* columns,
              const KernelTable& k) {
  constexpr int64_t kStep = kPerWord<Word>;
  for (int64_t i = 0; i < z.C; i += kStep) {
    const int64_t here = std::min(kStep, z.C - i);
    float* to = kStep == 1 ? reinterpret_cast<float*>(rows) + i * z.padded : staged;
    for (int64_t j = 0; j < here; ++j) {
      std::memcpy(to + j * z.padded, x + (i + j) * stride, static_cast<size_t>(z.P) * sizeof(float));
      std::fill(to + j * z.padded + z.P, to + (j + 1) * z.padded, 0.0f);
    }
    if (scale != 1.0f) k.scale(scale, here * z.padded, to);
    if constexpr (kStep == 2) {
      k.to_bf16(staged, here * z.padded, reinterpret_cast<Bf16*>(rows + i * z.padded / 2));
      k.interleave_bf16(staged, here == 2 ? staged + z.padded : nullptr, z.padded, columns + i / 2 * z.padded);
    }
  }
}

template <class Word>
void LoadRows(const AttentionShape& shape, const Sizes& z, const AttentionSegment& segment, int64_t kv_head, const Matrices& m,
              const Scratch<Word>& scratch, const KernelTable& k) {
  const int64_t steps = CeilDiv(z.C, kPerWord<Word>), words = z.padded / kPerWord<Word>;
  for (int64_t r = 0; r < z.R; ++r) {
    const int64_t column = (kv_head * z.R + r) * z.P, at = r * z.C * words, columns = r * steps * z.padded;
    LoadHead(z, m.q.row(segment.row_begin) + column, m.q.stride, shape.scale, scratch.staged.data(), scratch.q.data() + at,
             scratch.q_columns.data() + columns, k);
    LoadHead(z, m.d_out.row(segment.row_begin) + column, m.d_out.stride, 1.0f, scratch.staged.data(), scratch.d_out.data() + at,
             scratch.d_out_columns.data() + columns, k);
    for (int64_t i = 0; i < z.C; ++i) {
      const int64_t row = segment.row_begin + i;
      const auto to = static_cast<size_t>(r * z.C + i);
      scratch.delta[to] = k.dot(m.d_out.row(row) + column, m.out.row(row) + column, z.P);
      scratch.log_sum_exp[to] = m.log_sum_exp(row, kv_head * z.R + r);
    }
  }
}

// p and d_s of `rows` queries from `row` on (of the scratch's rows; the first at `position`) against the keys from `begin` on,
// and their part of d_q.
template <class Word>
void RunQueries(const Sizes& z, int64_t row, int64_t rows, int64_t position, int64_t begin, const BlockRows<Word>& key_rows,
                const Scratch<Word>& scratch, const KernelTable& k) {
  constexpr int64_t kStep = kPerWord<Word>;
  const auto product = ForWords<Word>(k.tile_f32, k.tile_bf16);
  const auto weighted_sums = ForWords<Word>(k.block_f32, k.block_bf16);
  const int64_t words = z.P / kStep, stride = z.padded / kStep;
  for (int64_t r0 = 0; r0 < rows; r0 += k.max_rows) {
    const int64_t tile = std::min(k.max_rows, rows - r0), at = row + r0;
    const Word *q[kMaxTileRows], *d_out[kMaxTileRows];
    int32_t valid[kMaxTileRows];
    float *p = scratch.p.data() + r0 * kKeyBlock, *d = scratch.d_s.data() + r0 * kKeyBlock;
    Word* d_s_rows = scratch.d_s_rows.data() + r0 * kKeyBlock / kStep;
    for (int64_t r = 0; r < tile; ++r) {
      q[r] = scratch.q.data() + (at + r) * stride, d_out[r] = scratch.d_out.data() + (at + r) * stride;
      valid[r] = static_cast<int32_t>(std::min(kKeyBlock, position + r0 + r + 1 - begin));
    }
    const int64_t widest = valid[tile - 1];
    for (int64_t c = 0; c < widest; c += kPanel) {
      product(tile, words, q, scratch.keys.data() + c * words, kPanel, p + c, kKeyBlock, false, {});
      product(tile, words, d_out, scratch.values.data() + c * words, kPanel, d + c, kKeyBlock, false, {});
    }
    k.softmax_block_backward(tile, valid, scratch.log_sum_exp.data() + at, scratch.delta.data() + at, p, d);
    if constexpr (kStep == 2) k.to_bf16(d, tile * kKeyBlock, reinterpret_cast<Bf16*>(d_s_rows));
    for (int64_t c = 0; c < z.padded; c += kPanel) {
      weighted_sums(tile, CeilDiv(widest, kStep), d_s_rows, key_rows.at(c), key_rows.stride_at(c),
                    scratch.d_q.data() + at * z.padded + c, z.padded, begin > 0);
    }
  }
  if constexpr (kStep == 2) {
    for (int64_t i = 0; i < rows; i += 2) {
      const float *p = scratch.p.data() + i * kKeyBlock, *d = scratch.d_s.data() + i * kKeyBlock;
      const bool both = i + 1 < rows;
      k.interleave_bf16(p, both ? p + kKeyBlock : nullptr, kKeyBlock, scratch.p_columns.data() + i / 2 * kKeyBlock);
      k.interleave_bf16(d, both ? d + kKeyBlock : nullptr, kKeyBlock, scratch.d_s_columns.data() + i / 2 * kKeyBlock);
    }
  }
}

template <class Word>
void RunItem(const AttentionShape& shape, const AttentionSegment& segment, int64_t kv_head, const Matrices& m,
             const Scratch<Word>& scratch, const KernelTable& k) {
  constexpr int64_t kStep = kPerWord<Word>;
  const auto outer = ForWords<Word>(k.outer_f32, k.outer_bf16);
  const Sizes z{.R = shape.num_heads / shape.num_kv_heads,
                .P = shape.head_width,
                .padded = RoundUpToPanel(shape.head_width),
                .C = segment.num_rows};
  const int64_t column = kv_head * z.P, C = z.C, padded = z.padded;
  LoadRows(shape, z, segment, kv_head, m, scratch, k);
  for (int64_t begin = 0; begin < C; begin += kKeyBlock) {
    const int64_t keys = std::min(kKeyBlock, C - begin), first_row = segment.row_begin + begin;
    const float* k_block = m.k.row(first_row) + column;
    TransposeBlock(k_block, m.k.stride, keys, z.P, scratch.keys.data(), k);
    TransposeBlock(m.v.row(first_row) + column, m.v.stride, keys, z.P, scratch.values.data(), k);
    BlockRows<Word> key_rows;
    if constexpr (kStep == 2) {
      SpreadBlock(k_block, m.k.stride, keys, z.P, scratch.key_rows.data(), k);
      key_rows = SpreadRows<Word>(scratch.key_rows.data(), z.P);
    } else {
      key_rows = RowsInPlace(k_block, m.k.stride, keys, z.P, scratch.key_rows.data());
    }
    for (int64_t r = 0; r < z.R; ++r) {
      for (int64_t position = begin; position < C; position += kKeyBlock) {
        const int64_t rows = std::min(kKeyBlock, C - position);
        RunQueries(z, r * C + position, rows, position, begin, key_rows, scratch, k);
        const bool accumulate = r > 0 || position > begin;
        const int64_t first_step = r * CeilDiv(C, kStep) + position / kStep;
        for (int64_t k0 = 0; k0 < keys; k0 += k.max_rows) {
          // In the diagonal block only queries from the tile's first key on look at it.
          const int64_t tile = std::min(k.max_rows, keys - k0), skip = position == begin ? k0 / kStep : 0;
          const int64_t from = skip * kKeyBlock + k0, steps = CeilDiv(rows, kStep) - skip;
          for (int64_t c = 0; c < padded; c += kPanel) {
            const int64_t b = (first_step + skip) * padded + c, to = k0 * padded + c;
            outer(tile, steps, scratch.p_columns.data() + from, kKeyBlock, scratch.d_out_columns.data() + b, padded,
                  scratch.d_v.data() + to, padded, accumulate, {});
            outer(tile, steps, scratch.d_s_columns.data() + from, kKeyBlock, scratch.q_columns.data() + b, padded,
                  scratch.d_k.data() + to, padded, accumulate, {});
          }
        }
      }
    }
    for (int64_t i = 0; i < keys; ++i) {
      std::memcpy(m.d_k.row(first_row + i) + column, scratch.d_k.data() + i * padded, static_cast<size_t>(z.P) * sizeof(float));
      std::memcpy(m.d_v.row(first_row + i) + column, scratch.d_v.data() + i * padded, static_cast<size_t>(z.P) * sizeof(float));
    }
  }
  for (int64_t r = 0; r < z.R; ++r) {
    for (int64_t i = 0; i < C; ++i) {
      float* d_q = scratch.d_q.data() + (r * C + i) * padded;
      k.scale(shape.scale, z.P, d_q);
      std::memcpy(m.d_q.row(segment.row_begin + i) + (kv_head * z.R + r) * z.P, d_q, static_cast<size_t>(z.P) * sizeof(float));
    }
  }
}

template <class Word>
std::span<Scratch<Word>> MakeScratch(int64_t R, int64_t P, int64_t longest, ExecContext& ctx) {
  constexpr int64_t kStep = kPerWord<Word>;
  Arena& arena = ctx.arena;
  const int64_t padded = RoundUpToPanel(P), rows = R * longest;
  const auto scratch = arena.Alloc<Scratch<Word>>(ctx.pool.num_threads());
  for (Scratch<Word>& s : scratch) {
    for (auto* x : {&s.q, &s.d_out}) *x = arena.Alloc<Word>(rows * padded / kStep);
    s.d_q = arena.Alloc<float>(rows * padded);
    for (auto* x : {&s.log_sum_exp, &s.delta}) *x = arena.Alloc<float>(rows);
    for (auto* x : {&s.keys, &s.values}) *x = arena.Alloc<Word>(kKeyBlock * P / kStep);
    for (auto* x : {&s.d_k, &s.d_v}) *x = arena.Alloc<float>(kKeyBlock * padded);
    for (auto* x : {&s.p, &s.d_s}) *x = arena.Alloc<float>(kKeyBlock * kKeyBlock);
    if constexpr (kStep == 2) {
      s.staged = arena.Alloc<float>(2 * padded);
      s.key_rows = arena.Alloc<Word>(kKeyBlock / 2 * padded);
      for (auto* x : {&s.q_columns, &s.d_out_columns}) *x = arena.Alloc<Word>(R * CeilDiv(longest, 2) * padded);
      for (auto* x : {&s.d_s_rows, &s.p_columns, &s.d_s_columns}) *x = arena.Alloc<Word>(kKeyBlock / 2 * kKeyBlock);
    } else {
      s.key_rows = arena.Alloc<float>(kKeyBlock * kPanel);
      s.q_columns = s.q, s.d_out_columns = s.d_out, s.d_s_rows = s.d_s, s.p_columns = s.p, s.d_s_columns = s.d_s;
    }
  }
  return scratch;
}

template <class Word>
void Run(const AttentionShape& shape, std::span<const AttentionSegment> segments, std::span<const Item> items, int64_t longest,
         const Matrices& m, ExecContext& ctx) {
  const auto scratch = MakeScratch<Word>(shape.num_heads / shape.num_kv_heads, shape.head_width, longest, ctx);
  ctx.pool.ParallelFor(static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    const Item& item = items[static_cast<size_t>(i)];
    RunItem(shape, segments[static_cast<size_t>(item.segment)], item.kv_head, m, scratch[static_cast<size_t>(thread)],
            ctx.kernels);
  });
}

}  // namespace

void AttentionBackward(const AttentionShape& shape, MatView<const float> q, MatView<const float> k, MatView<const float> v,
                       std::span<const AttentionSegment> segments, MatView<const float> out, MatView<const float> log_sum_exp,
                       MatView<const float> d_out, MatView<float> d_q, MatView<float> d_k, MatView<float> d_v,
                       ExecContext& ctx) {
  CheckShape(shape, ctx);
  const int64_t H = shape.num_heads, G = shape.num_kv_heads, P = shape.head_width, T = q.rows;
  const auto check = [&](const auto& matrix, int64_t cols, const char* name) {
    MOE_CHECK(matrix.rows == T && matrix.cols == cols, "{} [{},{}], expected [{},{}]", name, matrix.rows, matrix.cols, T, cols);
  };
  check(q, H * P, "q"), check(k, G * P, "k"), check(v, G * P, "v"), check(out, H * P, "out"), check(d_out, H * P, "d_out");
  check(log_sum_exp, H, "log_sum_exp"), check(d_q, H * P, "d_q"), check(d_k, G * P, "d_k"), check(d_v, G * P, "d_v");
  int64_t longest = 0;
  for (const AttentionSegment& s : segments) {
    MOE_CHECK(s.first_position == 0 && s.row_begin >= 0 && s.num_rows >= 0 && s.row_begin + s.num_rows <= T,
              "segment of rows {}+{} of {} from position {}", s.row_begin, s.num_rows, T, s.first_position);
    longest = std::max(longest, s.num_rows);
  }
  Arena::Scope scope(ctx.arena);
  const auto items = ctx.arena.Alloc<Item>(static_cast<int64_t>(segments.size()) * G);
  int64_t num_items = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    for (int64_t g = 0; g < G; ++g)
      items[static_cast<size_t>(num_items++)] = {static_cast<int32_t>(i), static_cast<int32_t>(g)};
  }
  std::sort(items.begin(), items.end(), [&](const Item& a, const Item& b) {
    const int64_t rows_a = segments[static_cast<size_t>(a.segment)].num_rows;
    const int64_t rows_b = segments[static_cast<size_t>(b.segment)].num_rows;
    if (rows_a != rows_b) return rows_a > rows_b;
    return a.segment != b.segment ? a.segment < b.segment : a.kv_head < b.kv_head;
  });

  const Matrices m{q, k, v, out, log_sum_exp, d_out, d_q, d_k, d_v};
  if (shape.format == DType::kBf16) return Run<uint32_t>(shape, segments, items, longest, m, ctx);
  Run<float>(shape, segments, items, longest, m, ctx);
}

}  // namespace moe
