#include "moe/files/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "moe/base/check.h"

namespace moe {
namespace {

constexpr size_t kMaxCall = size_t{1} << 30;  // Linux moves at most 2 GiB per call

tl::unexpected<Error> SystemErr(const std::string& path, const char* doing, int error) {
  return Err(path, "cannot {}: {}", doing, std::strerror(error));
}

std::string TemporaryOf(const std::string& path) {
  return path + ".tmp";
}

// Makes the rename itself survive a power cut. Some file systems cannot sync a directory (EINVAL); they need not.
Status SyncFolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return SystemErr(path, "open its folder", errno);
  const int error = fsync(descriptor) == 0 || errno == EINVAL ? 0 : errno;
  close(descriptor);
  if (error != 0) return SystemErr(path, "sync its folder", error);
  return {};
}

}  // namespace

Result<AtomicFile> AtomicFile::Create(std::string path) {
  struct stat existing;
  if (stat(path.c_str(), &existing) == 0 && S_ISDIR(existing.st_mode)) return SystemErr(path, "write", EISDIR);
  const std::string temporary = TemporaryOf(path);
  for (;;) {
    const int descriptor = open(temporary.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0) return SystemErr(path, "create", errno);
    if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
      const int error = errno;
      close(descriptor);
      if (error == EWOULDBLOCK) return Err(path, "cannot write: another process is writing it now");
      return SystemErr(path, "lock", error);
    }
    // Between open and flock another writer may have renamed this very file to `path`: then the lock is on the wrong file.
    struct stat mine, named;
    const bool same = fstat(descriptor, &mine) == 0 && stat(temporary.c_str(), &named) == 0 && mine.st_ino == named.st_ino &&
                      mine.st_dev == named.st_dev;
    if (!same) {
      close(descriptor);
      continue;
    }
    AtomicFile file(std::move(path), descriptor);
    if (ftruncate(descriptor, 0) != 0) return SystemErr(file.path_, "create", errno);
    return file;
  }
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  if (this != &other) {
    Discard();
    path_ = std::move(other.path_);
    descriptor_ = std::exchange(other.descriptor_, -1);
  }
  return *this;
}

AtomicFile::~AtomicFile() {
  Discard();
}

void AtomicFile::Discard() {
  if (descriptor_ < 0) return;
  unlink(TemporaryOf(path_).c_str());  // before the lock goes with the descriptor
  close(descriptor_);
  descriptor_ = -1;
}

Status AtomicFile::Write(const void* data, size_t size) {
  MOE_CHECK(descriptor_ >= 0, "{} is closed", path_);
  for (const char* p = static_cast<const char*>(data); size > 0;) {
    const ssize_t written = write(descriptor_, p, std::min(size, kMaxCall));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return SystemErr(path_, "write", errno);
    p += written;
    size -= static_cast<size_t>(written);
  }
  return {};
}

Status AtomicFile::WriteAt(int64_t offset, const void* data, size_t size) {
  MOE_CHECK(descriptor_ >= 0, "{} is closed", path_);
  for (const char* p = static_cast<const char*>(data); size > 0;) {
    const ssize_t written = pwrite(descriptor_, p, std::min(size, kMaxCall), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return SystemErr(path_, "write", errno);
    p += written;
    offset += written;
    size -= static_cast<size_t>(written);
  }
  return {};
}

Status AtomicFile::Commit() {
  MOE_CHECK(descriptor_ >= 0, "{} is closed", path_);
  if (fsync(descriptor_) != 0) return SystemErr(path_, "write", errno);  // the last chance for a full disk to say so
  if (rename(TemporaryOf(path_).c_str(), path_.c_str()) != 0) return SystemErr(path_, "rename to", errno);
  const int closed = close(std::exchange(descriptor_, -1));
  if (closed != 0) return SystemErr(path_, "close", errno);
  return SyncFolderOf(path_);
}

Status WriteFileAtomically(const std::string& path, std::string_view contents) {
  MOE_TRY(AtomicFile file, AtomicFile::Create(path));
  MOE_TRY(file.Write(contents.data(), contents.size()));
  return file.Commit();
}

Result<std::string> ReadFile(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return SystemErr(path, "open", errno);
  struct stat info;
  std::string contents;
  int error = fstat(descriptor, &info) == 0 ? 0 : errno;
  size_t used = 0;
  if (error == 0 && S_ISREG(info.st_mode)) contents.resize(static_cast<size_t>(info.st_size) + 1);  // + 1 to meet the end
  while (error == 0) {
    if (used == contents.size()) contents.resize(std::max<size_t>(2 * used, 1 << 16));
    const ssize_t got = read(descriptor, contents.data() + used, std::min(contents.size() - used, kMaxCall));
    if (got == 0) break;
    if (got > 0) used += static_cast<size_t>(got);
    if (got < 0 && errno != EINTR) error = errno;
  }
  close(descriptor);
  if (error != 0) return SystemErr(path, "read", error);
  contents.resize(used);
  return contents;
}

Result<MappedFile> MappedFile::Open(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return SystemErr(path, "open", errno);
  struct stat info;
  int error = fstat(descriptor, &info) == 0 ? 0 : errno;
  if (error == 0 && S_ISDIR(info.st_mode)) error = EISDIR;
  if (error == 0 && !S_ISREG(info.st_mode)) error = ENODEV;
  void* data = nullptr;
  const size_t size = error == 0 ? static_cast<size_t>(info.st_size) : 0;
  if (size > 0) {
    data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (data == MAP_FAILED) error = errno;
  }
  close(descriptor);
  if (error != 0) return SystemErr(path, "read", error);
  return MappedFile(static_cast<const std::byte*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace moe
