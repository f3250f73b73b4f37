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

struct Scratch {
  std::span<float> q, d_out, d_q;       // [R*C, padded] rows of head r from r*C on; q holds scale * q
  std::span<float> log_sum_exp, delta;  // [R*C]
  std::span<float> keys, values;        // transposed block
  std::span<float> key_tail;            // [64,32]
  std::span<float> d_k, d_v;            // [64, padded]
  std::span<float> p, d_s;              // [64, 64]
};

struct Matrices {
  MatView<const float> q, k, v, out, log_sum_exp, d_out;
  MatView<float> d_q, d_k, d_v;
};

void LoadRows(const AttentionShape& shape, const AttentionSegment& segment, int64_t kv_head, const Matrices& m,
              const Scratch& scratch, const KernelTable& k) {
  const int64_t R = shape.num_heads / shape.num_kv_heads, P = shape.head_width, padded = RoundUpToPanel(P);
  const int64_t C = segment.num_rows;
  const auto copy = [&](const float* from, float* to) {
    std::memcpy(to, from, static_cast<size_t>(P) * sizeof(float));
    std::fill(to + P, to + padded, 0.0f);
  };
  for (int64_t r = 0; r < R; ++r) {
    const int64_t head = kv_head * R + r;
    for (int64_t i = 0; i < C; ++i) {
      const int64_t at = r * C + i, row = segment.row_begin + i;
      copy(m.q.row(row) + head * P, scratch.q.data() + at * padded);
      k.scale(shape.scale, P, scratch.q.data() + at * padded);
      copy(m.d_out.row(row) + head * P, scratch.d_out.data() + at * padded);
      scratch.delta[static_cast<size_t>(at)] = k.dot(m.d_out.row(row) + head * P, m.out.row(row) + head * P, P);
      scratch.log_sum_exp[static_cast<size_t>(at)] = m.log_sum_exp(row, head);
    }
  }
}

// p and d_s of `rows` queries from `row` on (of the scratch's rows; the first at `position`) against the keys from `begin` on,
// and their part of d_q.
void RunQueries(int64_t P, int64_t row, int64_t rows, int64_t position, int64_t begin, const BlockRows& key_rows,
                const Scratch& scratch, const KernelTable& k) {
  const int64_t padded = RoundUpToPanel(P);
  for (int64_t r0 = 0; r0 < rows; r0 += k.max_rows) {
    const int64_t tile = std::min(k.max_rows, rows - r0), at = row + r0;
    const float *q[kMaxTileRows], *d_out[kMaxTileRows], *d_s[kMaxTileRows];
    int32_t valid[kMaxTileRows];
    float *p = scratch.p.data() + r0 * kKeyBlock, *d = scratch.d_s.data() + r0 * kKeyBlock;
    for (int64_t r = 0; r < tile; ++r) {
      q[r] = scratch.q.data() + (at + r) * padded, d_out[r] = scratch.d_out.data() + (at + r) * padded;
      d_s[r] = d + r * kKeyBlock;
      valid[r] = static_cast<int32_t>(std::min(kKeyBlock, position + r0 + r + 1 - begin));
    }
    const int64_t widest = valid[tile - 1];
    for (int64_t c = 0; c < widest; c += kPanel) {
      k.tile_f32(tile, P, q, scratch.keys.data() + c * P, kPanel, p + c, kKeyBlock, false, {});
      k.tile_f32(tile, P, d_out, scratch.values.data() + c * P, kPanel, d + c, kKeyBlock, false, {});
    }
    k.softmax_block_backward(tile, valid, scratch.log_sum_exp.data() + at, scratch.delta.data() + at, p, d);
    for (int64_t c = 0; c < padded; c += kPanel) {
      k.tile_f32(tile, widest, d_s, key_rows.at(c), key_rows.stride(c), scratch.d_q.data() + at * padded + c, padded, begin > 0,
                 {});
    }
  }
}

void RunItem(const AttentionShape& shape, const AttentionSegment& segment, int64_t kv_head, const Matrices& m,
             const Scratch& scratch, const KernelTable& k) {
  const int64_t R = shape.num_heads / shape.num_kv_heads, P = shape.head_width, padded = RoundUpToPanel(P);
  const int64_t C = segment.num_rows, column = kv_head * P;
  LoadRows(shape, segment, kv_head, m, scratch, k);
  for (int64_t begin = 0; begin < C; begin += kKeyBlock) {
    const int64_t keys = std::min(kKeyBlock, C - begin), first_row = segment.row_begin + begin;
    const float* k_block = m.k.row(first_row) + column;
    TransposeBlock(k_block, m.k.stride, keys, P, scratch.keys.data(), k);
    TransposeBlock(m.v.row(first_row) + column, m.v.stride, keys, P, scratch.values.data(), k);
    const BlockRows key_rows = PanelRows(k_block, m.k.stride, keys, P, scratch.key_tail.data());
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t position = begin; position < C; position += kKeyBlock) {
        const int64_t row = r * C + position, rows = std::min(kKeyBlock, C - position);
        RunQueries(P, row, rows, position, begin, key_rows, scratch, k);
        const bool accumulate = r > 0 || position > begin;
        for (int64_t k0 = 0; k0 < keys; k0 += k.max_rows) {
          // In the diagonal block only queries from the tile's first key on look at it.
          const int64_t tile = std::min(k.max_rows, keys - k0), skip = position == begin ? k0 : 0;
          const int64_t from = skip * kKeyBlock + k0, steps = rows - skip;
          for (int64_t c = 0; c < padded; c += kPanel) {
            const int64_t b = (row + skip) * padded + c, to = k0 * padded + c;
            k.outer_f32(tile, steps, scratch.p.data() + from, kKeyBlock, scratch.d_out.data() + b, padded,
                        scratch.d_v.data() + to, padded, accumulate, {});
            k.outer_f32(tile, steps, scratch.d_s.data() + from, kKeyBlock, scratch.q.data() + b, padded,
                        scratch.d_k.data() + to, padded, accumulate, {});
          }
        }
      }
    }
    for (int64_t i = 0; i < keys; ++i) {
      std::memcpy(m.d_k.row(first_row + i) + column, scratch.d_k.data() + i * padded, static_cast<size_t>(P) * sizeof(float));
      std::memcpy(m.d_v.row(first_row + i) + column, scratch.d_v.data() + i * padded, static_cast<size_t>(P) * sizeof(float));
    }
  }
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t i = 0; i < C; ++i) {
      float* d_q = scratch.d_q.data() + (r * C + i) * padded;
      k.scale(shape.scale, P, d_q);
      std::memcpy(m.d_q.row(segment.row_begin + i) + (kv_head * R + r) * P, d_q, static_cast<size_t>(P) * sizeof(float));
    }
  }
}

}  // namespace

void AttentionBackward(const AttentionShape& shape, MatView<const float> q, MatView<const float> k, MatView<const float> v,
                       std::span<const AttentionSegment> segments, MatView<const float> out, MatView<const float> log_sum_exp,
                       MatView<const float> d_out, MatView<float> d_q, MatView<float> d_k, MatView<float> d_v,
                       ExecContext& ctx) {
  CheckShape(shape, ctx);
  const int64_t H = shape.num_heads, G = shape.num_kv_heads, P = shape.head_width, R = H / G, T = q.rows;
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

  const int64_t padded = RoundUpToPanel(P), rows = R * longest;
  const auto scratch = ctx.arena.Alloc<Scratch>(ctx.pool.num_threads());
  for (Scratch& s : scratch) {
    for (auto* x : {&s.q, &s.d_out, &s.d_q}) *x = ctx.arena.Alloc<float>(rows * padded);
    for (auto* x : {&s.log_sum_exp, &s.delta}) *x = ctx.arena.Alloc<float>(rows);
    for (auto* x : {&s.keys, &s.values}) *x = ctx.arena.Alloc<float>(kKeyBlock * P);
    for (auto* x : {&s.d_k, &s.d_v}) *x = ctx.arena.Alloc<float>(kKeyBlock * padded);
    for (auto* x : {&s.p, &s.d_s}) *x = ctx.arena.Alloc<float>(kKeyBlock * kKeyBlock);
    s.key_tail = ctx.arena.Alloc<float>(kKeyBlock * kPanel);
  }
  const Matrices m{q, k, v, out, log_sum_exp, d_out, d_q, d_k, d_v};
  ctx.pool.ParallelFor(num_items, [&](int64_t i, int thread) {
    const Item& item = items[static_cast<size_t>(i)];
    RunItem(shape, segments[static_cast<size_t>(item.segment)], item.kv_head, m, scratch[static_cast<size_t>(thread)],
            ctx.kernels);
  });
}

}  // namespace moe
