// Any bytes as a .safetensors file: an error, or tensors that lie inside the file and can be read.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "moe/base/check.h"
#include "moe/files/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int file = memfd_create("fuzz", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(file);
  MOE_CHECK(ftruncate(file, 0) == 0 && pwrite(file, data, size, 0) == static_cast<ssize_t>(size));
  const auto opened = moe::Safetensors::Open(path);
  if (!opened) {
    MOE_CHECK(opened.error().Message().find('\n') == std::string::npos, "{}", opened.error().Message());
    return 0;
  }
  size_t bytes = 0;
  std::vector<float> values;
  for (const moe::StoredTensor& tensor : opened->tensors()) {
    MOE_CHECK(tensor.bytes() == static_cast<int64_t>(tensor.data.size()) && opened->Find(tensor.name) == &tensor);
    bytes += tensor.data.size();
    values.resize(static_cast<size_t>(tensor.size()));
    (void)moe::ReadFloats(tensor, tensor.shape, values);
  }
  MOE_CHECK(bytes <= size, "{} of {}", bytes, size);
  (void)opened->VerifyChecksums();
  return 0;
}
