#include "moe/ops/block_sparse.h"

#include <algorithm>
#include <cstring>

#include "moe/ops/chunks.h"

namespace moe {
namespace {

constexpr int64_t kBlockMultiple = 16;

int64_t At(std::span<const int32_t> values, int64_t i) {
  return values[static_cast<size_t>(i)];
}

// A list in the arena that is filled twice: without memory, to count, then for good.
template <class T>
class CountedList {
 public:
  void Add(const T& value) {
    if (!out_.empty()) out_[count_] = value;
    ++count_;
  }
  void Allocate(ExecContext& ctx) { out_ = ctx.arena.Alloc<T>(static_cast<int64_t>(count_)), count_ = 0; }
  std::span<const T> span() const { return out_.first(count_); }

 private:
  std::span<T> out_;
  size_t count_ = 0;
};

template <class T, class Fill>
std::span<const T> MakeList(Fill&& fill, ExecContext& ctx) {
  CountedList<T> list;
  fill(list);
  list.Allocate(ctx);
  fill(list);
  return list.span();
}

// Calls fn(begin, end) for the longest pieces of [0, n) in which follows(i - 1, i) holds throughout.
template <class Follows, class F>
void ForEachRun(int64_t n, Follows&& follows, F&& fn) {
  for (int64_t begin = 0, end; begin < n; begin = end) {
    for (end = begin + 1; end < n && follows(end - 1, end);) ++end;
    fn(begin, end);
  }
}

int64_t UsedRows(const BlockTopology& t, int64_t i) {
  return t.rows_used.empty() ? t.block : At(t.rows_used, i);
}

// Rows of blocks that have the same columns, then runs of those columns.
void AddAlongRows(const BlockTopology& t, CountedList<BlockRectangle>& list) {
  const auto columns_of = [&](int64_t i) {
    return t.column.subspan(static_cast<size_t>(At(t.row_begin, i)),
                            static_cast<size_t>(At(t.row_begin, i + 1) - At(t.row_begin, i)));
  };
  const auto same_columns = [&](int64_t above, int64_t below) {
    return UsedRows(t, above) == t.block && std::ranges::equal(columns_of(above), columns_of(below));
  };
  ForEachRun(t.row_blocks(), same_columns, [&](int64_t row, int64_t row_end) {
    const auto columns = columns_of(row);
    int32_t round = 0;
    const auto beside = [&](int64_t a, int64_t b) { return At(columns, b) == At(columns, a) + 1; };
    ForEachRun(static_cast<int64_t>(columns.size()), beside, [&](int64_t first, int64_t end) {
      list.Add({.row_block = static_cast<int32_t>(row),
                .row_blocks = static_cast<int32_t>(row_end - row),
                .column = columns[static_cast<size_t>(first)],
                .columns = static_cast<int32_t>(end - first),
                .first = static_cast<int32_t>(first),
                .strip = static_cast<int32_t>(columns.size()),
                .rows = static_cast<int32_t>((row_end - row - 1) * t.block + UsedRows(t, row_end - 1)),
                .round = round++});
    });
  });
}

// Columns of blocks that have the same rows, then runs of those rows whose strips are alike.
void AddAlongColumns(const BlockTopology& t, CountedList<BlockRectangle>& list) {
  const auto blocks_of = [&](int64_t j) {
    return t.by_column.subspan(static_cast<size_t>(At(t.column_begin, j)),
                               static_cast<size_t>(At(t.column_begin, j + 1) - At(t.column_begin, j)));
  };
  const auto strip_of = [&](int64_t row) { return At(t.row_begin, row + 1) - At(t.row_begin, row); };
  const auto same_rows = [&](int64_t left, int64_t right) {
    return std::ranges::equal(
        blocks_of(left), blocks_of(right), {}, [&](int32_t block) { return At(t.row, block); },
        [&](int32_t block) { return At(t.row, block); });
  };
  ForEachRun(t.num_columns, same_rows, [&](int64_t column, int64_t column_end) {
    const auto blocks = blocks_of(column);
    int32_t round = 0;
    const auto place = [&](int64_t i) {
      return blocks[static_cast<size_t>(i)] - At(t.row_begin, At(t.row, blocks[static_cast<size_t>(i)]));
    };
    const auto below = [&](int64_t a, int64_t b) {
      const int64_t row_a = At(t.row, blocks[static_cast<size_t>(a)]), row_b = At(t.row, blocks[static_cast<size_t>(b)]);
      return row_b == row_a + 1 && UsedRows(t, row_a) == t.block && place(a) == place(b) && strip_of(row_a) == strip_of(row_b);
    };
    ForEachRun(static_cast<int64_t>(blocks.size()), below, [&](int64_t begin, int64_t end) {
      const int64_t row = At(t.row, blocks[static_cast<size_t>(begin)]);
      list.Add({.row_block = static_cast<int32_t>(row),
                .row_blocks = static_cast<int32_t>(end - begin),
                .column = static_cast<int32_t>(column),
                .columns = static_cast<int32_t>(column_end - column),
                .first = static_cast<int32_t>(place(begin)),
                .strip = static_cast<int32_t>(strip_of(row)),
                .rows = static_cast<int32_t>((end - begin - 1) * t.block + UsedRows(t, row + end - begin - 1)),
                .round = round++});
    });
  });
}

AnyMat ValuesOf(const BlockMatrix& s, const BlockRectangle& r) {
  const int64_t columns = s.columns_per_block(), strip = At(s.topology->row_begin, r.row_block) * s.topology->block * columns;
  auto* values = static_cast<std::byte*>(s.values.data) + (strip + r.first * columns) * SizeOf(s.values.dtype);
  return {values, s.values.dtype, r.rows, r.columns * columns, r.strip * columns};
}

void CheckMatrix(const BlockMatrix& s) {
  MOE_CHECK(s.topology != nullptr && s.width > 0, "a block matrix without a topology");
  MOE_CHECK(s.values.size() == s.size(), "{} values, expected {}", s.values.size(), s.size());
}

// Blocks of one segment when num_segments of them make up all columns; `columns` is what each has of S's columns.
int64_t SegmentBlocks(const BlockMatrix& s, int64_t num_segments, int64_t columns) {
  const int64_t all = s.topology->num_columns * s.columns_per_block();
  MOE_CHECK(num_segments > 0 && columns * num_segments == all, "{} segments of {} columns, expected {} in all", num_segments,
            columns, all);
  MOE_CHECK(columns % s.columns_per_block() == 0, "segments of {} columns cut blocks of {}", columns, s.columns_per_block());
  return columns / s.columns_per_block();
}

// A rectangle within one segment.
struct Piece {
  BlockRectangle rectangle;
  int32_t segment, column;  // its first column of blocks in the segment
};

std::span<const Piece> CutAtSegments(std::span<const BlockRectangle> rectangles, int64_t segment_blocks, ExecContext& ctx) {
  return MakeList<Piece>(
      [&](CountedList<Piece>& list) {
        for (const BlockRectangle& whole : rectangles) {
          if (whole.rows == 0) continue;
          for (int64_t done = 0, count; done < whole.columns; done += count) {
            const int64_t column = whole.column + done;
            count = std::min(whole.columns - done, segment_blocks - column % segment_blocks);
            BlockRectangle part = whole;
            part.column = static_cast<int32_t>(column), part.columns = static_cast<int32_t>(count);
            part.first = static_cast<int32_t>(whole.first + done);
            list.Add({part, static_cast<int32_t>(column / segment_blocks), static_cast<int32_t>(column % segment_blocks)});
          }
        }
      },
      ctx);
}

// x's rows below those of a rectangle.
ConstAnyMat RowsOf(const BlockTopology& t, const BlockRectangle& r, const ConstAnyMat& x, std::span<const int32_t> x_rows) {
  return x_rows.empty() ? x.Rows(r.row_block * t.block, r.rows) : x;
}
std::span<const int32_t> ChosenRowsOf(const BlockTopology& t, const BlockRectangle& r, std::span<const int32_t> x_rows) {
  if (x_rows.empty()) return {};
  return x_rows.subspan(static_cast<size_t>(r.row_block * t.block), static_cast<size_t>(r.rows));
}
void CheckRows(const BlockTopology& t, const ConstAnyMat& x, std::span<const int32_t> x_rows) {
  const int64_t rows = x_rows.empty() ? x.rows : static_cast<int64_t>(x_rows.size());
  MOE_CHECK(rows == t.num_rows(), "{} rows, the topology has {}", rows, t.num_rows());
}

}  // namespace

BlockTopology MakeTopology(int64_t block, int64_t num_columns, std::span<const int32_t> row_begin,
                           std::span<const int32_t> column, std::span<const int32_t> rows_used, ExecContext& ctx) {
  MOE_CHECK(block > 0 && block % kBlockMultiple == 0, "blocks of {}, expected a multiple of {}", block, kBlockMultiple);
  MOE_CHECK(!row_begin.empty() && row_begin.front() == 0 && row_begin.back() == static_cast<int32_t>(column.size()),
            "row_begin does not span the {} blocks", column.size());
  BlockTopology t{.block = block, .num_columns = num_columns, .row_begin = row_begin, .column = column, .rows_used = rows_used};
  MOE_CHECK(rows_used.empty() || static_cast<int64_t>(rows_used.size()) == t.row_blocks(), "{} counts of rows, expected {}",
            rows_used.size(), t.row_blocks());
  for (const int32_t used : rows_used) MOE_CHECK(used >= 0 && used <= block, "{} rows used of {}", used, block);
  const auto row = ctx.arena.Alloc<int32_t>(t.num_blocks());
  const auto column_begin = ctx.arena.AllocZero<int32_t>(num_columns + 1);
  for (int64_t i = 0; i < t.row_blocks(); ++i) {
    MOE_CHECK(row_begin[static_cast<size_t>(i)] <= row_begin[static_cast<size_t>(i) + 1], "row_begin falls at row {}", i);
    for (int64_t b = At(row_begin, i); b < At(row_begin, i + 1); ++b) {
      const int64_t j = At(column, b);
      MOE_CHECK(j >= 0 && j < num_columns && (b == At(row_begin, i) || At(column, b - 1) < j), "column {} of row {} of {}", j,
                i, num_columns);
      row[static_cast<size_t>(b)] = static_cast<int32_t>(i);
      ++column_begin[static_cast<size_t>(j) + 1];
    }
  }
  for (size_t j = 0; j < static_cast<size_t>(num_columns); ++j) column_begin[j + 1] += column_begin[j];
  const auto by_column = ctx.arena.Alloc<int32_t>(t.num_blocks());
  for (int64_t b = 0; b < t.num_blocks(); ++b) {  // column_begin[j] walks to the next column's begin, and is put back below
    by_column[static_cast<size_t>(column_begin[static_cast<size_t>(At(column, b))]++)] = static_cast<int32_t>(b);
  }
  for (size_t j = static_cast<size_t>(num_columns); j > 0; --j) column_begin[j] = column_begin[j - 1];
  if (num_columns > 0) column_begin[0] = 0;
  t.row = row, t.column_begin = column_begin, t.by_column = by_column;
  t.along_rows = MakeList<BlockRectangle>([&](auto& list) { AddAlongRows(t, list); }, ctx);
  t.along_columns = MakeList<BlockRectangle>([&](auto& list) { AddAlongColumns(t, list); }, ctx);
  return t;
}

void SparseFromDense(ConstAnyMat x, std::span<const int32_t> x_rows, std::span<const PackedWeight> weights, Epilogue epilogue,
                     const BlockMatrix& s, const BlockMatrix& pre_activation, ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  CheckMatrix(s);
  const BlockTopology& t = *s.topology;
  CheckRows(t, x, x_rows);
  const bool gated = epilogue == Epilogue::kSwiglu;
  BlockMatrix product = s;  // as wide as the weights' columns
  if (gated) product.width = 2 * s.width;
  if (!pre_activation.empty()) {
    CheckMatrix(pre_activation);
    MOE_CHECK(gated && pre_activation.width == product.width && pre_activation.topology == s.topology,
              "pre_activation of another shape");
  }
  MOE_CHECK(!weights.empty(), "no weights");
  const int64_t columns = product.columns_per_block();
  const auto pieces =
      CutAtSegments(t.along_rows, SegmentBlocks(product, static_cast<int64_t>(weights.size()), weights.front().N), ctx);
  // A block whose columns do not begin or end with a panel is computed with all columns of its panels, and cut out.
  struct Copy {
    MatView<const float> from;
    AnyMat to;
  };
  const auto views = ctx.arena.Alloc<PackedWeight>(static_cast<int64_t>(pieces.size()));
  const auto problems = ctx.arena.Alloc<GemmProblem>(static_cast<int64_t>(pieces.size()));
  const auto copies = ctx.arena.Alloc<Copy>(static_cast<int64_t>(pieces.size()));
  size_t num_copies = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const BlockRectangle& r = pieces[i].rectangle;
    const PackedWeight& weight = weights[static_cast<size_t>(pieces[i].segment)];
    const int64_t begin = pieces[i].column * columns, end = begin + r.columns * columns;
    const int64_t panel_begin = begin / kPanel * kPanel, panel_end = std::min(weight.N, CeilDiv(end, kPanel) * kPanel);
    views[i] = weight.Outputs(panel_begin, panel_end - panel_begin);
    AnyMat c = ValuesOf(s, r);
    if (panel_begin != begin || panel_end != end) {
      MOE_CHECK(epilogue == Epilogue::kStore, "blocks of {} columns are stored only", columns);
      const MatView<float> whole{ctx.arena.Alloc<float>(r.rows * (panel_end - panel_begin)).data(), r.rows,
                                 panel_end - panel_begin};
      copies[num_copies++] = {whole.Cols(begin - panel_begin, end - begin), c};
      c = whole;
    }
    problems[i] = {.a = RowsOf(t, r, x, x_rows),
                   .a_rows = ChosenRowsOf(t, r, x_rows),
                   .weight = &views[i],
                   .epilogue = epilogue,
                   .c = c,
                   .pre_activation = pre_activation.empty() ? AnyMat() : ValuesOf(pre_activation, r)};
  }
  GroupedGemm(problems, ctx);
  ctx.pool.ParallelFor(static_cast<int64_t>(num_copies), [&](int64_t i, int) {
    const Copy& copy = copies[static_cast<size_t>(i)];
    for (int64_t r = 0; r < copy.to.rows; ++r) {
      if (copy.to.dtype == DType::kBf16) {
        ctx.kernels.to_bf16(copy.from.row(r), copy.to.cols, static_cast<Bf16*>(copy.to.row(r)));
      } else {
        std::memcpy(copy.to.row(r), copy.from.row(r), static_cast<size_t>(copy.to.cols) * sizeof(float));
      }
    }
  });
}

void DenseFromSparse(const BlockMatrix& s, std::span<const PackedWeight> weights, AnyMat y, ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  CheckMatrix(s);
  const BlockTopology& t = *s.topology;
  CheckRows(t, y, {});
  MOE_CHECK(!weights.empty(), "no weights");
  for (int64_t i = 0; i < t.row_blocks(); ++i) {
    if (At(t.row_begin, i) < At(t.row_begin, i + 1)) continue;
    for (int64_t r = 0; r < UsedRows(t, i); ++r)
      std::memset(y.row(i * t.block + r), 0, static_cast<size_t>(y.cols * SizeOf(y.dtype)));
  }
  const auto pieces =
      CutAtSegments(t.along_rows, SegmentBlocks(s, static_cast<int64_t>(weights.size()), weights.front().K), ctx);
  const auto views = ctx.arena.Alloc<PackedWeight>(static_cast<int64_t>(pieces.size()));
  const auto problems = ctx.arena.Alloc<GemmProblem>(static_cast<int64_t>(pieces.size()));
  // The pieces of a row add up one after the other: the first of every row, then the second, and so on.
  for (int64_t round = 0, done = 0; done < static_cast<int64_t>(pieces.size()); ++round) {
    size_t count = 0;
    int64_t place = 0;
    for (size_t i = 0; i < pieces.size(); ++i) {
      const BlockRectangle& r = pieces[i].rectangle;
      place = i > 0 && pieces[i - 1].rectangle.row_block == r.row_block ? place + 1 : 0;
      if (place != round) continue;
      views[count] = weights[static_cast<size_t>(pieces[i].segment)].Inputs(pieces[i].column * s.columns_per_block(),
                                                                            r.columns * s.columns_per_block());
      problems[count] = {.a = ValuesOf(s, r),
                         .weight = &views[count],
                         .epilogue = round == 0 ? Epilogue::kStore : Epilogue::kAccumulate,
                         .c = y.Rows(r.row_block * t.block, r.rows)};
      ++count;
    }
    GroupedGemm(problems.first(count), ctx);
    done += static_cast<int64_t>(count);
  }
}

namespace {

// Weight gradients of all pieces, round by round: problem(piece) says which product adds to which part of d_w.
template <class Problem>
void AddWeightGrads(const BlockMatrix& s, int64_t segment_blocks, Problem&& problem, ExecContext& ctx) {
  const auto pieces = CutAtSegments(s.topology->along_columns, segment_blocks, ctx);
  const auto problems = ctx.arena.Alloc<WeightGradProblem>(static_cast<int64_t>(pieces.size()));
  int32_t rounds = 0;
  for (const Piece& piece : pieces) rounds = std::max(rounds, piece.rectangle.round + 1);
  for (int32_t round = 0; round < rounds; ++round) {
    size_t count = 0;
    for (const Piece& piece : pieces) {
      if (piece.rectangle.round == round) problems[count++] = problem(piece);
    }
    GroupedWeightGrad(problems.first(count), ctx);
  }
}

}  // namespace

void AddTransposedSparseTimesDense(const BlockMatrix& s, ConstAnyMat x, std::span<const int32_t> x_rows, DType format,
                                   std::span<const MatView<float>> d_w, ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  CheckMatrix(s);
  const BlockTopology& t = *s.topology;
  CheckRows(t, x, x_rows);
  MOE_CHECK(!d_w.empty(), "no gradients");
  const int64_t columns = s.columns_per_block();
  AddWeightGrads(
      s, SegmentBlocks(s, static_cast<int64_t>(d_w.size()), d_w.front().rows),
      [&](const Piece& piece) {
        const BlockRectangle& r = piece.rectangle;
        return WeightGradProblem{
            .d_y = ValuesOf(s, r),
            .x = RowsOf(t, r, x, x_rows),
            .x_rows = ChosenRowsOf(t, r, x_rows),
            .d_w = d_w[static_cast<size_t>(piece.segment)].Rows(piece.column * columns, r.columns * columns),
            .format = format};
      },
      ctx);
}

void AddTransposedDenseTimesSparse(ConstAnyMat d_y, const BlockMatrix& s, DType format, std::span<const MatView<float>> d_w,
                                   ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  CheckMatrix(s);
  const BlockTopology& t = *s.topology;
  CheckRows(t, d_y, {});
  MOE_CHECK(!d_w.empty(), "no gradients");
  const int64_t columns = s.columns_per_block();
  AddWeightGrads(
      s, SegmentBlocks(s, static_cast<int64_t>(d_w.size()), d_w.front().cols),
      [&](const Piece& piece) {
        const BlockRectangle& r = piece.rectangle;
        return WeightGradProblem{
            .d_y = d_y.Rows(r.row_block * t.block, r.rows),
            .x = ValuesOf(s, r),
            .d_w = d_w[static_cast<size_t>(piece.segment)].Cols(piece.column * columns, r.columns * columns),
            .format = format};
      },
      ctx);
}

}  // namespace moe
