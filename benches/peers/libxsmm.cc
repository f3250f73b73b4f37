// libxsmm's batch-reduce kernel, bf16 in and float32 out, over tiles that our thread pool hands out: it has kernels, not
// products. Both operands are blocked once, as its own deep-learning code does.
//
// libxsmm 1.17 takes a Zen 5 for "cpx" (Cooper Lake), which is right: with that target its kernels use vdpbf16ps. Nothing has
// to be set. The tile sizes it likes differ from shape to shape, so a few are tried and the fastest is kept.
#include <libxsmm.h>

#include <algorithm>
#include <cstring>

#include "benches/peers/peers.h"
#include "moe/base/bf16.h"
#include "moe/base/clock.h"
#include "moe/base/thread_pool.h"

namespace moe {
namespace {

using Kernel = libxsmm_bsmmfunction_reducebatch_strd;

constexpr int64_t kBlockK = 64;  // inputs of one step of the reduction

// To libxsmm, which counts by columns, the weights are A [outputs, inputs], the inputs B [inputs, rows], the result C.
struct Tiling {
  int64_t outputs, rows;  // of a tile
  bool by_rows;           // tiles that share weights follow each other; otherwise those that share inputs
};

struct Operand {
  AlignedBytes bytes;
  libxsmm_bfloat16* data() const { return reinterpret_cast<libxsmm_bfloat16*>(bytes.get()); }
};

Operand Allocate(int64_t values) {
  return {AllocateAligned(static_cast<size_t>(values) * sizeof(libxsmm_bfloat16))};
}

// w [N,K] -> [N/outputs][K/64][32][outputs][2], pairs along K
Operand BlockWeight(MatView<const float> w, int64_t outputs) {
  Operand out = Allocate(w.size());
  libxsmm_bfloat16* to = out.data();
  for (int64_t n0 = 0; n0 < w.rows; n0 += outputs) {
    for (int64_t k = 0; k < w.cols; k += 2) {
      for (int64_t n = n0; n < n0 + outputs; ++n) {
        *to++ = ToBf16(w(n, k)).bits;
        *to++ = ToBf16(w(n, k + 1)).bits;
      }
    }
  }
  return out;
}

// x [M,K] -> [M/rows][K/64][rows][64]; the last tile has fewer rows
Operand BlockInput(MatView<const float> x, int64_t rows) {
  Operand out = Allocate(x.size());
  libxsmm_bfloat16* to = out.data();
  for (int64_t m0 = 0; m0 < x.rows; m0 += rows) {
    for (int64_t k0 = 0; k0 < x.cols; k0 += kBlockK) {
      for (int64_t m = m0; m < std::min(m0 + rows, x.rows); ++m) {
        for (int64_t k = k0; k < k0 + kBlockK; ++k) *to++ = ToBf16(x(m, k)).bits;
      }
    }
  }
  return out;
}

Kernel MakeKernel(const Tiling& t, int64_t rows, int64_t N) {
  const auto m = static_cast<libxsmm_blasint>(t.outputs), n = static_cast<libxsmm_blasint>(rows);
  const libxsmm_blasint k = kBlockK, ldc = static_cast<libxsmm_blasint>(N);
  const float alpha = 1, beta = 0;
  const int flags = LIBXSMM_GEMM_FLAG_VNNI_A, prefetch = LIBXSMM_GEMM_PREFETCH_NONE;
  return libxsmm_bsmmdispatch_reducebatch_strd(m, n, k, m * k * 2, n * k * 2, &m, &k, &ldc, &alpha, &beta, &flags, &prefetch);
}

struct Product {
  GemmShape shape;
  Tiling tiling;
  Kernel whole = nullptr, last = nullptr;  // last: the tile with fewer rows
  Operand x;
  std::vector<Operand> weights;
  float* y = nullptr;
  ThreadPool* pool = nullptr;

  bool usable() const { return whole != nullptr && last != nullptr; }
  void Run(int64_t weight) const {
    const int64_t across = shape.N / tiling.outputs, down = (shape.M + tiling.rows - 1) / tiling.rows;
    const unsigned long long steps = static_cast<unsigned long long>(shape.K / kBlockK);
    const libxsmm_bfloat16* w = weights[static_cast<size_t>(weight)].data();
    pool->ParallelFor(across * down, [&](int64_t i, int) {
      const int64_t n = tiling.by_rows ? i / down : i % across, m = tiling.by_rows ? i % down : i / across;
      const Kernel kernel = (m + 1) * tiling.rows <= shape.M ? whole : last;
      kernel(w + n * tiling.outputs * shape.K, x.data() + m * tiling.rows * shape.K,
             y + m * tiling.rows * shape.N + n * tiling.outputs, &steps);
    });
  }
};

Product MakeProduct(const PeerProduct& p, const Tiling& tiling, int64_t num_weights, float* y, ThreadPool& pool) {
  const int64_t rest = p.shape.M % tiling.rows;
  Product out{.shape = p.shape,
              .tiling = tiling,
              .whole = MakeKernel(tiling, std::min(tiling.rows, p.shape.M), p.shape.N),
              .last = MakeKernel(tiling, rest > 0 ? rest : tiling.rows, p.shape.N),
              .x = BlockInput(p.x, tiling.rows),
              .y = y,
              .pool = &pool};
  for (int64_t i = 0; i < num_weights; ++i) out.weights.push_back(BlockWeight(p.weight(i), tiling.outputs));
  return out;
}

double SecondsOf(const Product& product) {
  double best = 1e9;
  for (int i = 0; i < 4; ++i) {
    const double start = NowSeconds();
    product.Run(0);
    best = std::min(best, NowSeconds() - start);
  }
  return best;
}

}  // namespace

GemmPeer LibxsmmPeer(const PeerProduct& p) {
  if (p.format != DType::kBf16 || p.shape.K % kBlockK != 0 || p.shape.N % 32 != 0) return {};
  libxsmm_init();
  if (libxsmm_get_target_archid() < LIBXSMM_X86_AVX512_CPX) return {};  // it would emulate bf16
  const auto pool = std::make_shared<ThreadPool>(p.threads);
  const auto out = std::make_shared<Tensor>(std::vector<int64_t>{p.shape.M, p.shape.N});
  Tiling best = {};
  double best_s = 1e9;
  for (const int64_t outputs : {64, 32}) {
    for (const int64_t rows : {24, 48, 64, 96, 128}) {
      if (p.shape.N % outputs != 0 || (rows > 24 && rows > 2 * p.shape.M)) continue;
      for (const bool by_rows : {true, false}) {
        const Product product = MakeProduct(p, {outputs, rows, by_rows}, 1, out->data(), *pool);
        if (!product.usable()) continue;
        if (const double s = SecondsOf(product); s < best_s) best_s = s, best = product.tiling;
      }
    }
  }
  if (best.outputs == 0) return {};
  const auto product = std::make_shared<Product>(MakeProduct(p, best, p.num_weights, out->data(), *pool));
  return {.name = "libxsmm", .run = [product, pool](int64_t i) { product->Run(i); }, .y = out};
}

}  // namespace moe
