#pragma once
// What a machine can do, as kernels and planner both reckon with it: measured by `moe probe`, or from a data sheet.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "moe/base/result.h"
#include "moe/costs/curve.h"
#include "moe/tensor/dtype.h"

namespace moe {

// Products of a step by who reads and writes what; `format` is of the weights.
enum class ProductKind : uint8_t {
  kLinear,      // float32 rows in, float32 out: attention's projections, the head
  kGateUp,      // rows of the format in, SwiGLU of the product out
  kDown,        // rows of the format in, rows of the format out
  kWeightGrad,  // d_w += d_y^T x over the rows
};
inline constexpr int kNumProductKinds = 4;

// One panel (32 outputs) of a product with m rows, all threads at work on panels side by side, weights and rows in the caches:
// inputs * step_s(m) + panel_s(m), for every 1024 inputs once more: longer panels are no faster, by input, than those. Of a
// weight gradient d_w [N,K]: inputs are K, panels N/32.
struct ProductCost {
  DType format = DType::kBf16;
  ProductKind kind = ProductKind::kLinear;
  Curve step_s, panel_s;  // x: rows; panel_s may be empty
  double PanelSeconds(double rows, double inputs) const;
};

// Where weights come from memory while they are multiplied, or their gradients come and go back: computing and moving overlap,
// but not wholly. time = (compute^overlap + (bytes / bandwidth / efficiency)^overlap)^(1/overlap) + matrices * matrix_s +
// list_s: a list of products has a cold start. The bandwidth is that of weights; of gradients, bytes read and written count.
struct StreamCost {
  DType format = DType::kBf16;
  bool gradients = false;
  double efficiency = 1, overlap = 8, matrix_s = 0, list_s = 0;
};

// Of one computed (query, key) pair (AttentionOp) of one head of width P: P * pair_s. x: query rows that share their keys, rows
// of a segment times H/G. row_s: of each row of each head besides.
struct AttentionCost {
  DType format = DType::kBf16;
  Curve pair_s, backward_pair_s;
  double row_s = 0;
  double efficiency = 1, overlap = 4;  // as of StreamCost, keys and values from memory
};

// Work on rows that is no product; time per value, all threads at work, values in the caches.
enum class RowOp : uint8_t {
  kNorm,
  kRope,
  kRound,  // float32 to the format
  kAdd,    // y += x
  kCopy,
  kCopyAlone,  // by one thread
  kCombine,    // per value of a slot's row
  kNormBackward,
  kSwigluBackward,   // per value of the hidden layer
  kCombineBackward,  // per value of a slot's row
  kCrossEntropy,     // per logit
  kSumSquares,
};
inline constexpr int kNumRowOps = 12;
std::string_view Name(RowOp op);
double BytesPerValue(RowOp op);  // read and written

// What a layer's routing takes beside the router's product: call_s + tokens * (token_s + E * expert_s + k * slot_s).
struct RoutingCost {
  double call_s = 0, token_s = 0, expert_s = 0, slot_s = 0;
  double At(double tokens, double experts, double top_k) const {
    return call_s + tokens * (token_s + experts * expert_s + top_k * slot_s);
  }
};

// Two ways to the same bits, timed in turn: how many times as fast the second was. Empty: not measured.
struct SwitchGains {
  Curve interleave;  // rows of a product as they lie, or interleaved first; x: panels of an item
  Curve stream;      // output through the caches, or past them, and read once; x: bytes of it
};

// Of what `moe probe` measures: a profile that was kept by another is measured anew.
inline constexpr int kProfileRevision = 4;

struct MachineProfile {
  std::string name;  // "this machine", or a built-in's
  std::string cpu, isa, version, date;
  std::string source;  // how each figure was come by; one line
  int revision = 0;    // kProfileRevision of what measured it; 0: nothing did
  int threads = 1;
  int64_t l2_bytes = 0, l3_bytes = 0;  // of one core; shared by all
  int64_t memory_bytes = 0;            // 0: unknown

  // Of weights that products of one row read; x: working set in bytes, read again and again. The last point is memory.
  Curve weights_bytes_per_s;
  double read_bytes_per_s = 0;                        // of memory, in order
  double rmw_bytes_per_s = 0;                         // a stream changed in place; both directions count
  double adamw_bytes_per_s = 0;                       // AdamW, packs and all
  double adamw_wide_bytes_per_s = 0;                  // of matrices whose rows are too long to be worked through whole
  double peak_f32 = 0, peak_bf16 = 0, peak_int8 = 0;  // FLOP/s
  double pace_flop_per_s = 0;                         // of the cores while this was measured, see CeilingProbe::Pace
  double handover_s = 0;                              // of a value between threads: how the cores lay; 0: one thread, unknown
  double barrier_s = 0;                               // to begin and end one parallel piece of work
  double step_s = 0;                                  // fixed, of every step: launches, sampling

  std::vector<ProductCost> products;
  std::vector<StreamCost> streams;
  std::vector<AttentionCost> attention;
  std::array<double, kNumRowOps> row_op_s{};  // per value
  RoutingCost routing, routing_backward;
  SwitchGains switches;

  double memory_bytes_per_s() const { return weights_bytes_per_s.points.back().y; }
  double peak_flop_per_s(DType format) const { return format == DType::kF32 ? peak_f32 : peak_bf16; }
  // All have an entry of every format that is asked for; see Complete.
  const ProductCost& product(DType format, ProductKind kind) const;
  const StreamCost& stream(DType format, ProductKind kind) const;
  const AttentionCost& attention_of(DType format) const;
};

// Fills what a data sheet does not say from what it does: products at the peak's rate, rows at the memory's, no overheads.
void Complete(MachineProfile& machine);

// "a100-80g", "h100-sxm", "dgx-spark", "m2-ultra": machines one does not have, from their data sheets.
std::vector<std::string_view> MachineNames();
// An unknown name is an error (wrong usage) that lists the names, nearest first.
Result<MachineProfile> BuiltInMachine(const std::string& name);

}  // namespace moe
