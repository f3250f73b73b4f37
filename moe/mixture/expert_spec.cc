#include "moe/mixture/expert_spec.h"

#include <array>
#include <charconv>
#include <utility>

#include "moe/base/printable.h"

namespace moe {
namespace {

constexpr int64_t kWidthMultiple = 16;  // gates and ups are interleaved in groups of it
constexpr int64_t kMost = int64_t{1} << 24;

constexpr std::array<std::pair<std::string_view, Activation>, kNumActivations> kActivations = {
    {{"silu", Activation::kSilu},
     {"gelu", Activation::kGelu},
     {"gelu_tanh", Activation::kGeluTanh},
     {"relu2", Activation::kRelu2}}};
constexpr std::array<std::pair<std::string_view, ExpertKind>, 3> kKinds = {
    {{"zero", ExpertKind::kZero}, {"copy", ExpertKind::kCopy}, {"constant", ExpertKind::kConstant}}};

template <class T, size_t n>
const T* Find(const std::array<std::pair<std::string_view, T>, n>& names, std::string_view name) {
  for (const auto& [known, value] : names) {
    if (known == name) return &value;
  }
  return nullptr;
}

std::vector<std::string_view> Words(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t begin = 0; (begin = text.find_first_not_of(' ', begin)) != std::string_view::npos;) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    words.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return words;
}

// 0: none.
int64_t Count(std::string_view word) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  return error == std::errc() && end == word.data() + word.size() && value > 0 && value <= kMost ? value : 0;
}

}  // namespace

Status Validate(const ExpertSpec& spec, const std::string& where) {
  if (!spec.is_ffn()) return {};
  if (spec.width < kWidthMultiple || spec.width % kWidthMultiple != 0) {
    return Err(where, "got width {}, expected a multiple of {}", spec.width, kWidthMultiple);
  }
  if (spec.depth < 1 || spec.depth > 2) return Err(where, "got depth {}, expected 1 or 2", spec.depth);
  return {};
}

int64_t ValuesOf(const ExpertSpec& spec, int64_t D) {
  if (spec.kind == ExpertKind::kConstant) return 3 * D;
  if (!spec.is_ffn()) return 0;
  const int64_t middle = spec.depth == 2 ? spec.product_width() * spec.width : 0;
  return spec.product_width() * D + middle + D * spec.width;
}

double RoughValuesOf(const ExpertSpec& spec, int64_t D) {
  const auto d = static_cast<double>(D), F = static_cast<double>(spec.width), gates = spec.gated ? 2.0 : 1.0;
  if (!spec.is_ffn()) return 3 * d;
  return (gates + 1) * d * F + (spec.depth > 1 ? gates * F * F : 0);
}

Result<ExpertGroup> ParseExpertGroup(std::string_view text, const std::string& where) {
  const auto wrong = [&](std::string_view expected) {
    return Err(where, "got the entry \"{}\", expected {}", Printable(text), expected);
  };
  const std::vector<std::string_view> words = Words(text);
  ExpertGroup group{.count = words.empty() ? 0 : Count(words[0])};
  if (group.count == 0) return wrong("a count first, as in \"6 silu 256\" or \"1 zero\"");
  if (words.size() < 2) return wrong("silu, gelu, gelu_tanh or relu2 and a width, or zero, copy or constant, after the count");
  ExpertSpec& spec = group.spec;
  if (const ExpertKind* kind = Find(kKinds, words[1])) {
    spec = {.kind = *kind};
    if (words.size() > 2) return wrong("nothing after zero, copy and constant: they have no width");
    return group;
  }
  const Activation* activation = Find(kActivations, words[1]);
  if (activation == nullptr) return wrong("silu, gelu, gelu_tanh, relu2, zero, copy or constant after the count");
  spec.activation = *activation;
  spec.width = words.size() < 3 ? 0 : Count(words[2]);
  if (spec.width == 0) return wrong("a width after the activation, as in \"6 silu 256\"");
  for (size_t i = 3; i < words.size(); ++i) {
    if (words[i] == "plain" && spec.gated) {
      spec.gated = false;
    } else if (words[i] == "deep" && spec.depth == 1) {
      spec.depth = 2;
    } else {
      return wrong("at most plain and deep, each once, after the width");
    }
  }
  MOE_TRY(Validate(spec, fmt::format("{}: \"{}\"", where, Printable(text))));
  return group;
}

std::string ToText(const ExpertGroup& group) {
  const ExpertSpec& spec = group.spec;
  for (const auto& [name, kind] : kKinds) {
    if (kind == spec.kind) return fmt::format("{} {}", group.count, name);
  }
  return fmt::format("{} {} {}{}{}", group.count, kActivations[static_cast<size_t>(spec.activation)].first, spec.width,
                     spec.gated ? "" : " plain", spec.depth == 2 ? " deep" : "");
}

}  // namespace moe
