#pragma once
// What an expert is. The experts of a layer may differ: they come in groups of the same kind, in expert order.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "moe/base/result.h"
#include "moe/ops/activation.h"

namespace moe {

enum class ExpertKind : uint8_t {
  kFfn,
  kZero,      // 0: the token skips the layer; no row, no product
  kCopy,      // x
  kConstant,  // a1 x + a2 v, (a1, a2) = softmax(W x); v [D] and W [2,D] learned (Jin et al. 2024, MoE++, eq. 3-5)
};

// A hidden layer of an FFN is f(gate x) * (up x), or, plain, f(up x); then comes down.
struct ExpertSpec {
  ExpertKind kind = ExpertKind::kFfn;
  Activation activation = Activation::kSilu;
  bool gated = true;
  int64_t width = 0;  // F, a multiple of 16
  int64_t depth = 1;  // hidden layers, 1 or 2, of the same width

  bool operator==(const ExpertSpec&) const = default;

  bool is_ffn() const { return kind == ExpertKind::kFfn; }
  bool is_swiglu() const { return is_ffn() && gated && activation == Activation::kSilu; }
  int64_t product_width() const { return gated ? 2 * width : width; }  // before the activation
};

struct ExpertGroup {
  ExpertSpec spec;
  int64_t count = 0;

  bool operator==(const ExpertGroup&) const = default;
};

Status Validate(const ExpertSpec& spec, const std::string& where);

// Learned values of one expert. In double, for shapes that nobody has checked yet.
int64_t ValuesOf(const ExpertSpec& spec, int64_t D);
double RoughValuesOf(const ExpertSpec& spec, int64_t D);

// "6 silu 256", "1 relu2 512 plain", "2 gelu 256 plain deep", "1 zero": count, then a kind without products, or activation and
// width, then "plain" (no gates) and "deep" (two hidden layers). Activations: silu, gelu (by erf), gelu_tanh, relu2. An error
// names the entry.
Result<ExpertGroup> ParseExpertGroup(std::string_view text, const std::string& where);
std::string ToText(const ExpertGroup& group);

}  // namespace moe
