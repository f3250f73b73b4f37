#include "moe/mixture/router_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <type_traits>

#include "moe/base/edit_distance.h"
#include "moe/base/printable.h"

namespace moe {
namespace {

struct Policy {
  std::string_view name;
  RouterConfig (*make)();
};

// Families without a published coefficient train with none; E comes from the model or the logits.
RouterConfig Family(int64_t k, RouterScore score, bool normalize, double balance_loss = 0, double z_loss = 0) {
  return {.top_k = k, .score = score, .normalize = normalize, .balance_loss = balance_loss, .z_loss = z_loss};
}

constexpr std::array kPolicies = {
    // As the releases' Hugging Face code has them.
    Policy{"mixtral", [] { return Family(2, RouterScore::kSoftmax, true, 0.02); }},
    Policy{"olmoe", [] { return Family(8, RouterScore::kSoftmax, false, 0.01, 0.001); }},
    Policy{"qwen2-moe", [] { return Family(4, RouterScore::kSoftmax, false, 0.001); }},
    Policy{"qwen3-moe", [] { return Family(8, RouterScore::kSoftmax, true, 0.001); }},
    Policy{"deepseek-v2",
           [] {
             RouterConfig r = Family(6, RouterScore::kSoftmax, false);
             r.scale = 16, r.groups = 8, r.top_groups = 3, r.zero_other_groups = true, r.sequence_loss = 0.001;
             return r;
           }},
    Policy{"deepseek-v3",
           [] {
             RouterConfig r = Family(8, RouterScore::kSigmoid, true);
             r.normalize_epsilon = 1e-20, r.scale = 2.5, r.balance_bias = BiasRule::kSign, r.sequence_loss = 1e-4;
             r.groups = 8, r.top_groups = 4, r.group_score = GroupScore::kSumOfTwo, r.zero_other_groups = true;
             return r;
           }},
    Policy{"gpt-oss",
           [] {
             RouterConfig r = Family(4, RouterScore::kTopKSoftmax, true);
             r.bias = true;
             return r;
           }},
    Policy{"granite-moe", [] { return Family(8, RouterScore::kTopKSoftmax, true, 0.001); }},
    Policy{"phi-3.5-moe", [] { return Family(2, RouterScore::kSparsemixer, false, 0.001); }},
    Policy{"glm-4.5",
           [] {
             RouterConfig r = Family(8, RouterScore::kSigmoid, true);
             r.normalize_epsilon = 1e-20, r.scale = 2.5, r.balance_bias = BiasRule::kSign;
             return r;
           }},
    Policy{"llama-4",  // top-k of logits, then sigmoid
           [] {
             RouterConfig r = Family(1, RouterScore::kSigmoid, false, 0.001);
             r.gates_input = true;
             return r;
           }},
    // As trainers have them.
    Policy{"as-switch",  // Mesh-TensorFlow
           [] {
             RouterConfig r = Family(1, RouterScore::kSoftmax, false, 0.01);
             r.noise = RouterNoise::kJitter, r.noise_scale = 0.01;
             r.capacity = {.factor = 1.25, .eval_factor = 2, .times_top_k = false, .rounding = Rounding::kFloor, .least = 4};
             return r;
           }},
    Policy{"as-gshard",  // Mesh-TensorFlow's top-2, its second choice always taken
           [] {
             RouterConfig r = Family(2, RouterScore::kSoftmax, true);
             r.normalize_epsilon = 1e-9, r.gshard_loss = 0.01;
             r.capacity = {.factor = 1.25,
                           .eval_factor = 2,
                           .times_top_k = false,
                           .rounding = Rounding::kFloor,
                           .least = 4,
                           .drop = DropOrder::kFirstChoices};
             return r;
           }},
    Policy{"as-megablocks",
           [] {
             RouterConfig r = Family(1, RouterScore::kSoftmax, false, 0.1);
             r.capacity = {.factor = 1, .eval_factor = 1, .rounding = Rounding::kFloor, .least = 0, .zero_is_dropless = true};
             return r;
           }},
    Policy{"as-deepspeed",  // top-1, random token selection
           [] {
             RouterConfig r = Family(1, RouterScore::kSoftmax, false, 0.01);
             r.capacity = {.factor = 1, .eval_factor = 1, .least = 4, .drop = DropOrder::kRandom};
             return r;
           }},
    Policy{"as-deepspeed-top2",
           [] {
             RouterConfig r = Family(2, RouterScore::kSoftmax, true);
             r.normalize_after_drop = true, r.gshard_loss = 0.01;
             r.noise = RouterNoise::kGumbel, r.noise_scale = 1;
             r.capacity = {.factor = 1, .eval_factor = 1, .least = 4, .drop = DropOrder::kFirstChoices};
             return r;
           }},
    Policy{"as-deepspeed-topk",
           [] {
             RouterConfig r = Family(4, RouterScore::kSoftmax, true, 0.01);
             r.normalize_after_drop = true;
             r.capacity = {.factor = 1, .eval_factor = 1, .least = 4, .drop = DropOrder::kScore};
             return r;
           }},
    Policy{"as-megatron", [] { return Family(2, RouterScore::kTopKSoftmax, true, 0.01); }},
    Policy{"as-megatron-capacity",
           [] {
             RouterConfig r = Family(2, RouterScore::kTopKSoftmax, true, 0.01);
             r.capacity = {.factor = 1, .eval_factor = 1, .least = 0, .drop = DropOrder::kScore};
             return r;
           }},
};

template <class T>
Result<T> ParseNumber(std::string_view text, std::string_view what, const std::string& where) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    return Err(where, "got '{}', expected {}", Printable(text), what);
  }
  return value;
}

// A field from text; ranges are Validate's business.
struct TextReader {
  std::string_view text;
  std::string where;

  Status Read(int64_t& member) const {
    MOE_TRY(member, ParseNumber<int64_t>(text, "a whole number", where));
    return {};
  }
  Status Read(double& member) const {
    MOE_TRY(member, ParseNumber<double>(text, "a number", where));
    return {};
  }
  Status Read(bool& member) const {
    if (text != "true" && text != "false") return Err(where, "got '{}', expected true or false", Printable(text));
    member = text == "true";
    return {};
  }
  template <class T, size_t n>
  Status Read(T& member, const Choices<T, n>& choices) const {
    std::string names;
    for (const auto& [name, value] : choices.values) {
      if (name == text) {
        member = value;
        return {};
      }
      names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
    }
    return Err(where, "got '{}', expected one of {}", Printable(text), names);
  }
  template <class T, class Range>
  Status Read(T& member, const Range&) const {
    return Read(member);
  }
};

Status CheckRange(const std::string& where, int64_t value, const WholeRange& range) {
  if (value >= range.least && value <= range.most) return {};
  return Err(where, "got {}, expected {}..{}", value, range.least, range.most);
}
Status CheckRange(const std::string& where, double value, const NumberRange& range) {
  const bool inside = std::isfinite(value) && (range.open_below ? value > range.least : value >= range.least) &&
                      (range.open_above ? value < range.most : value <= range.most);
  if (inside) return {};
  std::string expected = fmt::format("a number {} {}", range.open_below ? "above" : "of at least", range.least);
  if (range.most < kMostNumber) expected += fmt::format(" and {} {}", range.open_above ? "below" : "at most", range.most);
  return Err(where, "got {}, expected {}", value, expected);
}
template <class T, class Range>
Status CheckRange(const std::string&, const T&, const Range&) {
  return {};  // true or false, or one of the names
}

struct Checker {
  const std::string& where;

  template <class... Args>
  tl::unexpected<Error> operator()(std::string_view field, fmt::format_string<Args...> format, Args&&... args) const {
    return Err(fmt::format("{}: {}", where, field), "{}", fmt::format(format, std::forward<Args>(args)...));
  }
};

Status CheckSelection(const RouterConfig& r, const Checker& wrong) {
  const int64_t E = r.num_experts;
  if (r.groups > 1) {
    if (E % r.groups != 0) return wrong("groups", "got {}, expected a divisor of the {} experts", r.groups, E);
    if (r.group_score == GroupScore::kSumOfTwo && E / r.groups < 2) {
      return wrong("groups", "got {} of one expert, expected two or more in each: a group's score is the sum of its best two",
                   r.groups);
    }
  }
  if (r.top_groups > r.groups) return wrong("top_groups", "got {}, expected 1..{}, the groups", r.top_groups, r.groups);
  if (const int64_t left = r.top_groups * (E / r.groups); r.top_k > left) {
    return wrong("top_k", "got {}, expected 1..{}, the experts of {} groups", r.top_k, left, r.top_groups);
  }
  if (r.score == RouterScore::kSparsemixer && r.top_k > 2) {
    return wrong("top_k", "got {}, expected 1 or 2: sparsemixer knows no third choice", r.top_k);
  }
  const bool plain = r.selection == RouterSelection::kTopK && r.score != RouterScore::kRelu;
  if (!plain) {
    const std::string_view name =
        r.score == RouterScore::kRelu ? NameIn(kRouterScores, r.score) : NameIn(kRouterSelections, r.selection);
    if (r.score == RouterScore::kRelu && r.selection != RouterSelection::kTopK) {
      return wrong("selection", "got {} with relu, expected top_k: relu chooses by itself",
                   NameIn(kRouterSelections, r.selection));
    }
    if (r.groups > 1) return wrong("groups", "got {} with {}, expected 1", r.groups, name);
    if (r.selects_by_bias()) {
      return wrong("balance_bias", "got {} with {}, expected none: there is no selection score to add it to",
                   NameIn(kBiasRules, r.balance_bias), name);
    }
  }
  if (r.score == RouterScore::kSparsemixer && (r.selects_by_bias() || r.groups > 1 || !plain)) {
    return wrong("score",
                 "got sparsemixer with groups, a selection bias or another selection than top_k, expected none of them");
  }
  if (r.selection == RouterSelection::kSinkhorn && r.score != RouterScore::kSoftmax && r.score != RouterScore::kSigmoid) {
    return wrong("score", "got {} with sinkhorn, expected softmax or sigmoid", NameIn(kRouterScores, r.score));
  }
  if (r.selection == RouterSelection::kExpertChoice &&
      (r.score == RouterScore::kTopKSoftmax || r.score == RouterScore::kSparsemixer)) {
    return wrong("score", "got {} with expert_choice, expected a score of its own for every expert",
                 NameIn(kRouterScores, r.score));
  }
  if (r.selection == RouterSelection::kExpertChoice && r.normalize) {
    return wrong("normalize",
                 "got true with expert_choice, expected false: how many experts a token has is not its own choice");
  }
  return {};
}

Status CheckRest(const RouterConfig& r, const Checker& wrong) {
  if ((r.gate == GateNetwork::kLinear) != (r.gate_width == 0)) {
    return wrong("gate_width", "got {} with the {} gate, expected {}", r.gate_width, NameIn(kGateNetworks, r.gate),
                 r.gate_width == 0 ? "1 or more hidden values" : "0: only mlp and cosine have hidden values");
  }
  if (r.dtype != DType::kF32 && r.gate != GateNetwork::kLinear)
    return wrong("dtype", "got {} with the {} gate, expected f32", Name(r.dtype), NameIn(kGateNetworks, r.gate));
  if (r.load_loss > 0 &&
      (r.noise != RouterNoise::kGaussian || r.selection != RouterSelection::kTopK || r.groups > 1 || r.selects_by_bias())) {
    return wrong(
        "load_loss",
        "got {}, expected 0, or gaussian noise and plain top_k without groups and selection bias: it is the chance that "
        "noise brings an expert among the k best logits",
        r.load_loss);
  }
  if (r.normalize_after_drop && !r.normalize) {
    return wrong("normalize_after_drop", "got true without normalize, expected both");
  }
  if (r.normalize && r.score == RouterScore::kSparsemixer) {
    return wrong("normalize", "got true with sparsemixer, expected false: its two gates are softmaxes of their own");
  }
  const bool sums_to_one = r.score == RouterScore::kTopKSoftmax || r.normalize;
  if (r.top_k == 1 && r.num_experts > 1 && sums_to_one && !r.has_varying_k()) {
    return wrong("top_k",
                 "got 1 with gates that sum to 1 over the chosen, so that the router would get no gradient, expected a score "
                 "over all experts without normalize, or top_k >= 2");
  }
  if ((r.noise != RouterNoise::kNone) != (r.noise_scale > 0)) {
    return wrong("noise_scale", "got {} with noise {}, expected {}", r.noise_scale, NameIn(kRouterNoises, r.noise),
                 r.noise == RouterNoise::kNone ? "0" : "a number above 0");
  }
  if (r.noise == RouterNoise::kGaussian && r.score == RouterScore::kRelu) {
    return wrong("noise", "got gaussian with relu, expected none or jitter: whoever is above 0 is chosen");
  }
  if (r.score == RouterScore::kTopKSoftmax && r.normalize_epsilon > 0) {
    return wrong("normalize_epsilon", "got {} with topk_softmax, expected 0: its gates sum to 1 by themselves",
                 r.normalize_epsilon);
  }
  if (r.noise == RouterNoise::kJitter && r.noise_scale >= 1) {
    return wrong("noise_scale", "got {}, expected less than 1: jitter multiplies by 1 - noise_scale and more", r.noise_scale);
  }
  if (r.noise == RouterNoise::kGumbel && (r.groups > 1 || r.selects_by_bias() || r.selection != RouterSelection::kTopK ||
                                          r.score == RouterScore::kRelu || r.score == RouterScore::kSparsemixer)) {
    return wrong("noise", "got gumbel, expected plain top_k without groups and selection bias: it is what is chosen by");
  }
  const CapacityConfig& c = r.capacity;
  if (r.selection == RouterSelection::kExpertChoice && (c.factor > 0 || c.eval_factor > 0)) {
    return wrong("capacity_factor", "got {} with expert_choice, expected 0: experts take as many tokens as they choose",
                 std::max(c.factor, c.eval_factor));
  }
  if (c.target_drop > 0 && c.factor == 0) {
    return wrong("target_drop", "got {} without capacity_factor, expected the factor to begin with", c.target_drop);
  }
  if (c.target_drop > 0 && (c.least_factor > c.factor || c.factor > c.most_factor)) {
    return wrong("capacity_factor", "got {}, expected {}..{}, the bounds of a capacity that follows the drops", c.factor,
                 c.least_factor, c.most_factor);
  }
  return {};
}

}  // namespace

Status Validate(const RouterConfig& config, const std::string& where) {
  const Checker wrong{where};
  if (config.num_experts < 1 || config.num_experts > INT32_MAX) {
    return wrong("experts", "got {}, expected at least 1", config.num_experts);
  }
  if (config.top_k < 1 || config.top_k > config.num_experts) {
    return wrong("top_k", "got {}, expected 1..{}, the number of experts", config.top_k, config.num_experts);
  }
  Status status;
  VisitRouter(config, [&](std::string_view name, const auto& member, const auto& range) {
    if (status) status = CheckRange(fmt::format("{}: {}", where, name), member, range);
  });
  MOE_TRY(status);
  MOE_TRY(CheckSelection(config, wrong));
  return CheckRest(config, wrong);
}

RouterConfig PlainRouter(int64_t num_experts, int64_t top_k, bool normalize) {
  return {.num_experts = num_experts, .top_k = top_k, .normalize = normalize, .balance_loss = 0, .z_loss = 0};
}

RouterConfig AsServed(RouterConfig config) {
  const RouterConfig plain = PlainRouter(config.num_experts, config.top_k, config.normalize);
  if (config.selection == RouterSelection::kSinkhorn) config.selection = RouterSelection::kTopK;
  if (config.balance_bias != BiasRule::kNone) config.balance_bias = BiasRule::kKept;
  if (config.capacity.eval_factor == 0) config.capacity = {}, config.normalize_after_drop = false;
  config.capacity.factor = config.capacity.target_drop = 0;
  config.capacity.least_factor = plain.capacity.least_factor, config.capacity.most_factor = plain.capacity.most_factor;
  config.noise = plain.noise, config.noise_scale = plain.noise_scale, config.bias_rate = plain.bias_rate;
  config.sinkhorn_tolerance = plain.sinkhorn_tolerance, config.sinkhorn_rounds = plain.sinkhorn_rounds;
  config.balance_loss = config.gshard_loss = config.importance_loss = config.load_loss = config.sequence_loss =
      config.global_loss = config.z_loss = 0;
  return config;
}

std::optional<RouterConfig> PolicyNamed(std::string_view name) {
  const auto policy = std::ranges::find(kPolicies, name, &Policy::name);
  return policy == kPolicies.end() ? std::nullopt : std::optional(policy->make());
}

std::vector<std::string_view> PolicyNames() {
  std::vector<std::string_view> names;
  for (const Policy& policy : kPolicies) names.push_back(policy.name);
  return names;
}

namespace {

Result<RouterConfig> Parse(std::string_view text, int64_t num_experts, const std::string& where, const RouterConfig& base) {
  RouterConfig config = base;
  std::vector<std::string_view> names;
  VisitRouter(config, [&](std::string_view name, const auto&, const auto&) { names.push_back(name); });
  const auto nearest = [](std::string_view name, std::vector<std::string_view> known) {
    std::ranges::stable_sort(known, {}, [&](std::string_view k) { return EditDistance(name, k); });
    return known.front();
  };
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view part = text.substr(begin, end - begin);
    const bool first = begin == 0;
    begin = end + 1;
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos) {
      const auto policy = PolicyNamed(part);
      const std::string shown = Printable(part.substr(0, 64));
      if (!policy) {
        return Err(where, "got '{}', expected a policy or KEY=VALUE, the nearest policy is {}", shown,
                   nearest(part.substr(0, 64), PolicyNames()));
      }
      if (!first) return Err(where, "got the policy {} after something else, expected it first", shown);
      config = *policy;
      continue;
    }
    const std::string_view key = part.substr(0, equals);
    if (std::ranges::find(names, key) == names.end()) {
      return Err(where, "got the unknown key '{}', the nearest is {}", Printable(key.substr(0, 64)),
                 nearest(key.substr(0, 64), names));
    }
    Status status;
    VisitRouter(config, [&](std::string_view name, auto& member, const auto& range) {
      if (name == key) status = TextReader{part.substr(equals + 1), fmt::format("{}: {}", where, name)}.Read(member, range);
    });
    MOE_TRY(status);
  }
  config.num_experts = num_experts;
  MOE_TRY(Validate(config, where));
  return config;
}

}  // namespace

Result<RouterConfig> ParsePolicy(std::string_view text, int64_t num_experts, const std::string& where,
                                 const RouterConfig& base) {
  auto config = Parse(text, num_experts, where, base);
  if (!config) config.error().exit_code = 2;
  return config;
}

}  // namespace moe
