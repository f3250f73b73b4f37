#include "moe/train/recipe.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <sstream>

#include "moe/base/edit_distance.h"
#include "moe/files/atomic_file.h"
#include "moe/files/utf8.h"
#include "moe/train/recipe_checks.h"
#include "moe/train/recipe_fields.h"
#include "moe/train/recipe_from.h"
#include "moe/train/recipe_variants.h"
#include "moe/train/toml.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

// What stands for a key: the TOML value, and where it was written.
struct Given {
  const toml::node* node = nullptr;
  std::string where;       // "demo.toml:12 model.layers", "--set model.layers"
  bool from_flag = false;  // then paths are relative to the working folder, and errors are wrong usage
};
using GivenKeys = std::map<std::string, Given>;

std::string OneLine(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
  return text.size() > 120 ? text.substr(0, 117) + "..." : text;
}

std::string Shown(const toml::node& node) {
  std::ostringstream out;
  node.visit([&](const auto& n) {
    if constexpr (std::is_same_v<std::decay_t<decltype(n)>, toml::table>) {
      out << "a table";
    } else {
      out << n;
    }
  });
  return OneLine(out.str());
}

tl::unexpected<Error> Wrong(const Given& given, const std::string& got, const std::string& expected) {
  return tl::make_unexpected(Error{given.where, fmt::format("got {}, expected {}", got, expected), given.from_flag ? 2 : 1});
}

// Reads one member per call from what was given; remembers the first error.
struct Reader {
  const GivenKeys& given;
  std::string folder;
  std::map<std::string, std::string>& relative_paths;  // of the recipe
  Status status = {};

  template <class T, class Range>
  void operator()(std::string_view key, T& member, const Range& range) {
    const auto it = given.find(std::string(key));
    if (!status || it == given.end()) return;
    status = Read(it->second, member, range);
  }

  static Status Read(const Given& g, int64_t& member, const WholeRange& range) {
    const std::string expected = range.most >= kMostWhole ? fmt::format("a whole number, {} or more", range.least)
                                                          : fmt::format("a whole number in {}..{}", range.least, range.most);
    const auto* value = g.node->as_integer();
    if (value == nullptr || value->get() < range.least || value->get() > range.most) return Wrong(g, Shown(*g.node), expected);
    member = value->get();
    return {};
  }
  static Status Read(const Given& g, double& member, const NumberRange& range) {
    std::string expected = fmt::format("a number {} {}", range.open_below ? "above" : "of at least", range.least);
    if (range.most < kMostNumber) expected += fmt::format(" and {} {}", range.open_above ? "below" : "at most", range.most);
    if (!g.node->is_number()) return Wrong(g, Shown(*g.node), expected);
    const double value = g.node->value<double>().value_or(NAN);
    const bool inside = std::isfinite(value) && (range.open_below ? value > range.least : value >= range.least) &&
                        (range.open_above ? value < range.most : value <= range.most);
    if (!inside) return Wrong(g, Shown(*g.node), expected);
    member = value;
    return {};
  }
  static Status Read(const Given& g, bool& member, std::nullptr_t) {
    const auto* value = g.node->as_boolean();
    if (value == nullptr) return Wrong(g, Shown(*g.node), "true or false");
    member = value->get();
    return {};
  }
  template <class T, size_t n>
  static Status Read(const Given& g, T& member, const Choices<T, n>& choices) {
    std::string expected;
    for (const auto& [name, value] : choices.values) {
      if (const auto* text = g.node->as_string(); text != nullptr && text->get() == name) {
        member = value;
        return {};
      }
      expected += fmt::format("{}\"{}\"", expected.empty() ? "" : " or ", name);
    }
    return Wrong(g, Shown(*g.node), expected);
  }
  static Status Read(const Given& g, std::string& member, AnyPolicy) {
    const auto* text = g.node->as_string();
    if (text == nullptr || (!text->get().empty() && !PolicyNamed(text->get()))) {
      return Wrong(g, Shown(*g.node), fmt::format("one of {}", fmt::join(PolicyNames(), ", ")));
    }
    member = text->get();
    return {};
  }
  // A list of entries, or a string with commas between them.
  static Status Read(const Given& g, std::vector<ExpertGroup>& member, AnyGroups) {
    std::vector<std::string> entries;
    if (const auto* text = g.node->as_string()) {
      std::istringstream parts(text->get());
      for (std::string entry; std::getline(parts, entry, ',');) entries.push_back(entry);
    } else if (const auto* list = g.node->as_array()) {
      for (const toml::node& item : *list) {
        if (!item.is_string()) return Wrong(g, Shown(item), "a list of entries like \"6 silu 256\"");
        entries.push_back(item.as_string()->get());
      }
    }
    if (entries.empty()) return Wrong(g, Shown(*g.node), "a list of entries like \"6 silu 256\"");
    member.clear();
    for (const std::string& entry : entries) {
      auto group = ParseExpertGroup(entry, g.where);
      if (!group) return tl::make_unexpected(Error{group.error().where, group.error().what, g.from_flag ? 2 : 1});
      member.push_back(*group);
    }
    return {};
  }
  Status Read(const Given& g, std::string& member, std::nullptr_t) {
    const auto* text = g.node->as_string();
    if (text == nullptr) return Wrong(g, Shown(*g.node), "a file name in quotes");
    MOE_TRY(member, Path(g, text->get()));
    return {};
  }
  Status Read(const Given& g, std::vector<std::string>& member, std::nullptr_t) {
    std::vector<std::string> paths;
    if (const auto* text = g.node->as_string(); text != nullptr && g.from_flag) {
      MOE_TRY(paths.emplace_back(), Path(g, text->get()));
    } else {
      const auto* list = g.node->as_array();
      if (list == nullptr) return Wrong(g, Shown(*g.node), "a list of file names");
      for (const toml::node& item : *list) {
        if (!item.is_string()) return Wrong(g, Shown(item), "a list of file names");
        MOE_TRY(paths.emplace_back(), Path(g, item.as_string()->get()));
      }
    }
    member = paths;
    return {};
  }
  static Status Read(const Given& g, std::vector<int64_t>& member, const WholeRange& range) {
    const auto* list = g.node->as_array();
    if (list == nullptr) return Wrong(g, Shown(*g.node), "a list of whole numbers");
    member.clear();
    for (const toml::node& item : *list) {
      int64_t value = 0;
      MOE_TRY(Read(Given{&item, g.where, g.from_flag}, value, range));
      member.push_back(value);
    }
    return {};
  }

  Result<std::string> Path(const Given& g, const std::string& path) {
    if (path.empty()) return path;
    const fs::path base = g.from_flag ? fs::path() : fs::path(folder);
    const std::string whole = fs::absolute(base / path).lexically_normal().string();
    if (ValidUtf8Prefix(whole) != whole.size()) return Wrong(g, "a path that is not UTF-8", "one a recipe can hold");
    if (!g.from_flag && fs::path(path).is_relative()) {
      relative_paths[whole] = fmt::format("{} says \"{}\", which is relative to the recipe's folder", g.where, OneLine(path));
    }
    return whole;
  }
};

// The known key most like `key`; a key in the wrong section counts as near.
std::string NearestKey(const std::string& key, const std::set<std::string>& known) {
  const auto last_part = [](std::string_view name) { return name.substr(name.rfind('.') + 1); };
  std::string nearest;
  size_t least = std::string::npos;
  for (const std::string& candidate : known) {
    const size_t distance = std::min(EditDistance(key, candidate), 1 + EditDistance(last_part(key), last_part(candidate)));
    if (distance < least) least = distance, nearest = candidate;
  }
  return nearest;
}

// Dotted names of all values below a table.
void Collect(const toml::table& table, const std::string& prefix, const std::string& where, GivenKeys& given) {
  for (const auto& [name, node] : table) {
    const std::string key = prefix + std::string(name.str());
    if (const auto* inner = node.as_table()) {
      Collect(*inner, key + ".", where, given);
    } else {
      given[key] = {&node, fmt::format("{}:{} {}", where, node.source().begin.line, OneLine(key))};
    }
  }
}

// Where a set stands: "--set", or a variant of the recipe.
struct SetOrigin {
  std::string where;
  bool from_flag = true;
};

// "train.lr=3e-4". The value is TOML; what is not, is a string.
Status ApplySet(const std::string& set, const SetOrigin& origin, const std::set<std::string>& known,
                std::vector<toml::table>& owners, GivenKeys& given) {
  const auto wrong = [&](const std::string& what) {
    return tl::make_unexpected(Error{origin.where, what, origin.from_flag ? 2 : 1});
  };
  const size_t equals = set.find('=');
  if (equals == std::string::npos || equals == 0) return wrong(fmt::format("got {}, expected key=value", OneLine(set)));
  const std::string key = set.substr(0, equals), text = set.substr(equals + 1);
  if (!known.contains(key)) {
    return wrong(
        fmt::format("got the unknown key {}, expected a recipe's, the nearest is {}", OneLine(key), NearestKey(key, known)));
  }
  if (text.empty()) {
    given.erase(key);
    return {};
  }
  toml::parse_result parsed = toml::parse("value = " + text);
  if (parsed.succeeded() && parsed.table().size() == 1) {
    owners.push_back(std::move(parsed).table());
  } else {
    owners.push_back(toml::table{{"value", text}});
  }
  given[key] = {owners.back().get("value"), origin.where + " " + key, origin.from_flag};
  return {};
}

// The recipe that "demo" or "recipes/demo" may mean, if there is one.
std::string RecipeNamed(const std::string& name) {
  for (const char* folder : {"", "recipes/"}) {
    for (const char* ending : {"", ".toml"}) {
      std::error_code ignored;
      std::string path = folder + name + ending;
      if (fs::is_regular_file(path, ignored)) return path;
    }
  }
  return "";
}

}  // namespace

Result<Recipe> ParseRecipe(std::string_view text, const std::string& where, const std::string& folder,
                           const RecipeOverrides& overrides) {
  toml::parse_result parsed = toml::parse(text, where);
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    return Err(fmt::format("{}:{}", where, error.source().begin.line), "got invalid TOML, expected a recipe: {}",
               OneLine(std::string(error.description())));
  }
  Recipe recipe;
  MOE_TRY(recipe.variants, TakeVariants(parsed.table(), where));
  GivenKeys given;
  Collect(parsed.table(), "", where, given);

  std::set<std::string> known;
  VisitRecipe(recipe, [&](std::string_view key, const auto&, const auto&) { known.insert(std::string(key)); });
  for (const auto& [key, value] : given) {
    if (!known.contains(key)) {
      return Err(value.where, "got an unknown key, expected a recipe's, the nearest is {}", NearestKey(key, known));
    }
  }

  const GivenKeys in_text = given;
  std::vector<toml::table> owners;  // of the nodes that flags gave
  const RecipeVariant* variant = overrides.variant;
  owners.reserve(overrides.sets.size() + (variant == nullptr ? 0 : variant->sets.size()));
  std::set<std::string> flagged, changed;
  const auto apply = [&](const std::vector<std::string>& sets, const SetOrigin& origin) -> Status {
    for (const std::string& set : sets) {
      MOE_TRY(ApplySet(set, origin, known, owners, given));
      changed.insert(set.substr(0, set.find('=')));
      if (origin.from_flag) flagged.insert(set.substr(0, set.find('=')));
    }
    return {};
  };
  MOE_TRY(apply(overrides.sets, {"--set"}));
  if (variant != nullptr) MOE_TRY(apply(variant->sets, {variant->where, variant->from_flag}));
  const auto of_text = [&](const auto& key) {
    const auto it = in_text.find(key.first);
    return it != in_text.end() && it->second.node == key.second.node;
  };
  if (const auto from = given.find("model.from"); from != given.end() && !of_text(*from)) {
    std::erase_if(given, [&](const auto& key) { return IsShapeKey(key.first) && of_text(key); });  // another model's shape
  }
  const auto named = given.find("router.policy");
  if (named != given.end() && !of_text(*named) && named->second.node->value<std::string>() != "") {
    const bool has_from = given.contains("model.from");  // whose experts and top_k stay
    std::erase_if(given, [&](const auto& key) {          // another policy's keys
      const bool is_top_k = key.first == "model.top_k" || key.first == "model.layer_top_k";
      return of_text(key) && (key.first.starts_with("router.") || (is_top_k && !has_from));
    });
  }
  if (overrides.minutes > 0) {
    given.erase("train.steps");
    given.erase("train.minutes");
  }
  // experts = 0 gets its own message below
  const auto experts = given.find("model.experts");
  const bool no_experts = experts != given.end() && experts->second.node->value<int64_t>() == 0;
  if (const auto policy = given.find("router.policy"); policy != given.end()) {  // what other keys then change
    MOE_TRY(Reader::Read(policy->second, recipe.router.policy, AnyPolicy{}));
    recipe.router.config = PolicyNamed(recipe.router.policy).value_or(RouterConfig{});
    recipe.model.top_k = recipe.router.config.top_k;
  }
  Reader reader{given, folder, recipe.relative_paths};
  std::optional<Recipe> begins_as;  // what model.from says
  if (const auto from = given.find("model.from"); from != given.end() && !overrides.own_text) {
    MOE_TRY(reader.Read(from->second, recipe.model.from, nullptr));
    MOE_TRY(TakeShape(from->second.where, recipe));
    begins_as = recipe;
  }
  VisitRecipe(recipe, [&](std::string_view key, auto& member, const auto& range) {
    if (!(no_experts && key == "model.experts")) reader(key, member, range);
  });
  MOE_TRY(reader.status);
  ResetFields(recipe.router.config, [&](std::string_view name) {
    const std::string key = "router." + std::string(name);
    return !given.contains(key) && !IdleBecause(recipe, key).empty();
  });
  for (const auto& [key, value] : given) {
    if (!begins_as || !IsShapeKey(key) || ValueOf(recipe, key) == ValueOf(*begins_as, key)) continue;
    if (!IdleBecause(*begins_as, key).empty()) continue;  // which is said below
    return Wrong(value, Shown(*value.node),
                 fmt::format("{}, or no such key: {} says so", ValueOf(*begins_as, key), recipe.model.from));
  }
  if (overrides.minutes > 0) recipe.train.minutes = overrides.minutes;
  const auto replace = [&](const char* flag, const std::vector<std::string>& paths, std::vector<std::string>& list) -> Status {
    if (!paths.empty()) list.clear();
    for (const std::string& path : paths) {
      MOE_TRY(list.emplace_back(), reader.Path({nullptr, flag, true}, path));
    }
    return {};
  };
  MOE_TRY(replace("--data", overrides.data, recipe.data.files));
  MOE_TRY(replace("--validation", overrides.validation, recipe.data.validation));
  const bool keeps_validation = overrides.data.empty() || !overrides.validation.empty() || flagged.contains("data.validation");
  const bool share_chosen = flagged.contains("data.validation_share");
  if (overrides.begun != nullptr) {
    if (!keeps_validation) recipe.data.validation = overrides.begun->validation;
    if (!share_chosen) recipe.data.validation_share = overrides.begun->validation_share;
  } else if (!keeps_validation) {
    recipe.data.validation.clear();
    if (!share_chosen && recipe.data.validation_share == 0) recipe.data.validation_share = kCutShare;
  }
  if (!overrides.dtype.empty()) {
    const toml::value<std::string> value(overrides.dtype);
    MOE_TRY(Reader::Read(Given{&value, "--dtype", true}, recipe.train.dtype, kDTypeChoices));
  }
  RecipeKeys keys{.written = {}, .flagged = flagged, .changed = changed, .where = where, .no_experts = no_experts};
  for (const auto& [key, value] : given) keys.written[key] = {value.where, Shown(*value.node)};
  MOE_TRY(CheckRecipe(keys, recipe));
  return recipe;
}

Result<Recipe> LoadRecipe(const std::string& path, const RecipeOverrides& overrides) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::is_character_file(status) || fs::is_block_file(status)) return Err(path, "got a device, expected a recipe");
  if (fs::is_regular_file(status) && fs::file_size(path, error) > 1'000'000) {
    return Err(path, "got {} bytes, expected a recipe, which has at most 1000000", fs::file_size(path, error));
  }
  if (const bool is_folder = fs::is_directory(status); is_folder || status.type() == fs::file_type::not_found) {
    const std::string meant = RecipeNamed(path);
    if (!meant.empty()) return Err(path, "got {}, expected {}?", is_folder ? "a folder" : "no such file", meant);
  }
  MOE_TRY(const std::string text, ReadFile(path));
  return ParseRecipe(text, path, fs::path(path).parent_path().string(), overrides);
}

}  // namespace moe
