#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/base/check.h"
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
  int64_t panel_stride = 0;  // bytes from panel to panel where that is more than a panel's: a view of some inputs; 0: no gap

  bool empty() const { return data == nullptr; }
  int64_t num_panels() const { return (N + kPanel - 1) / kPanel; }
  int64_t panel_bytes() const { return PanelBytes(format, K); }
  int64_t bytes() const { return num_panels() * panel_bytes(); }
  const std::byte* panel(int64_t i) const { return data + i * (panel_stride > 0 ? panel_stride : panel_bytes()); }

  // The weight of `count` outputs from `begin`, a multiple of the panel.
  PackedWeight Outputs(int64_t begin, int64_t count) const {
    MOE_CHECK(begin >= 0 && begin % kPanel == 0 && count >= 0 && begin + count <= N, "outputs {}+{} of {}", begin, count, N);
    PackedWeight part = *this;
    part.N = count, part.data = panel(begin / kPanel);
    return part;
  }
  // The weight of `count` inputs from `begin`; both even, as bf16 goes in pairs.
  PackedWeight Inputs(int64_t begin, int64_t count) const {
    MOE_CHECK(begin >= 0 && begin % 2 == 0 && count >= 0 && count % 2 == 0 && begin + count <= K, "inputs {}+{} of {}", begin,
              count, K);
    PackedWeight part = *this;
    part.panel_stride = panel_stride > 0 ? panel_stride : panel_bytes();
    part.K = count, part.data += PanelBytes(format, begin);
    return part;
  }

  static constexpr int64_t PanelBytes(DType format, int64_t K) {
    return format == DType::kBf16 ? (K + 1) / 2 * kPanel * 4 : K * kPanel * 4;
  }
  static constexpr int64_t Bytes(DType format, int64_t N, int64_t K) {
    return (N + kPanel - 1) / kPanel * PanelBytes(format, K);
  }
};

}  // namespace moe
