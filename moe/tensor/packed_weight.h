#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/tensor/dtype.h"

namespace moe {

inline constexpr int64_t kPanel = 32;  // columns of one panel, in every format

// A weight matrix in the order a kernel reads it: opaque bytes that somebody else owns, and what they mean. Made by ops/gemm.h.
//   f32:  [N/32][K][32]        column n of panel p is output 32p + n
//   bf16: [N/32][K/2][32][2]   pairs along K, the order vdpbf16ps wants; K odd: the last pair is (x, 0)
// N is padded to the panel with zeros. One contiguous stream when M = 1, cache-resident blocks when M is large.
struct PackedWeight {
  DType format = DType::kF32;
  int64_t N = 0;  // outputs
  int64_t K = 0;  // inputs
  int32_t layout_version = 1;
  const std::byte* data = nullptr;

  bool empty() const { return data == nullptr; }
  int64_t num_panels() const { return (N + kPanel - 1) / kPanel; }
  int64_t panel_bytes() const { return PanelBytes(format, K); }
  int64_t bytes() const { return num_panels() * panel_bytes(); }

  static constexpr int64_t PanelBytes(DType format, int64_t K) {
    return format == DType::kBf16 ? (K + 1) / 2 * kPanel * 4 : K * kPanel * 4;
  }
  static constexpr int64_t Bytes(DType format, int64_t N, int64_t K) {
    return (N + kPanel - 1) / kPanel * PanelBytes(format, K);
  }
};

}  // namespace moe
