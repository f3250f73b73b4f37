#pragma once
// What reader and writer of safetensors files must agree on. Not for others.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "moe/tensor/dtype.h"

namespace moe {

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;  // as the reference implementation
inline constexpr std::string_view kMetadataKey = "__metadata__";
inline constexpr std::string_view kChecksumPrefix = "xxh3:";
inline constexpr std::string_view kHeaderChecksum = "__header__";  // after the prefix; so no tensor may be called that
inline constexpr size_t kChecksumDigits = 16;

std::string_view SafetensorsName(DType dtype);                 // "BF16"
std::optional<DType> SafetensorsDType(std::string_view name);  // nothing if we do not have it
std::string ChecksumHex(const void* data, size_t size);        // XXH3-64, 16 lower-case digits
std::string ChecksumHex(uint64_t checksum);

// Where in the header's text the value of "key":"0123456789abcdef" stands; nothing if it is not written like that.
std::optional<size_t> FindChecksumDigits(std::string_view header, std::string_view key);

}  // namespace moe
