#include "moe/files/json.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "moe/files/atomic_file.h"

namespace moe {
namespace {

constexpr int kMaxDepth = 64;

struct Refused {  // thrown by the callback below, caught in ParseJson
  std::string why;
};

}  // namespace

Result<nlohmann::json> ParseJson(std::string_view text, const std::string& where) {
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::set<std::string>> keys;  // of the objects that are open now
  const auto watch = [&keys](int depth, Event event, nlohmann::json& value) {
    if (depth > kMaxDepth) throw Refused{fmt::format("nested more than {} levels deep", kMaxDepth)};
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get_ref<const std::string&>()).second)
      throw Refused{fmt::format("key '{}' appears twice", Printable(value.get_ref<const std::string&>()))};
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), watch);
  } catch (const Refused& refused) {
    return Err(where, "is not JSON we accept: {}", refused.why);
  } catch (const nlohmann::json::parse_error& error) {
    return Err(where, "is not JSON: broken at byte {} of {}", error.byte, text.size());
  } catch (const nlohmann::json::exception&) {  // a number out of range
    return Err(where, "is not JSON: a number is out of range");
  }
}

Result<nlohmann::json> LoadJson(const std::string& path) {
  MOE_TRY(const std::string text, ReadFile(path));
  return ParseJson(text, path);
}

}  // namespace moe
