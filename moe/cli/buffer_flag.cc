#include "moe/cli/buffer_flag.h"

#include <CLI/CLI.hpp>

#include "moe/base/cpu_info.h"
#include "moe/base/progress.h"

namespace moe {
namespace {

constexpr int64_t kLeastMib = 16;  // some of the probe's matrices, one after the other

}  // namespace

void AddBufferFlag(CLI::App& app, BufferFlag& flag) {
  app.add_option("--buffer", flag.mib,
                 "Memory to measure bandwidth in, MiB, twice; less than a few times the last-level cache measures that "
                 "(default: four times that cache, 256 to 1024)")
      ->type_name("MIB");
}

Status CheckBuffer(const BufferFlag& flag) {
  const int64_t available = AvailableMemoryBytes(), most = available / 2 >> 20;
  if (!flag.mib || (*flag.mib >= kLeastMib && *flag.mib <= most)) return {};
  return UsageErr("--buffer", "got {}, expected {} to {} MiB: it is taken twice, {} are free", *flag.mib, kLeastMib, most,
                  FormatBytes(static_cast<double>(available)));
}

}  // namespace moe
