#pragma once
// Files that appear whole or not at all, and files read as they lie on the disk.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "moe/base/result.h"

namespace moe {

// Writes "<path>.tmp" and renames it to `path` on Commit; until then a file already at `path` stays as it was, whatever
// happens: full disk, crash, power cut. Not committed: the destructor removes the temporary (one left by a killed process is
// taken over by the next). Errors name `path` and say what the system said. One writer at a time; a second is refused.
class AtomicFile {
 public:
  static Result<AtomicFile> Create(std::string path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  ~AtomicFile();

  Status Write(const void* data, size_t size);                    // appends
  Status WriteAt(int64_t offset, const void* data, size_t size);  // overwrites what was written before
  Status Commit();                                                // fsync, rename, fsync of the folder; then the file is closed

  const std::string& path() const { return path_; }

 private:
  AtomicFile(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}
  void Discard();

  std::string path_;
  int descriptor_ = -1;  // -1: committed, given up or moved from
};

Status WriteFileAtomically(const std::string& path, std::string_view contents);

// The whole file. Works for pipes too. A directory is an error.
Result<std::string> ReadFile(const std::string& path);

// A regular file in memory without reading it first: pages come from the disk as they are touched. Read-only.
class MappedFile {
 public:
  static Result<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }  // stays where it is when the MappedFile moves

 private:
  MappedFile(const std::byte* data, size_t size) : data_(data), size_(size) {}

  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace moe
