#include "moe/train/run_folder.h"

#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>

#include "moe/train/checkpoint.h"

namespace moe {

namespace fs = std::filesystem;

std::string PathIn(const std::string& folder, const char* name) {
  return (fs::path(folder) / name).string();
}

bool Holds(const std::string& folder, const char* name) {
  std::error_code error;
  return exists(fs::symlink_status(fs::path(folder) / name, error));
}

Status MakeFolder(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return Err(folder, "cannot create the folder: {}", error.message());
  return {};
}

Status CheckWritable(const std::string& folder) {
  fs::path place = fs::absolute(folder).lexically_normal();
  for (;; place = place.parent_path()) {  // up to what is there
    std::error_code error;
    const fs::file_status status = fs::status(place, error);
    if (is_directory(status)) break;
    if (exists(status)) return Err(folder, "got a file at {}, expected a folder to write to", place.string());
    if (status.type() != fs::file_type::not_found) return Err(folder, "cannot write there: {}", error.message());
    if (is_symlink(fs::symlink_status(place, error)))
      return Err(folder, "got a link to nothing at {}, expected a folder to write to", place.string());
    if (place.filename().native().size() > NAME_MAX) return Err(folder, "cannot write there: {}", std::strerror(ENAMETOOLONG));
  }
  if (access(place.c_str(), W_OK | X_OK) != 0)
    return Err(folder, "cannot write to {}: {}", place.string(), std::strerror(errno));
  return {};
}

Status CheckNothingTaken(const std::string& folder) {
  for (const char* name : {kTrainStateName, kPreviousTrainStateName}) {
    if (!Holds(folder, name)) continue;
    return Err(folder,
               "already holds a run ({}), expected a new or empty folder; --resume goes on with it, --out names another", name);
  }
  for (const char* name : {"model.safetensors", "model.safetensors.index.json", "config.json", "best", "metrics.jsonl",
                           "recipe.toml", "tokenizer.json", "tokenizer_config.json"}) {
    if (!Holds(folder, name)) continue;
    std::error_code error;
    const fs::path path = fs::path(folder) / name;
    if (name == std::string("metrics.jsonl") && fs::is_regular_file(path, error) && fs::file_size(path, error) == 0) continue;
    return Err(folder, "already holds {}, which a run writes, expected a new or empty folder; --out names another", name);
  }
  return {};
}

}  // namespace moe
