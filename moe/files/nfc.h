#pragma once
// Unicode normal form C (UAX #15): what looks the same, "é" or "e" and an accent, becomes the same bytes.

#include <string>
#include <string_view>

namespace moe {

// The text in NFC: itself where there is nothing to change, else in `storage`. Bytes that are not UTF-8 stay, and nothing
// composes across them.
std::string_view ToNfc(std::string_view text, std::string& storage);

}  // namespace moe
