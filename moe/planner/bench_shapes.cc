#include "moe/planner/bench_shapes.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <span>

#include "moe/base/check.h"

namespace moe {
namespace {

constexpr std::string_view kDefaults = R"(
gemm 512 512 512
gemm 256 1024 1024
gemm 1024 2048 2048
gemm 4096 1024 4096
gemm 1 2048 2048
gemm 4 2048 2048
gemm 16 4096 4096
moe 8192 512 512 8 2     # 2048 rows an expert
moe 2048 1024 512 64 8   # 256
moe 4096 512 256 64 8    # 512
moe 1024 512 256 64 8    # 128
attention 1024 8 8 64
attention 1024 8 2 128
adamw 8388608
adamw 67108864
)";

constexpr int64_t kMaxExtent = int64_t{1} << 20;   // of rows and widths
constexpr int64_t kMaxExperts = int64_t{1} << 12;  // and heads
constexpr int64_t kMaxSlots = int64_t{1} << 30;    // T*k: indices are int32
constexpr int64_t kMaxValues = int64_t{1} << 36;   // of S: blocks are int32, too

struct Number {
  const char* name;
  int64_t most = kMaxExtent, multiple = 1;
};

struct Kind {
  std::string_view word;
  std::span<const Number> numbers;
  void (*add)(std::span<const int64_t> v, BenchShapes& shapes);
};

template <class T>
void AddOnce(const T& shape, std::vector<T>& list) {
  if (std::find(list.begin(), list.end(), shape) == list.end()) list.push_back(shape);
}

constexpr Number kGemm[] = {{"M"}, {"N"}, {"K"}};
constexpr Number kMoe[] = {{"T"}, {"D", kMaxExtent, 16}, {"F", kMaxExtent, 16}, {"E", kMaxExperts}, {"k", kMaxExperts}};
constexpr Number kSparse[] = {{"M", kMaxExtent, kSparseMultiple}, {"N", kMaxExtent, kSparseMultiple}, {"K"}};
constexpr Number kAttention[] = {{"C"}, {"H", kMaxExperts}, {"G", kMaxExperts}, {"P", 1024, 2}};
constexpr Number kAdamw[] = {{"VALUES", kMaxValues}};
constexpr size_t kMostNumbers = 5;

constexpr Kind kKinds[] = {
    {"gemm", kGemm,
     [](std::span<const int64_t> v, BenchShapes& s) {
       AddOnce(GemmShape{v[0], v[1], v[2]}, s.gemm);
     }},
    {"moe", kMoe,
     [](std::span<const int64_t> v, BenchShapes& s) {
       AddOnce(MoeShape{v[0], v[1], v[2], v[3], v[4]}, s.moe);
     }},
    {"sparse", kSparse,
     [](std::span<const int64_t> v, BenchShapes& s) {
       AddOnce(GemmShape{v[0], v[1], v[2]}, s.sparse);
     }},
    {"attention", kAttention,
     [](std::span<const int64_t> v, BenchShapes& s) {
       AddOnce(AttentionBenchShape{v[0], v[1], v[2], v[3]}, s.attention);
     }},
    {"adamw", kAdamw, [](std::span<const int64_t> v, BenchShapes& s) { AddOnce(v[0], s.adamw); }},
};

std::vector<std::string_view> Words(std::string_view line) {
  std::vector<std::string_view> words;
  constexpr std::string_view kSpace = " \t\r\f\v";
  for (size_t at = line.find_first_not_of(kSpace); at != line.npos; at = line.find_first_not_of(kSpace, at)) {
    const size_t end = std::min(line.find_first_of(kSpace, at), line.size());
    words.push_back(line.substr(at, end - at));
    at = end;
  }
  return words;
}

// For an error: what was there, cut where it is long.
std::string Shown(std::string_view text) {
  constexpr size_t kMost = 40;
  return text.size() <= kMost ? std::string(text) : std::string(text.substr(0, kMost)) + "...";
}

// "gemm M N K"
std::string FormOf(const Kind& kind) {
  std::string out(kind.word);
  for (const Number& n : kind.numbers) out += std::string(" ") + n.name;
  return out;
}

Status ParseLine(const std::vector<std::string_view>& words, const std::string& where, BenchShapes& shapes) {
  const auto kind = std::ranges::find(kKinds, words[0], &Kind::word);
  if (kind == std::end(kKinds)) {
    return Err(where, "got '{}', expected gemm, moe, sparse, attention or adamw", Shown(words[0]));
  }
  if (words.size() - 1 != kind->numbers.size()) {
    return Err(where, "got {} numbers, expected '{}'", words.size() - 1, FormOf(*kind));
  }
  std::array<int64_t, kMostNumbers> values = {};
  for (size_t i = 0; i < kind->numbers.size(); ++i) {
    const Number& n = kind->numbers[i];
    const std::string_view word = words[i + 1];
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), values[i]);
    if (error != std::errc() || end != word.data() + word.size() || values[i] < 1 || values[i] > n.most) {
      return Err(where, "got {} = '{}', expected a whole number from 1 to {}", n.name, Shown(word), n.most);
    }
    if (values[i] % n.multiple != 0) return Err(where, "got {} = {}, expected a multiple of {}", n.name, values[i], n.multiple);
  }
  if (kind->word == "moe") {
    if (values[4] > values[3]) return Err(where, "got k = {}, expected at most E = {}", values[4], values[3]);
    if (values[0] * values[4] > kMaxSlots) {
      return Err(where, "got T k = {}, expected at most {}", values[0] * values[4], kMaxSlots);
    }
  }
  if (kind->word == "sparse" && values[0] * values[1] > kMaxValues) {
    return Err(where, "got M N = {}, expected at most {}", values[0] * values[1], kMaxValues);
  }
  if (kind->word == "attention" && values[1] % values[2] != 0) {
    return Err(where, "got G = {}, expected a divisor of H = {}", values[2], values[1]);
  }
  kind->add(values, shapes);
  return {};
}

}  // namespace

Result<BenchShapes> ParseBenchShapes(std::string_view text, const std::string& where) {
  BenchShapes shapes;
  int64_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const auto words = Words(line.substr(0, line.find('#')));
    if (!words.empty()) MOE_TRY(ParseLine(words, fmt::format("{}:{}", where, number), shapes));
  }
  if (shapes == BenchShapes{}) return Err(where, "got no shape, expected lines such as 'gemm 1024 2048 2048'");
  return shapes;
}

std::string ToText(const BenchShapes& shapes) {
  std::string out;
  for (const auto& s : shapes.gemm) out += fmt::format("gemm {} {} {}\n", s.M, s.N, s.K);
  for (const auto& s : shapes.moe) out += fmt::format("moe {} {} {} {} {}\n", s.T, s.D, s.F, s.E, s.k);
  for (const auto& s : shapes.sparse) out += fmt::format("sparse {} {} {}\n", s.M, s.N, s.K);
  for (const auto& s : shapes.attention) out += fmt::format("attention {} {} {} {}\n", s.C, s.H, s.G, s.P);
  for (const int64_t values : shapes.adamw) out += fmt::format("adamw {}\n", values);
  return out;
}

BenchShapes DefaultBenchShapes() {
  const auto shapes = ParseBenchShapes(kDefaults, "defaults");
  MOE_CHECK(shapes.has_value(), "{}", shapes.error().Message());
  return *shapes;
}

}  // namespace moe
