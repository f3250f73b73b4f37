#include "moe/files/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "moe/base/check.h"
#include "moe/files/json.h"
#include "moe/files/utf8.h"

namespace moe {
namespace {

constexpr size_t kMaxPattern = 10'000;       // bytes; the longest public one (o200k) has 600
constexpr uint32_t kMatchLimit = 1'000'000;  // backtracking steps of one match: a hostile pattern ends, no honest one notices
constexpr size_t kJitStack = size_t{1} << 20;

template <auto Free>
struct Deleter {
  template <class T>
  void operator()(T* p) const {
    Free(p);
  }
};
template <class T, auto Free>
using Owned = std::unique_ptr<T, Deleter<Free>>;

std::string PcreMessage(int error) {
  PCRE2_UCHAR buffer[200];
  return pcre2_get_error_message(error, buffer, sizeof(buffer)) >= 0 ? reinterpret_cast<const char*>(buffer) : "unknown error";
}

// What one thread needs to match; made once per Split.
struct Matcher {
  Matcher()
      : data(pcre2_match_data_create(1, nullptr)),
        context(pcre2_match_context_create(nullptr)),
        stack(pcre2_jit_stack_create(32 * 1024, kJitStack, nullptr)) {
    MOE_CHECK(data && context);
    pcre2_set_match_limit(context.get(), kMatchLimit);
    if (stack) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
  Owned<pcre2_match_data, pcre2_match_data_free> data;
  Owned<pcre2_match_context, pcre2_match_context_free> context;
  Owned<pcre2_jit_stack, pcre2_jit_stack_free> stack;
};

void SplitValid(std::span<const std::shared_ptr<const void>> patterns, Matcher& matcher, std::string_view text,
                const Pretokenizer::Emit& emit) {
  if (text.empty()) return;
  if (patterns.empty()) return emit(text);
  const auto* code = static_cast<const pcre2_code*>(patterns[0].get());
  const auto deeper = [&](size_t begin, size_t end) {
    SplitValid(patterns.subspan(1), matcher, text.substr(begin, end - begin), emit);
  };
  size_t done = 0;  // pieces up to here are given out
  for (size_t at = 0; at < text.size();) {
    const int matched = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, PCRE2_NO_UTF_CHECK,
                                    matcher.data.get(), matcher.context.get());
    if (matched < 0) break;  // no match, or a pattern gone astray: the rest is one piece
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(matcher.data.get());
    const size_t begin = range[0], end = range[1];
    if (begin >= end) {  // an empty match (or \K turned around) cuts nothing
      at = std::max(at, begin);
      if (at >= text.size()) break;
      at += static_cast<size_t>(NextUtf8(text.substr(at)).bytes);
      continue;
    }
    if (begin < done) break;
    deeper(done, begin);
    deeper(begin, end);
    done = at = end;
  }
  deeper(done, text.size());
}

}  // namespace

Result<Pretokenizer> Pretokenizer::Create(std::span<const std::string> patterns, const std::string& where) {
  Pretokenizer made;
  for (const std::string& pattern : patterns) {
    if (pattern.size() > kMaxPattern)
      return Err(where, "got a pattern of {} bytes, expected at most {}", pattern.size(), kMaxPattern);
    int error = 0;
    PCRE2_SIZE offset = 0;
    constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
    pcre2_code* code =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), kOptions, &error, &offset, nullptr);
    if (code == nullptr)
      return Err(where, "got pattern '{}', which does not compile: {} at byte {}", Printable(pattern), PcreMessage(error),
                 offset);
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where there is no JIT, matching interprets
    made.patterns_.emplace_back(code, [](const void* p) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(p))); });
  }
  return made;
}

void Pretokenizer::Split(std::string_view text, const Emit& emit) const {
  Matcher matcher;
  while (!text.empty()) {
    const size_t valid = ValidUtf8Prefix(text);
    SplitValid(patterns_, matcher, text.substr(0, valid), emit);
    text.remove_prefix(valid);
    size_t invalid = 0;
    while (invalid < text.size()) {
      const Utf8Step step = NextUtf8(text.substr(invalid));
      if (step.kind == Utf8Step::kCodePoint) break;
      invalid += static_cast<size_t>(step.bytes);
    }
    if (invalid > 0) emit(text.substr(0, invalid));
    text.remove_prefix(invalid);
  }
}

}  // namespace moe
