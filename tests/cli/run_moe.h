#pragma once
// The program as a user calls it.

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "testing/subprocess.h"

namespace moe::test {

// Sanitizers keep shadows and quarantines of their own: what a program takes or may take says nothing then.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

inline RunResult RunMoe(std::vector<std::string> arguments, const RunOptions& options = {}) {
  arguments.insert(arguments.begin(), MOE_BINARY);
  return RunProgram(std::move(arguments), options);
}

// One line "moe: [where] ..." on stderr with `part` in it, nothing on stdout, and this exit code.
inline void ExpectFails(const RunResult& result, int exit_code, const std::string& where, const std::string& part,
                        const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  testing::ScopedTrace trace(file, line, result.err);
  EXPECT_EQ(result.exit_code, exit_code);
  EXPECT_EQ(result.signal, 0);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1);
  EXPECT_TRUE(result.err.starts_with("moe: [" + where + "] ")) << "expected where = " << where;
  EXPECT_NE(result.err.find(part), std::string::npos) << "expected: " << part;
}

}  // namespace moe::test
