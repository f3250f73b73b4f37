#include "moe/files/safetensors.h"

#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "moe/base/bf16.h"
#include "moe/base/check.h"
#include "moe/files/f16.h"
#include "moe/files/json.h"
#include "moe/files/safetensors_format.h"

namespace moe {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian and are mapped as they are");

using Json = nlohmann::json;

// The product of shape times the value size; nothing if it does not fit.
std::optional<int64_t> BytesOf(const std::vector<int64_t>& shape, DType dtype) {
  int64_t bytes = SizeOf(dtype);
  for (const int64_t extent : shape)
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  return bytes;
}

// Non-negative and fits an int64.
std::optional<int64_t> Count(const Json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
  return value.get<int64_t>();
}

template <class Value, class Narrow>
void Widen(std::span<const std::byte> data, std::span<float> out, Narrow to_float) {
  for (size_t i = 0; i < out.size(); ++i) {
    Value value;  // the file promises no alignment
    std::memcpy(&value, data.data() + i * sizeof(Value), sizeof(Value));
    out[i] = to_float(value);
  }
}

}  // namespace

int64_t TensorInfo::size() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}
int64_t TensorInfo::bytes() const {
  return size() * SizeOf(dtype);
}

Status ReadFloats(const StoredTensor& tensor, std::span<const int64_t> expected_shape, std::span<float> out) {
  if (!std::ranges::equal(tensor.shape, expected_shape))
    return Err(tensor.file, "tensor '{}' has shape [{}], expected [{}]", Printable(tensor.name), fmt::join(tensor.shape, ","),
               fmt::join(expected_shape, ","));
  MOE_CHECK(static_cast<int64_t>(out.size()) == tensor.size(), "out {} tensor {}", out.size(), tensor.size());
  switch (tensor.dtype) {
    case DType::kF32:
      if (!out.empty()) std::memcpy(out.data(), tensor.data.data(), out.size_bytes());
      return {};
    case DType::kBf16:
      Widen<Bf16>(tensor.data, out, [](Bf16 x) { return ToFloat(x); });
      return {};
    case DType::kF16:
      Widen<F16>(tensor.data, out, [](F16 x) { return ToFloat(x); });
      return {};
    default:
      return Err(tensor.file, "tensor '{}' has dtype {}, expected f32, bf16 or f16", Printable(tensor.name),
                 Name(tensor.dtype));
  }
}

Result<Safetensors> Safetensors::Open(const std::string& path) {
  MOE_TRY(MappedFile file, MappedFile::Open(path));
  Safetensors opened(path, std::move(file));
  MOE_TRY(opened.ParseHeader());
  return opened;
}

Status Safetensors::ParseHeader() {
  const std::span<const std::byte> bytes = file_.bytes();
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  if (bytes.size() < sizeof(uint64_t))
    return Err(path_, "is not a safetensors file: got {} bytes, expected 8 at least", bytes.size());
  uint64_t header_bytes;
  std::memcpy(&header_bytes, text, sizeof(header_bytes));
  const size_t room = bytes.size() - sizeof(header_bytes);
  if (header_bytes > kMaxSafetensorsHeader || header_bytes > room)
    return Err(path_, "is truncated or not a safetensors file: got a header length of {}, expected at most {}", header_bytes,
               std::min<uint64_t>(room, kMaxSafetensorsHeader));
  header_ = {text + sizeof(header_bytes), header_bytes};
  const std::span<const std::byte> data = bytes.subspan(sizeof(header_bytes) + header_bytes);
  if (!header_.starts_with('{')) return Err(path_, "is not a safetensors file: its header does not start with '{{'");
  MOE_TRY(const Json header, ParseJson(header_, path_ + ", header"));

  struct Range {
    int64_t begin, end;
    size_t tensor;
  };
  std::vector<Range> ranges;
  std::vector<StoredTensor> parsed;
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadataKey) {
      if (!entry.is_object()) return Err(path_, "__metadata__ is {}, expected an object of strings", entry.type_name());
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          return Err(path_, "__metadata__ '{}' is {}, expected a string", Printable(key), value.type_name());
        metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    const auto tensor_err = [&, &name = name](const std::string& what) {
      return Err(path_, "tensor '{}': {}", Printable(name), what);
    };
    if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") ||
        !entry.contains("data_offsets"))
      return tensor_err("expected an object of dtype, shape and data_offsets");
    const Json &dtype_value = entry["dtype"], &shape_value = entry["shape"], &offsets = entry["data_offsets"];
    StoredTensor tensor;
    tensor.name = name;
    tensor.file = path_;
    const std::optional<DType> dtype =
        dtype_value.is_string() ? SafetensorsDType(dtype_value.get_ref<const std::string&>()) : std::nullopt;
    if (!dtype)
      return tensor_err(fmt::format("got dtype {}, expected F32, BF16, F16, I64, I32 or U8", Printable(dtype_value.dump())));
    tensor.dtype = *dtype;
    if (!shape_value.is_array()) return tensor_err(fmt::format("shape is {}, expected an array", shape_value.type_name()));
    for (const Json& value : shape_value) {
      const std::optional<int64_t> extent = Count(value);
      if (!extent)
        return tensor_err(fmt::format("got extent {} in shape, expected a non-negative integer", Printable(value.dump())));
      tensor.shape.push_back(*extent);
    }
    const std::optional<int64_t> size = BytesOf(tensor.shape, tensor.dtype);
    if (!size)
      return tensor_err(fmt::format("shape [{}] overflows", Printable(fmt::format("{}", fmt::join(tensor.shape, ",")))));
    const std::optional<int64_t> begin = offsets.is_array() && offsets.size() == 2 ? Count(offsets[0]) : std::nullopt;
    const std::optional<int64_t> end = begin ? Count(offsets[1]) : std::nullopt;
    if (!end) return tensor_err("data_offsets are not two non-negative integers");
    if (*begin > *end || *end > static_cast<int64_t>(data.size()))
      return tensor_err(fmt::format("got data_offsets [{},{}], expected them inside the {} bytes of data (truncated file?)",
                                    *begin, *end, data.size()));
    if (*end - *begin != *size)
      return tensor_err(fmt::format("got {} bytes, expected {} from its dtype and shape", *end - *begin, *size));
    tensor.data = data.subspan(static_cast<size_t>(*begin), static_cast<size_t>(*size));
    ranges.push_back({*begin, *end, parsed.size()});
    parsed.push_back(std::move(tensor));
  }

  std::ranges::stable_sort(ranges, {}, [](const Range& r) { return std::pair(r.begin, r.end); });
  int64_t at = 0;
  for (const Range& range : ranges) {
    if (range.begin != at)
      return Err(path_, "tensor '{}': starts at byte {}, expected {}: the tensors {}", Printable(parsed[range.tensor].name),
                 range.begin, at, range.begin < at ? "overlap" : "leave a hole");
    at = range.end;
    index_[parsed[range.tensor].name] = tensors_.size();
    tensors_.push_back(std::move(parsed[range.tensor]));
  }
  if (at != static_cast<int64_t>(data.size()))
    return Err(path_, "got {} bytes of data, expected {} as its header says", data.size(), at);
  return {};
}

const StoredTensor* Safetensors::Find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

bool Safetensors::has_checksums() const {
  return metadata_.contains(std::string(kChecksumPrefix) + std::string(kHeaderChecksum));
}

Status Safetensors::VerifyChecksums() const {
  const std::string header_key = std::string(kChecksumPrefix) + std::string(kHeaderChecksum);
  const auto expected_header = metadata_.find(header_key);
  if (expected_header == metadata_.end())
    return Err(path_, "got no checksums, expected them in its metadata ('{}')", header_key);
  std::string header(header_);
  const auto digits = FindChecksumDigits(header, header_key);
  if (!digits) return Err(path_, "the header is damaged: its checksum cannot be found");
  header.replace(*digits, kChecksumDigits, kChecksumDigits, '0');
  if (ChecksumHex(header.data(), header.size()) != expected_header->second)
    return Err(path_, "the header is damaged: its checksum does not match");
  for (const StoredTensor& tensor : tensors_) {
    const auto expected = metadata_.find(std::string(kChecksumPrefix) + tensor.name);
    if (expected == metadata_.end()) return Err(path_, "tensor '{}': has no checksum", Printable(tensor.name));
    const std::string got = ChecksumHex(tensor.data.data(), tensor.data.size());
    if (got != expected->second)
      return Err(path_, "tensor '{}': is damaged: got checksum {}, expected {}", Printable(tensor.name), got,
                 Printable(expected->second));
  }
  return {};
}

}  // namespace moe
