#include "moe/model/hf_router.h"

#include <algorithm>
#include <array>
#include <utility>

#include "moe/files/json.h"

namespace moe {
namespace {

using nlohmann::json;

struct Reader {
  const json& value;
  const std::string& where;
  std::string_view name;

  Status Wrong(const std::string& expected) const {
    return Err(where, "{}: got {}, expected {}", name, Printable(value.dump()), expected);
  }
  template <class Range>
  Status Read(int64_t& member, const Range&) const {
    if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<int64_t>() < 0)) return Wrong("an integer");
    member = value.get<int64_t>();
    return {};
  }
  template <class Range>
  Status Read(double& member, const Range&) const {
    if (!value.is_number()) return Wrong("a number");
    member = value.get<double>();
    return {};
  }
  template <class Range>
  Status Read(bool& member, const Range&) const {
    if (!value.is_boolean()) return Wrong("true or false");
    member = value.get<bool>();
    return {};
  }
  template <class T, size_t n>
  Status Read(T& member, const Choices<T, n>& choices) const {
    std::string expected;
    for (const auto& [known, choice] : choices.values) {
      if (value.is_string() && value.get<std::string>() == known) {
        member = choice;
        return {};
      }
      expected += fmt::format("{}\"{}\"", expected.empty() ? "" : " or ", known);
    }
    return Wrong(expected);
  }
};

// What the first models of this program called their fields.
constexpr std::array<std::pair<std::string_view, std::string_view>, 4> kEarlierNames = {
    {{"scoring_func", "score"},
     {"norm_topk_prob", "normalize"},
     {"router_aux_loss_coef", "balance_loss"},
     {"router_z_loss_coef", "z_loss"}}};

template <class T, class Range>
json JsonOf(const T& member, const Range&) {
  return member;
}
template <class T, size_t n>
json JsonOf(const T& member, const Choices<T, n>& choices) {
  return NameIn(choices.values, member);
}

}  // namespace

nlohmann::ordered_json RouterJson(const RouterConfig& config, const RouterConfig& base) {
  json of_base;
  VisitRouter(base, [&](std::string_view name, const auto& member, const auto& range) {
    of_base[std::string(name)] = JsonOf(member, range);
  });
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  VisitRouter(config, [&](std::string_view name, const auto& member, const auto& range) {
    const json value = JsonOf(member, range);
    if (value != of_base[std::string(name)]) out[std::string(name)] = value;
  });
  return out;
}

Status ReadRouterJson(const json& object, const std::string& where, RouterConfig& config) {
  if (!object.is_object()) return Err(where, "got {}, expected an object", Printable(object.dump()));
  for (const auto& item : object.items()) {
    std::string key = item.key();
    for (const auto& [earlier, now] : kEarlierNames) {
      if (key == earlier) key = now;
    }
    const json& value = item.value();
    Status status;
    bool known = false;
    VisitRouter(config, [&](std::string_view name, auto& member, const auto& range) {
      if (name != key || name == "top_k") return;  // num_experts_per_tok has it
      known = true;
      status = Reader{value, where, item.key()}.Read(member, range);
    });
    if (!known) return Err(where, "got the unknown key \"{}\", expected one that moe inspect shows", Printable(key));
    MOE_TRY(status);
  }
  return {};
}

}  // namespace moe
