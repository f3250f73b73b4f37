#include "moe/base/version.h"

namespace moe {

const char* Version() {
  return MOE_VERSION;
}

}  // namespace moe
