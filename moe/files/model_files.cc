#include <fmt/ranges.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "moe/files/json.h"
#include "moe/files/safetensors.h"

namespace moe {
namespace {

bool Exists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0;
}

bool IsFolder(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

}  // namespace

Result<ModelFiles> ModelFiles::Open(const std::string& path) {
  ModelFiles model;
  const std::string single = IsFolder(path) ? path + "/model.safetensors" : path;
  const std::string index_path = path + "/model.safetensors.index.json";
  if (!IsFolder(path) || Exists(single) || !Exists(index_path)) {
    if (IsFolder(path) && !Exists(single))
      return Err(path, "holds no model: expected model.safetensors or model.safetensors.index.json");
    MOE_TRY(Safetensors file, Safetensors::Open(single));
    model.shards_.push_back(std::move(file));
    return model;
  }

  MOE_TRY(const nlohmann::json index, LoadJson(index_path));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    return Err(index_path, "got no weight_map, expected an object of tensor: file");
  std::map<std::string, std::set<std::string>> by_file;
  for (const auto& [name, file] : index["weight_map"].items()) {
    const std::string* plain = file.get_ptr<const std::string*>();
    if (plain == nullptr || plain->empty() || plain->find('/') != std::string::npos || plain->find('\0') != std::string::npos)
      return Err(index_path, "tensor '{}': got {}, expected the name of a file in this folder", Printable(name),
                 Printable(file.dump()));
    by_file[*plain].insert(name);
  }
  std::map<std::string, std::string> seen;  // tensor -> file
  for (const auto& [file, names] : by_file) {
    const std::string shard_path = path + "/" + file;
    if (!Exists(shard_path)) return Err(index_path, "names the shard '{}', which is missing", Printable(file));
    MOE_TRY(Safetensors shard, Safetensors::Open(shard_path));
    for (const StoredTensor& tensor : shard.tensors()) {
      const auto [other, is_new] = seen.emplace(tensor.name, file);
      if (!is_new)
        return Err(index_path, "tensor '{}': is in two shards, '{}' and '{}'", Printable(tensor.name), Printable(other->second),
                   Printable(file));
    }
    for (const std::string& name : names)
      if (shard.Find(name) == nullptr)
        return Err(index_path, "tensor '{}': is not in the shard '{}'", Printable(name), Printable(file));
    model.shards_.push_back(std::move(shard));
  }
  for (const auto& [name, file] : seen)
    if (!by_file[file].contains(name))
      return Err(index_path, "tensor '{}': is in the shard '{}', but not in the index", Printable(name), Printable(file));
  return model;
}

const StoredTensor* ModelFiles::Find(const std::string& name) const {
  for (const Safetensors& shard : shards_)
    if (const StoredTensor* tensor = shard.Find(name)) return tensor;
  return nullptr;
}

std::vector<std::string> ModelFiles::names() const {
  std::vector<std::string> names;
  for (const Safetensors& shard : shards_)
    for (const StoredTensor& tensor : shard.tensors()) names.push_back(tensor.name);
  return names;
}

std::string ModelFiles::Digest() const {
  std::vector<std::string> sorted = names();
  std::ranges::sort(sorted);
  std::string all;
  for (const std::string& name : sorted) {
    const StoredTensor& tensor = *Find(name);
    all += fmt::format("{} {} [{}] {:016x}\n", name, Name(tensor.dtype), fmt::join(tensor.shape, ","),
                       XXH3_64bits(tensor.data.data(), tensor.data.size()));
  }
  return fmt::format("{:016x}", XXH3_64bits(all.data(), all.size()));
}

Status ModelFiles::VerifyChecksums() const {
  for (const Safetensors& shard : shards_) MOE_TRY(shard.VerifyChecksums());
  return {};
}

}  // namespace moe
