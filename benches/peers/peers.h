#pragma once
// Other libraries that multiply matrices, those that were found when this was built. Never linked into `moe`.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "moe/planner/bench_gemm.h"
#include "moe/tensor/tensor.h"

namespace moe {

struct GemmPeer {
  std::string name;
  std::function<void(int64_t weight)> run;  // y = x W_weight^T; empty: it cannot do this product
  std::shared_ptr<Tensor> y;                // [M,N]
};

// Each is given what it likes best, none of it timed: weights packed once, and of bf16 products the inputs rounded already.
GemmPeer OneDnnPeer(const PeerProduct& product);    // f32 and bf16
GemmPeer LibxsmmPeer(const PeerProduct& product);   // bf16
GemmPeer OpenBlasPeer(const PeerProduct& product);  // f32

// All that can do the product and do it right: one whose result is not ours is refused, loudly, on stderr.
std::vector<BenchPeer> InstalledPeers(const PeerProduct& product);
std::string InstalledPeerNames();  // "onednn, openblas"

// Before anything else in main: starts the program again with what peers must be told by the environment.
void PreparePeers(char** argv);

}  // namespace moe
