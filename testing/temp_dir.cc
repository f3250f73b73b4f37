#include "testing/temp_dir.h"

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <system_error>

namespace moe::test {

namespace {

// Memory where there is plenty: what is tested here syncs its files, and disks take their time.
std::filesystem::path Root() {
  std::error_code error;
  const bool chosen = std::getenv("TMPDIR") != nullptr;
  const auto shm = std::filesystem::space("/dev/shm", error);
  const bool fast = !chosen && !error && shm.available > (uintmax_t{1} << 30) && access("/dev/shm", W_OK | X_OK) == 0;
  return fast ? "/dev/shm" : std::filesystem::temp_directory_path();
}

}  // namespace

TempDir::TempDir() {
  std::string name = (Root() / "moe-test-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make " + name);
  path_ = name;
}

TempDir::~TempDir() {
  std::error_code ignored;
  // a test may have made a folder read-only
  for (auto it = std::filesystem::recursive_directory_iterator(path_, ignored); !ignored && it != end(it);
       it.increment(ignored)) {
    if (it->is_directory(ignored) && !it->is_symlink(ignored)) {
      std::filesystem::permissions(it->path(), std::filesystem::perms::owner_all, std::filesystem::perm_options::add, ignored);
    }
  }
  std::filesystem::remove_all(path_, ignored);
}

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

void WriteFile(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
}

}  // namespace moe::test
