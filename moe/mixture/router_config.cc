#include "moe/mixture/router_config.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace moe {
namespace {

// Fields without a meaning, by what others say.
struct IdleFields {
  bool (*idle)(const RouterConfig&);
  std::string_view because;
  std::initializer_list<std::string_view> fields;
};
const IdleFields kIdleFields[] = {
    {[](const RouterConfig& r) { return r.capacity.factor == 0 && r.capacity.eval_factor == 0; },
     "nothing is dropped without capacity_factor or eval_capacity_factor",
     {"capacity_times_top_k", "capacity_rounding", "least_capacity", "zero_capacity_is_dropless", "drop", "capacity_scope",
      "normalize_after_drop"}},
    {[](const RouterConfig& r) { return r.capacity.target_drop == 0; },
     "the capacity follows no drops without target_drop",
     {"least_capacity_factor", "most_capacity_factor"}},
    {[](const RouterConfig& r) { return r.groups == 1; }, "groups is 1", {"top_groups", "group_score", "zero_other_groups"}},
    {[](const RouterConfig& r) { return r.balance_bias != BiasRule::kSign && r.balance_bias != BiasRule::kLoad; },
     "balance_bias is neither \"sign\" nor \"load\"",
     {"bias_rate"}},
    {[](const RouterConfig& r) { return !r.normalize; }, "normalize is false", {"normalize_epsilon"}},
    {[](const RouterConfig& r) { return r.gate == GateNetwork::kLinear; }, "gate is \"linear\"", {"gate_width"}},
    {[](const RouterConfig& r) { return r.noise == RouterNoise::kNone; }, "noise is \"none\"", {"noise_scale"}},
    {[](const RouterConfig& r) { return r.score != RouterScore::kSparsemixer; },
     "score is not \"sparsemixer\"",
     {"sparsemixer_jitter"}},
    {[](const RouterConfig& r) { return r.selection != RouterSelection::kSinkhorn; },
     "selection is not \"sinkhorn\"",
     {"sinkhorn_tolerance", "sinkhorn_rounds"}},
    {[](const RouterConfig& r) { return r.selection != RouterSelection::kExpertChoice; },
     "selection is not \"expert_choice\"",
     {"allow_noncausal"}}};

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
  const bool gumbel = r.noise == RouterNoise::kGumbel || r.noise == RouterNoise::kGumbelLater;
  if (gumbel && (r.groups > 1 || r.selects_by_bias() || r.selection != RouterSelection::kTopK ||
                 r.score == RouterScore::kRelu || r.score == RouterScore::kSparsemixer)) {
    return wrong("noise", "got {}, expected plain top_k without groups and selection bias: it is what is chosen by",
                 NameIn(kRouterNoises, r.noise));
  }
  if (r.noise == RouterNoise::kGumbelLater && r.top_k == 1) {
    return wrong("noise", "got gumbel_later with top_k 1, expected gumbel: there is no later choice that noise could change");
  }
  if (r.selection == RouterSelection::kHash) {  // counts that no router makes would only pull at its probabilities
    for (const auto& [loss, coefficient] : {std::pair{"balance_loss", r.balance_loss},
                                            {"gshard_loss", r.gshard_loss},
                                            {"sequence_loss", r.sequence_loss},
                                            {"global_loss", r.global_loss}}) {
      if (coefficient > 0) {
        return wrong(loss, "got {} with hash, expected 0: who goes where is not the router's to say", coefficient);
      }
    }
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

std::string_view IdleBecause(const RouterConfig& config, std::string_view field) {
  for (const IdleFields& rule : kIdleFields) {
    if (std::ranges::find(rule.fields, field) != rule.fields.end() && rule.idle(config)) return rule.because;
  }
  return "";
}

void ResetFields(RouterConfig& config, const std::function<bool(std::string_view name)>& which) {
  const RouterConfig fresh;
  VisitRouter(config, [&](std::string_view name, auto& member, const auto&) {
    if (!which(name)) return;
    VisitRouter(fresh, [&](std::string_view other, const auto& value, const auto&) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(value)>, std::remove_cvref_t<decltype(member)>>) {
        if (other == name) member = value;
      }
    });
  });
}

}  // namespace moe
