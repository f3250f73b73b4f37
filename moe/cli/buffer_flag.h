#pragma once
// --buffer of the commands that measure memory.

#include <cstdint>
#include <optional>

#include "moe/base/result.h"

namespace CLI {
class App;
}

namespace moe {

struct BufferFlag {
  std::optional<int64_t> mib = {};

  // What a CeilingProbe takes.
  int64_t bytes() const { return mib ? *mib << 20 : -1; }
};

void AddBufferFlag(CLI::App& app, BufferFlag& flag);
// Usage errors: too little for the probes, or more than there is.
Status CheckBuffer(const BufferFlag& flag);

}  // namespace moe
