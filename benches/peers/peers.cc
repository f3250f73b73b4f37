#include "benches/peers/peers.h"

#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <utility>

namespace moe {
namespace {

struct Peer {
  const char* name;
  GemmPeer (*make)(const PeerProduct& product);
};
const std::vector<Peer>& Peers() {
  static const std::vector<Peer> peers = {
#ifdef MOE_PEER_ONEDNN
      {"onednn", OneDnnPeer},
#endif
#ifdef MOE_PEER_LIBXSMM
      {"libxsmm", LibxsmmPeer},
#endif
#ifdef MOE_PEER_OPENBLAS
      {"openblas", OpenBlasPeer},
#endif
  };
  return peers;
}

std::vector<double> RowNorms(MatView<const float> m) {
  std::vector<double> norms;
  for (int64_t r = 0; r < m.rows; ++r) {
    double sum = 0;
    for (const float x : m.row_span(r)) sum += static_cast<double>(x) * x;
    norms.push_back(std::sqrt(sum));
  }
  return norms;
}

// Both sum the same K products in float32, in orders of their own: each is within K eps sum |x w| <= K eps |x| |w| of the
// truth. Rounded inputs are within (1 + 2^-8) of these norms.
std::string Difference(const PeerProduct& product, const Tensor& y) {
  const std::vector<double> x = RowNorms(product.x), w = RowNorms(product.weight(0));
  const double eps = std::numeric_limits<float>::epsilon() / 2, factor = 2.1 * static_cast<double>(product.shape.K) * eps;
  const MatView<const float> theirs = y.mat();
  for (int64_t m = 0; m < product.shape.M; ++m) {
    for (int64_t n = 0; n < product.shape.N; ++n) {
      const double expected = product.y(m, n), got = theirs(m, n);
      const double tolerance = factor * x[static_cast<size_t>(m)] * w[static_cast<size_t>(n)];
      if (!(std::abs(got - expected) <= tolerance)) {
        return fmt::format("got {} at [{},{}], expected {} within {:.2g}", got, m, n, expected, tolerance);
      }
    }
  }
  return "";
}

}  // namespace

std::vector<BenchPeer> InstalledPeers(const PeerProduct& product) {
  std::vector<BenchPeer> out;
  for (const Peer& peer : Peers()) {
    const GemmPeer made = peer.make(product);
    if (!made.run) continue;
    for (float& y : made.y->span()) y = NAN;
    made.run(0);
    if (const std::string wrong = Difference(product, *made.y); !wrong.empty()) {
      fmt::print(stderr, "REFUSED: {} computes {} {}x{}x{} wrongly: {}\n", made.name, Name(product.format), product.shape.M,
                 product.shape.N, product.shape.K, wrong);
      continue;
    }
    out.push_back({made.name, [made, next = int64_t{0}, count = product.num_weights]() mutable { made.run(next++ % count); }});
  }
  return out;
}

std::string InstalledPeerNames() {
  std::vector<std::string> names;
  for (const Peer& peer : Peers()) names.emplace_back(peer.name);
  return names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "));
}

void PreparePeers(char** argv) {
  bool changed = false;
  // An environment that speaks of another CPU makes OpenBLAS half as fast; without, it finds the right kernels.
  for (const char* name : {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "DNNL_MAX_CPU_ISA", "LIBXSMM_TARGET"}) {
    changed |= getenv(name) != nullptr;
    unsetenv(name);
  }
  // After their work OpenBLAS's threads look for more for 2^26 cycles, and OpenMP's for 300000 pauses: tens of milliseconds, on
  // the processors that the next run wants. Half a millisecond is long enough for runs that follow each other.
  for (const auto& [name, value] : {std::pair{"OPENBLAS_THREAD_TIMEOUT", "20"}, {"GOMP_SPINCOUNT", "20000"}}) {
    changed |= getenv(name) == nullptr;
    setenv(name, value, /*replace=*/0);
  }
  if (changed) execv("/proc/self/exe", argv);  // the libraries look before main begins; returns only when it fails
}

}  // namespace moe
