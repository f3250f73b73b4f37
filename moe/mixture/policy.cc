// Policies by name, and as text.

#include <algorithm>
#include <charconv>
#include <type_traits>

#include "moe/base/edit_distance.h"
#include "moe/base/printable.h"
#include "moe/mixture/router_config.h"

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
    // As the releases' Hugging Face code has them (transformers, models/<family>/modeling_<family>.py). Formulas of the fields
    // stand in router_config.h; testing/policy_oracle.py writes each policy out in PyTorch.
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
    // As trainers have them: rows of an expert = max(least, round(factor * T [* k] / E)).
    Policy{"as-switch",  // mesh_tensorflow/transformer/moe.py, _switch_gating; max(4, floor(1.25 T / E))
           [] {
             RouterConfig r = Family(1, RouterScore::kSoftmax, false, 0.01);
             r.noise = RouterNoise::kJitter, r.noise_scale = 0.01;
             r.capacity = {.factor = 1.25, .eval_factor = 2, .times_top_k = false, .rounding = Rounding::kFloor, .least = 4};
             return r;
           }},
    Policy{"as-gshard",  // the same file, _top_2_gating with second_policy "all": gates over their sum, then drops
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
    Policy{"as-megablocks",  // megablocks/layers/router.py, moe.py: floor(T k / E), and dropless where that is 0
           [] {
             RouterConfig r = Family(1, RouterScore::kSoftmax, false, 0.1);
             r.capacity = {.factor = 1, .eval_factor = 1, .rounding = Rounding::kFloor, .least = 0, .zero_is_dropless = true};
             return r;
           }},
    Policy{"as-deepspeed",  // deepspeed/moe/sharded_moe.py, top1gating with use_rts; max(4, ceil(T / E))
           [] {
             RouterConfig r = Family(1, RouterScore::kSoftmax, false, 0.01);
             r.capacity = {.factor = 1, .eval_factor = 1, .least = 4, .drop = DropOrder::kRandom};
             return r;
           }},
    Policy{"as-deepspeed-top2",  // top2gating: drops, then gates over their sum; its loss counts first choices
           [] {
             RouterConfig r = Family(2, RouterScore::kSoftmax, true);
             r.normalize_after_drop = true, r.gshard_loss = 0.01;
             r.noise = RouterNoise::kGumbelLater, r.noise_scale = 1;
             r.capacity = {.factor = 1, .eval_factor = 1, .least = 4, .drop = DropOrder::kFirstChoices};
             return r;
           }},
    Policy{"as-deepspeed-topk",  // topkgating with drop_policy "probs"
           [] {
             RouterConfig r = Family(4, RouterScore::kSoftmax, true, 0.01);
             r.normalize_after_drop = true;
             r.capacity = {.factor = 1, .eval_factor = 1, .least = 4, .drop = DropOrder::kScore};
             return r;
           }},
    // megatron/core/transformer/moe/router.py, moe_utils.py (topk_softmax_with_capacity): top-k, then softmax; dropless, or
    // with moe_expert_capacity_factor ceil(T k / E) rows for the largest gates
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

double ValueOf(const RouterConfig& config, std::string_view key) {
  double value = 0;
  VisitRouter(config, [&](std::string_view name, const auto& member, const auto&) {
    if (name == key) value = static_cast<double>(member);
  });
  return value;
}

}  // namespace

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
  std::vector<std::string_view> keys;
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
    keys.push_back(key);
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
  ResetFields(config, [&](std::string_view name) {
    return std::ranges::find(keys, name) == keys.end() && !IdleBecause(config, name).empty();
  });
  MOE_TRY(Validate(config, where));
  for (const std::string_view key : keys) {
    const std::string_view because = IdleBecause(config, key);
    if (!because.empty() && ValueOf(config, key) != ValueOf({}, key))
      return Err(fmt::format("{}: {}", where, key), "expected no such key: {}", because);
  }
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
