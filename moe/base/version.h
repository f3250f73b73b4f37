#pragma once

namespace moe {

const char* Version();  // "0.1.0"

}  // namespace moe
