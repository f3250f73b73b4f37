#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "moe/base/bf16.h"
#include "moe/base/check.h"
#include "moe/files/f16.h"
#include "moe/files/safetensors.h"
#include "moe/files/safetensors_format.h"

namespace moe {
namespace {

constexpr size_t kHeaderAlignment = 64;  // the data starts at a multiple of this, which lets a kernel read a mapped file

struct FreeState {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

std::string DigitsKey(std::string_view tensor) {
  return std::string(kChecksumPrefix) + std::string(tensor);
}

// Bytes that are not UTF-8 (a file name in the metadata) become U+FFFD.
std::string Quoted(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Compact JSON, metadata first, tensors in their order, padded with spaces.
std::string Header(const std::vector<TensorInfo>& tensors, const Metadata& metadata) {
  using Json = nlohmann::ordered_json;
  std::string out = "{";
  if (!metadata.empty()) {
    out += Quoted(kMetadataKey) + ":{";
    for (const auto& [key, value] : metadata) out += (out.back() == '{' ? "" : ",") + Quoted(key) + ":" + Quoted(value);
    out += "}";
  }
  int64_t at = 0;
  for (const TensorInfo& tensor : tensors) {
    const int64_t end = at + tensor.bytes();
    const Json entry = {{"dtype", SafetensorsName(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {at, end}}};
    out += (out.size() == 1 ? "" : ",") + Quoted(tensor.name) + ":" + entry.dump();
    at = end;
  }
  out += "}";
  out.resize((out.size() + 8 + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment - 8, ' ');
  return out;
}

}  // namespace

struct SafetensorsWriter::State {
  AtomicFile file;
  std::vector<TensorInfo> tensors;
  std::string header;
  bool checksums = false;
  std::unique_ptr<XXH3_state_t, FreeState> checksum;  // of the tensor being written
  size_t current = 0;                                 // the tensor being written
  int64_t written = 0;                                // bytes of it

  void SetDigits(const std::string& key, const std::string& digits) {
    const auto at = FindChecksumDigits(header, key);
    MOE_CHECK(at.has_value(), "{}", key);
    header.replace(*at, kChecksumDigits, digits);
  }
  // Closes every tensor that has all its bytes; those of size zero at once.
  void Advance() {
    while (current < tensors.size() && written == tensors[current].bytes()) {
      if (checksums) {
        const std::string key = Quoted(DigitsKey(tensors[current].name));
        SetDigits(key.substr(1, key.size() - 2), ChecksumHex(static_cast<uint64_t>(XXH3_64bits_digest(checksum.get()))));
        XXH3_64bits_reset(checksum.get());
      }
      ++current;
      written = 0;
    }
  }
};

SafetensorsWriter::SafetensorsWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter::~SafetensorsWriter() = default;

Result<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path, std::vector<TensorInfo> tensors) {
  return Create(path, std::move(tensors), Options());
}

Result<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path, std::vector<TensorInfo> tensors, Options options) {
  std::set<std::string_view> names = {kMetadataKey, kHeaderChecksum};
  for (const TensorInfo& tensor : tensors) {
    MOE_CHECK(names.insert(tensor.name).second, "tensor name {} is reserved or given twice", tensor.name);
    MOE_CHECK(std::ranges::all_of(tensor.shape, [](int64_t extent) { return extent >= 0; }), "tensor {}", tensor.name);
  }
  if (options.checksums) {
    const std::string zeros(kChecksumDigits, '0');
    for (const TensorInfo& tensor : tensors) options.metadata[DigitsKey(tensor.name)] = zeros;
    options.metadata[DigitsKey(kHeaderChecksum)] = zeros;
  }
  std::string header = Header(tensors, options.metadata);
  if (header.size() > kMaxSafetensorsHeader)
    return Err(path, "got a header of {} bytes, expected at most {}: too many tensors", header.size(), kMaxSafetensorsHeader);
  MOE_TRY(AtomicFile file, AtomicFile::Create(path));
  auto state = std::make_unique<State>(State{.file = std::move(file),
                                             .tensors = std::move(tensors),
                                             .header = std::move(header),
                                             .checksums = options.checksums,
                                             .checksum = {}});
  if (options.checksums) {
    state->checksum.reset(XXH3_createState());
    MOE_CHECK(state->checksum != nullptr);
    XXH3_64bits_reset(state->checksum.get());
  }
  const uint64_t header_bytes = state->header.size();
  MOE_TRY(state->file.Write(&header_bytes, sizeof(header_bytes)));
  MOE_TRY(state->file.Write(state->header.data(), state->header.size()));
  state->Advance();
  return SafetensorsWriter(std::move(state));
}

Status SafetensorsWriter::Append(std::string_view name, std::span<const std::byte> bytes) {
  State& s = *state_;
  if (bytes.empty()) return {};  // a tensor without values is complete already
  MOE_CHECK(s.current < s.tensors.size(), "all tensors are written, got {}", name);
  const TensorInfo& tensor = s.tensors[s.current];
  MOE_CHECK(tensor.name == name, "got {}, the next tensor is {}", name, tensor.name);
  MOE_CHECK(s.written + static_cast<int64_t>(bytes.size()) <= tensor.bytes(), "{}: {} + {} of {} bytes", name, s.written,
            bytes.size(), tensor.bytes());
  MOE_TRY(s.file.Write(bytes.data(), bytes.size()));
  if (s.checksums) XXH3_64bits_update(s.checksum.get(), bytes.data(), bytes.size());
  s.written += static_cast<int64_t>(bytes.size());
  s.Advance();
  return {};
}

Status SafetensorsWriter::AppendFloats(std::string_view name, std::span<const float> values) {
  if (values.empty()) return {};
  MOE_CHECK(state_->current < state_->tensors.size(), "all tensors are written, got {}", name);
  const DType dtype = state_->tensors[state_->current].dtype;
  if (dtype == DType::kF32) return Append(name, std::as_bytes(values));
  MOE_CHECK(dtype == DType::kBf16 || dtype == DType::kF16, "{} is {}", name, Name(dtype));
  std::array<uint16_t, 4096> chunk;
  while (!values.empty()) {
    const size_t count = std::min(values.size(), chunk.size());
    for (size_t i = 0; i < count; ++i) chunk[i] = dtype == DType::kBf16 ? ToBf16(values[i]).bits : ToF16(values[i]).bits;
    MOE_TRY(Append(name, std::as_bytes(std::span(chunk).first(count))));
    values = values.subspan(count);
  }
  return {};
}

Status SafetensorsWriter::Commit() {
  State& s = *state_;
  MOE_CHECK(s.current == s.tensors.size(), "{} of {} tensors are written", s.current, s.tensors.size());
  if (s.checksums) {
    s.SetDigits(DigitsKey(kHeaderChecksum), ChecksumHex(s.header.data(), s.header.size()));
    MOE_TRY(s.file.WriteAt(sizeof(uint64_t), s.header.data(), s.header.size()));
  }
  return s.file.Commit();
}

}  // namespace moe
