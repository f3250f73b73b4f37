#include "moe/train/recipe.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "moe/base/edit_distance.h"
#include "moe/files/atomic_file.h"
#include "moe/files/utf8.h"
#include "moe/train/recipe_fields.h"

// toml++ 3.3 assumes of the character after "[" what it then checks: on a malformed header an assertion fails, or, with
// NDEBUG, the compiler drops the check. So no assertions in it, which without NDEBUG also turns the assumptions off.
#undef NDEBUG
#define TOML_ASSERT(condition) static_assert(true)
#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

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
  Status Read(const Given& g, std::string& member, std::nullptr_t) const {
    const auto* text = g.node->as_string();
    if (text == nullptr) return Wrong(g, Shown(*g.node), "a file name in quotes");
    member = Path(g, text->get());
    return {};
  }
  Status Read(const Given& g, std::vector<std::string>& member, std::nullptr_t) const {
    std::vector<std::string> paths;
    if (const auto* text = g.node->as_string(); text != nullptr && g.from_flag) {
      paths = {Path(g, text->get())};
    } else {
      const auto* list = g.node->as_array();
      if (list == nullptr) return Wrong(g, Shown(*g.node), "a list of file names");
      for (const toml::node& item : *list) {
        if (!item.is_string()) return Wrong(g, Shown(item), "a list of file names");
        paths.push_back(Path(g, item.as_string()->get()));
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

  std::string Path(const Given& g, const std::string& path) const {
    if (path.empty()) return path;
    const fs::path base = g.from_flag ? fs::path() : fs::path(folder);
    return fs::absolute(base / path).lexically_normal().string();
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

// A --set: "train.lr=3e-4". The value is TOML; what is not, is a string.
Status ApplySet(const std::string& set, const std::set<std::string>& known, std::vector<toml::table>& owners,
                GivenKeys& given) {
  const size_t equals = set.find('=');
  if (equals == std::string::npos || equals == 0) return UsageErr("--set", "got {}, expected key=value", OneLine(set));
  const std::string key = set.substr(0, equals), text = set.substr(equals + 1);
  if (!known.contains(key)) {
    return UsageErr("--set", "got the unknown key {}, expected a recipe's, the nearest is {}", OneLine(key),
                    NearestKey(key, known));
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
  given[key] = {owners.back().get("value"), "--set " + key, true};
  return {};
}

std::string WhereOf(const GivenKeys& given, const std::string& key, const std::string& where) {
  const auto it = given.find(key);
  return it == given.end() ? fmt::format("{} {}", where, key) : it->second.where;
}

// Keys that have no meaning beside the others.
Status RefuseIdleKeys(const Recipe& recipe, const GivenKeys& given) {
  const auto refuse = [&](std::string_view key, std::string_view because) -> Status {
    const auto it = given.find(std::string(key));
    if (it == given.end()) return {};
    return Wrong(it->second, Shown(*it->second.node), fmt::format("no such key: {}", because));
  };
  if (recipe.model.ffn == RecipeFfn::kDense) {
    for (const std::string_view key : kMoeKeys) {
      MOE_TRY(refuse(key, "model.ffn is \"dense\", which has no experts"));
    }
  } else if (recipe.model.dense_layers.empty()) {
    MOE_TRY(refuse("model.ffn_width", "no layer is dense; set model.ffn = \"dense\" or model.dense_layers"));
  }
  if (recipe.tokenizer.kind != TokenizerKind::kBpe) {
    MOE_TRY(refuse("tokenizer.vocab_size", "only tokenizer.kind \"bpe\" has a size to choose"));
  }
  if (recipe.tokenizer.kind != TokenizerKind::kFile) {
    MOE_TRY(refuse("tokenizer.file", "tokenizer.kind is not \"file\""));
  }
  return {};
}

// Fills in defaults that depend on other keys, then checks what ranges alone cannot.
Status Resolve(Recipe& recipe, const GivenKeys& given, const std::string& where) {
  ModelRecipe& m = recipe.model;
  TrainRecipe& t = recipe.train;
  const auto at = [&](const std::string& key) { return WhereOf(given, key, where); };
  if (const auto it = given.find("model.experts"); it != given.end() && it->second.node->value<int64_t>() == 0) {
    return Wrong(it->second, "0", "1 or more; a model without experts is model.ffn = \"dense\" with model.ffn_width");
  }
  if (m.kv_heads == 0) m.kv_heads = m.heads;
  if (m.head_width == 0) {
    if (m.hidden % m.heads != 0) {
      return Err(at("model.heads"), "got {}, expected a divisor of model.hidden {} (or model.head_width)", m.heads, m.hidden);
    }
    m.head_width = m.hidden / m.heads;
  }
  if (m.head_width % 2 != 0) {
    return Err(at("model.head_width"), "got {}, expected an even number: rotary positions turn pairs", m.head_width);
  }
  if (m.heads % m.kv_heads != 0) {
    return Err(at("model.kv_heads"), "got {}, expected a divisor of model.heads {}", m.kv_heads, m.heads);
  }
  if (m.ffn != RecipeFfn::kDense && m.top_k > m.experts) {
    return Err(at("model.top_k"), "got {}, expected at most model.experts {}", m.top_k, m.experts);
  }
  if (m.ffn_width == 0 && (m.ffn == RecipeFfn::kDense || !m.dense_layers.empty())) {
    return Err(at("model.ffn_width"), "got nothing, expected the width of the dense layers");
  }
  for (const int64_t layer : m.dense_layers) {
    if (layer >= m.layers) return Err(at("model.dense_layers"), "got layer {}, expected 0..{}", layer, m.layers - 1);
  }
  std::ranges::sort(m.dense_layers);
  if (std::ranges::adjacent_find(m.dense_layers) != m.dense_layers.end()) {
    return Err(at("model.dense_layers"), "got a layer twice, expected each once");
  }
  if (static_cast<int64_t>(m.dense_layers.size()) == m.layers) {
    return Err(at("model.dense_layers"), "got all layers, expected model.ffn = \"dense\" for that");
  }
  if (recipe.tokenizer.kind == TokenizerKind::kFile && recipe.tokenizer.file.empty()) {
    return Err(at("tokenizer.file"), "got nothing, expected the tokenizer.json that tokenizer.kind \"file\" asks for");
  }

  for (const auto* paths : {&recipe.data.files, &recipe.data.validation}) {
    for (const std::string& path : *paths) {
      if (ValidUtf8Prefix(path) != path.size())
        return Err(at("data"), "got a path that is not UTF-8, expected one a recipe can hold");
    }
  }
  if (t.steps > 0 && t.minutes > 0) {
    return Err(at("train.minutes"),
               "got both train.steps and train.minutes, expected one (`--set train.steps=` takes it away)");
  }
  if (t.steps == 0 && t.minutes == 0) return Err(at("train.steps"), "got nothing, expected train.steps or train.minutes");
  if (t.context == 0) t.context = m.context;
  if (t.context > m.context) {
    return Err(at("train.context"), "got {}, expected at most model.context {}", t.context, m.context);
  }
  if (t.batch_tokens % t.context != 0) {
    return Err(at("train.batch_tokens"), "got {}, expected a multiple of the context {}", t.batch_tokens, t.context);
  }
  if (t.micro_batch_tokens == 0) t.micro_batch_tokens = t.batch_tokens;
  if (t.batch_tokens % t.micro_batch_tokens != 0 || t.micro_batch_tokens % t.context != 0) {
    return Err(at("train.micro_batch_tokens"), "got {}, expected a multiple of the context {} that divides batch_tokens {}",
               t.micro_batch_tokens, t.context, t.batch_tokens);
  }
  if (t.min_lr < 0) t.min_lr = t.lr / 10;
  if (t.min_lr > t.lr) return Err(at("train.min_lr"), "got {}, expected at most train.lr {}", t.min_lr, t.lr);
  if (t.warmup >= 1 && t.warmup != std::floor(t.warmup)) {
    return Err(at("train.warmup"), "got {}, expected whole steps, or below 1 a share of all", t.warmup);
  }
  return {};
}

}  // namespace

Result<Recipe> ParseRecipe(std::string_view text, const std::string& where, const std::string& folder,
                           const RecipeOverrides& overrides) {
  const toml::parse_result parsed = toml::parse(text, where);
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    return Err(fmt::format("{}:{}", where, error.source().begin.line), "got invalid TOML, expected a recipe: {}",
               OneLine(std::string(error.description())));
  }
  GivenKeys given;
  Collect(parsed.table(), "", where, given);

  Recipe recipe;
  std::set<std::string> known;
  VisitRecipe(recipe, [&](std::string_view key, const auto&, const auto&) { known.insert(std::string(key)); });
  for (const auto& [key, value] : given) {
    if (!known.contains(key)) {
      return Err(value.where, "got an unknown key, expected a recipe's, the nearest is {}", NearestKey(key, known));
    }
  }

  std::vector<toml::table> owners;  // of the nodes that flags gave
  owners.reserve(overrides.sets.size());
  for (const std::string& set : overrides.sets) MOE_TRY(ApplySet(set, known, owners, given));
  if (overrides.minutes > 0) {
    given.erase("train.steps");
    given.erase("train.minutes");
  }
  // experts = 0 gets its own message below
  const auto experts = given.find("model.experts");
  const bool no_experts = experts != given.end() && experts->second.node->value<int64_t>() == 0;
  Reader reader{given, folder};
  VisitRecipe(recipe, [&](std::string_view key, auto& member, const auto& range) {
    if (!(no_experts && key == "model.experts")) reader(key, member, range);
  });
  MOE_TRY(reader.status);
  if (overrides.minutes > 0) recipe.train.minutes = overrides.minutes;
  const auto replace = [](const std::vector<std::string>& paths, std::vector<std::string>& list) {
    if (!paths.empty()) list.clear();
    for (const std::string& path : paths) list.push_back(fs::absolute(path).lexically_normal().string());
  };
  replace(overrides.data, recipe.data.files);
  replace(overrides.validation, recipe.data.validation);
  if (!overrides.dtype.empty()) {
    const toml::value<std::string> value(overrides.dtype);
    MOE_TRY(Reader::Read(Given{&value, "--dtype", true}, recipe.train.dtype, kDTypeChoices));
  }
  MOE_TRY(RefuseIdleKeys(recipe, given));
  MOE_TRY(Resolve(recipe, given, where));
  return recipe;
}

Result<Recipe> LoadRecipe(const std::string& path, const RecipeOverrides& overrides) {
  MOE_TRY(const std::string text, ReadFile(path));
  return ParseRecipe(text, path, fs::path(path).parent_path().string(), overrides);
}

}  // namespace moe
