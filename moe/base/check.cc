#include "moe/base/check.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace moe {
namespace {

void PrintAndAbort(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::abort();
}

std::atomic<CheckHandler> g_handler{&PrintAndAbort};

}  // namespace

CheckHandler SetCheckHandler(CheckHandler handler) {
  return g_handler.exchange(handler);
}

void CheckFailed(const char* file, int line, const char* condition, const std::string& detail) {
  g_handler.load()(fmt::format("{}:{}: MOE_CHECK({}) failed.{}", file, line, condition, detail));
  std::abort();  // a handler that returns does not save a broken promise
}

}  // namespace moe
