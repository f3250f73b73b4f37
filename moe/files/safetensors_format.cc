#include "moe/files/safetensors_format.h"

#include <fmt/format.h>
#include <xxhash.h>

namespace moe {
namespace {

struct DTypeName {
  DType dtype;
  std::string_view name;
};
constexpr DTypeName kDTypes[] = {{DType::kF32, "F32"}, {DType::kBf16, "BF16"}, {DType::kF16, "F16"},
                                 {DType::kI64, "I64"}, {DType::kI32, "I32"},   {DType::kU8, "U8"}};

}  // namespace

std::string_view SafetensorsName(DType dtype) {
  for (const DTypeName& entry : kDTypes)
    if (entry.dtype == dtype) return entry.name;
  return "?";
}

std::optional<DType> SafetensorsDType(std::string_view name) {
  for (const DTypeName& entry : kDTypes)
    if (entry.name == name) return entry.dtype;
  return std::nullopt;
}

std::string ChecksumHex(const void* data, size_t size) {
  return ChecksumHex(static_cast<uint64_t>(XXH3_64bits(data, size)));
}

std::string ChecksumHex(uint64_t checksum) {
  return fmt::format("{:016x}", checksum);
}

std::optional<size_t> FindChecksumDigits(std::string_view header, std::string_view key) {
  const std::string opening = fmt::format("\"{}\":\"", key);
  const size_t at = header.find(opening);
  if (at == std::string_view::npos) return std::nullopt;
  const size_t digits = at + opening.size();
  if (digits + kChecksumDigits >= header.size() || header[digits + kChecksumDigits] != '"') return std::nullopt;
  return digits;
}

}  // namespace moe
