#pragma once
// The safetensors format: a little-endian u64 header length, a JSON header {name: {dtype, shape, data_offsets}, "__metadata__":
// {}}, then the tensors' bytes without gaps. https://github.com/huggingface/safetensors#format
//
// Checksums, where asked for, are metadata entries that other readers pass over: "xxh3:<tensor>" is XXH3-64 of the tensor's
// bytes, and "xxh3:__header__" that of the header itself with this entry's own digits set to zero, so that no flipped bit goes
// unnoticed.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "moe/base/result.h"
#include "moe/files/atomic_file.h"
#include "moe/tensor/dtype.h"

namespace moe {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // row-major; empty: one value

  int64_t size() const;   // values
  int64_t bytes() const;  // size() * SizeOf(dtype)
};

struct StoredTensor : TensorInfo {
  std::span<const std::byte> data;  // in the mapped file, little-endian; only byte alignment is promised
  std::string file;                 // where it lies, for messages
};

using Metadata = std::map<std::string, std::string>;

// Copies a f32, bf16 or f16 tensor into out, which has room for all of it (checked). Errors: another shape than expected,
// another dtype.
Status ReadFloats(const StoredTensor& tensor, std::span<const int64_t> expected_shape, std::span<float> out);

// A file opened for reading (mapped, nothing copied). Everything the header claims has been checked against the file by Open.
class Safetensors {
 public:
  static Result<Safetensors> Open(const std::string& path);

  const std::vector<StoredTensor>& tensors() const { return tensors_; }  // in the order of the bytes in the file
  const StoredTensor* Find(const std::string& name) const;               // null if absent
  const Metadata& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }

  bool has_checksums() const;
  // Reads everything. Errors: a tensor (named) or the header is not what was written; a checksum is missing; there are none at
  // all.
  Status VerifyChecksums() const;

 private:
  Safetensors(std::string path, MappedFile file) : path_(std::move(path)), file_(std::move(file)) {}
  Status ParseHeader();

  std::string path_;
  MappedFile file_;
  std::string_view header_;  // the JSON text, in file_
  std::vector<StoredTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;  // name -> tensors_
  Metadata metadata_;
};

// Writes a file tensor by tensor: the list first, then the bytes in that order, in pieces of any size. Nothing appears at
// `path` before Commit (see AtomicFile).
class SafetensorsWriter {
 public:
  struct Options {
    Metadata metadata;
    bool checksums = false;
  };
  static Result<SafetensorsWriter> Create(const std::string& path, std::vector<TensorInfo> tensors, Options options);
  static Result<SafetensorsWriter> Create(const std::string& path, std::vector<TensorInfo> tensors);
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) noexcept;
  ~SafetensorsWriter();

  // The next bytes of tensor `name`, which must be the one whose turn it is (checked), as must the sizes.
  Status Append(std::string_view name, std::span<const std::byte> bytes);
  // The same from floats, rounded to the tensor's dtype (f32, bf16 or f16; to nearest, ties to even).
  Status AppendFloats(std::string_view name, std::span<const float> values);
  Status Commit();  // all tensors are complete (checked)

 private:
  struct State;
  explicit SafetensorsWriter(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

// The tensors of a model folder as Hugging Face lays it out: model.safetensors, or the shards that model.safetensors.index.json
// lists. Also opens a single .safetensors file. Errors: neither is there; a shard is missing; a tensor is in two shards, in
// none, or not where the index says.
class ModelFiles {
 public:
  static Result<ModelFiles> Open(const std::string& path);

  const std::vector<Safetensors>& shards() const { return shards_; }
  const StoredTensor* Find(const std::string& name) const;  // null if absent
  std::vector<std::string> names() const;                   // shard by shard, each in the order of its bytes
  Status VerifyChecksums() const;                           // of every shard
  // XXH3 of every tensor's name, type, shape and bytes: the same however they are laid out and split into files.
  std::string Digest() const;

 private:
  std::vector<Safetensors> shards_;
};

}  // namespace moe
