// OpenBLAS's sgemm. It has no packed weights in its interface and packs in every call.
#include <cblas.h>

#include "benches/peers/peers.h"

namespace moe {

GemmPeer OpenBlasPeer(const PeerProduct& product) {
  if (product.format != DType::kF32) return {};
  const auto [M, N, K] = product.shape;
  const auto out = std::make_shared<Tensor>(std::vector<int64_t>{M, N});
  const auto weights = std::make_shared<std::vector<Tensor>>();
  for (int64_t i = 0; i < product.num_weights; ++i) {
    const MatView<const float> w = product.weight(i);
    weights->emplace_back(std::vector<int64_t>{N, K});
    std::copy_n(w.data, w.size(), weights->back().data());
  }
  return {.name = "openblas",
          .run =
              [=, s = product.shape, x = product.x, threads = product.threads](int64_t i) {
                openblas_set_num_threads(threads);
                const auto m = static_cast<blasint>(s.M), n = static_cast<blasint>(s.N), k = static_cast<blasint>(s.K);
                cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1.0f, x.data, k,
                            (*weights)[static_cast<size_t>(i)].data(), k, 0.0f, out->data(), n);
              },
          .y = out};
}

}  // namespace moe
