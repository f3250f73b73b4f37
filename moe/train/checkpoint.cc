#include "moe/train/checkpoint.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>

#include "moe/files/json.h"

namespace moe {
namespace {

constexpr const char* kFormat = "moe.cpp train_state 1";

std::string PathOf(const std::string& folder, const char* name) {
  return (std::filesystem::path(folder) / name).string();
}

bool Exists(const std::string& path) {
  return access(path.c_str(), F_OK) == 0;
}

// Hexadecimal: comes back bit for bit.
std::string ToText(double x) {
  return fmt::format("{:a}", x);
}

std::string ToText(const std::vector<double>& values) {
  std::string out;
  for (const double x : values) out += (out.empty() ? "" : " ") + ToText(x);
  return out;
}

Metadata ToMetadata(const TrainState& state) {
  return {{"format", kFormat},
          {"step", std::to_string(state.step)},
          {"seconds", ToText(state.seconds)},
          {"best_loss", ToText(state.best_loss)},
          {"best_bits_per_byte", ToText(state.best_bits_per_byte)},
          {"best_step", std::to_string(state.best_step)},
          {"metrics_bytes", std::to_string(state.metrics_bytes)},
          {"pending_line", state.pending_line},
          {"recipe", state.recipe},
          {"data_digest", state.data_digest},
          {"tokenizer_digest", state.tokenizer_digest},
          {"weights_digest", state.weights_digest},
          {"validation_digest", state.validation_digest},
          {"capacity_factors", ToText(state.capacity_factors)},
          {"kernels", state.kernels}};
}

struct MetadataReader {
  const Safetensors& file;
  Status status = {};

  std::string Text(const char* key) {
    const auto it = file.metadata().find(key);
    if (it != file.metadata().end()) return it->second;
    if (status) status = Err(file.path(), "got no entry '{}', expected a checkpoint of moe train", key);
    return "";
  }
  int64_t Whole(const char* key) {
    const std::string text = Text(key);
    int64_t value = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (status && (error != std::errc() || end != text.data() + text.size() || value < 0)) {
      status = Err(file.path(), "entry '{}': got {}, expected a whole number", key, Printable(text));
    }
    return value;
  }
  // What files of older programs lack.
  std::string TextOrNone(const char* key) { return file.metadata().contains(key) ? Text(key) : ""; }
  std::vector<double> Numbers(const char* key) {
    std::vector<double> values;
    if (!file.metadata().contains(key)) return values;
    const std::string text = Text(key);
    for (const char* at = text.c_str(); *at != '\0';) {
      char* end = nullptr;
      values.push_back(std::strtod(at, &end));
      const bool good = end != at && (*end == ' ' || *end == '\0') && std::isfinite(values.back());
      if (status && !good) status = Err(file.path(), "entry '{}': got {}, expected numbers", key, Printable(text));
      if (!good) break;
      at = *end == ' ' ? end + 1 : end;
    }
    return values;
  }
  double Number(const char* key) {
    const std::string text = Text(key);
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (status && (text.empty() || *end != '\0')) {
      status = Err(file.path(), "entry '{}': got {}, expected a number", key, Printable(text));
    }
    return value;
  }
};

Result<OpenedTrainState> Open(const std::string& path) {
  MOE_TRY(Safetensors file, Safetensors::Open(path));
  MetadataReader reader{file};
  if (reader.Text("format") != kFormat)
    return Err(path, "is no checkpoint of moe train, expected one, of format '{}'", kFormat);
  MOE_TRY(file.VerifyChecksums());
  TrainState state{.step = reader.Whole("step"),
                   .seconds = reader.Number("seconds"),
                   .best_loss = reader.Number("best_loss"),
                   .best_bits_per_byte = reader.Number("best_bits_per_byte"),
                   .best_step = reader.Whole("best_step"),
                   .metrics_bytes = reader.Whole("metrics_bytes"),
                   .pending_line = reader.Text("pending_line"),
                   .recipe = reader.Text("recipe"),
                   .data_digest = reader.Text("data_digest"),
                   .tokenizer_digest = reader.Text("tokenizer_digest"),
                   .weights_digest = reader.TextOrNone("weights_digest"),
                   .validation_digest = reader.TextOrNone("validation_digest"),
                   .capacity_factors = reader.Numbers("capacity_factors"),
                   .kernels = reader.Text("kernels")};
  MOE_TRY(reader.status);
  return OpenedTrainState{std::move(file), std::move(state), ""};
}

// The last checkpoint becomes the previous one, and stays the last one too until the new file takes its name.
void KeepAsPrevious(const std::string& folder) {
  const std::string last = PathOf(folder, kTrainStateName), previous = PathOf(folder, kPreviousTrainStateName);
  const std::string temporary = previous + ".tmp";
  unlink(temporary.c_str());
  if (link(last.c_str(), temporary.c_str()) == 0) {
    std::rename(temporary.c_str(), previous.c_str());
    unlink(temporary.c_str());   // where both were one file, rename does nothing
  } else if (errno != ENOENT) {  // no hard links here: for an instant only `previous` has a name, which OpenTrainState knows
    std::rename(last.c_str(), previous.c_str());
  }
}

}  // namespace

bool HoldsTrainState(const std::string& folder) {
  return Exists(PathOf(folder, kTrainStateName)) || Exists(PathOf(folder, kPreviousTrainStateName));
}

Status SaveTrainState(const std::string& folder, const TrainState& state, const ParameterStore& store,
                      const Optimizer& optimizer) {
  std::vector<TensorInfo> tensors;
  for (const char* kind : {"master.", "m.", "v."}) {
    for (const Parameter& p : store.all()) tensors.push_back({kind + p.name, DType::kF32, p.value.shape()});
  }
  MOE_TRY(SafetensorsWriter writer, SafetensorsWriter::Create(PathOf(folder, kTrainStateName), std::move(tensors),
                                                              {.metadata = ToMetadata(state), .checksums = true}));
  for (const Parameter& p : store.all()) MOE_TRY(writer.AppendFloats("master." + p.name, p.value.span()));
  size_t i = 0;
  for (const Parameter& p : store.all()) MOE_TRY(writer.AppendFloats("m." + p.name, optimizer.m[i++].span()));
  i = 0;
  for (const Parameter& p : store.all()) MOE_TRY(writer.AppendFloats("v." + p.name, optimizer.v[i++].span()));
  KeepAsPrevious(folder);
  return writer.Commit();
}

Result<OpenedTrainState> OpenTrainState(const std::string& folder) {
  const std::string last = PathOf(folder, kTrainStateName), previous = PathOf(folder, kPreviousTrainStateName);
  if (!HoldsTrainState(folder)) {
    return Err(folder, "got no checkpoint ({}), expected one to resume from; leave --resume out to begin a run",
               kTrainStateName);
  }
  auto opened = Open(last);
  if (opened || !Exists(previous)) return opened;
  auto older = Open(previous);
  if (!older) {
    return Err(last, "{}; and the one before, [{}] {}", opened.error().what, older.error().where, older.error().what);
  }
  const bool is_there = Exists(last);
  if (std::rename(previous.c_str(), last.c_str()) != 0) return Err(previous, "cannot rename: {}", std::strerror(errno));
  if (is_there) {
    older->warning = fmt::format("[{}] {}; going on from the checkpoint before it, of step {}", last, opened.error().what,
                                 older->state.step);
  }
  return older;
}

Status ReadTrainState(const OpenedTrainState& opened, ParameterStore& store, Optimizer& optimizer) {
  const Safetensors& file = opened.file;
  if (optimizer.m.size() != store.all().size()) optimizer.Reset(store);
  struct Target {
    const StoredTensor* stored;
    Tensor* tensor;
  };
  std::vector<Target> targets;
  std::set<std::string> known;
  size_t i = 0;
  for (Parameter& p : store.all()) {
    for (const auto& [kind, tensor] : {std::pair{"master.", &p.value}, {"m.", &optimizer.m[i]}, {"v.", &optimizer.v[i]}}) {
      const std::string name = kind + p.name;
      const StoredTensor* stored = file.Find(name);
      if (stored == nullptr) return Err(file.path(), "got no tensor '{}', expected every tensor of the model", name);
      if (stored->dtype != DType::kF32 || stored->shape != tensor->shape()) {
        return Err(file.path(), "tensor '{}': got {} [{}], expected f32 [{}]", name, Name(stored->dtype),
                   fmt::join(stored->shape, ","), fmt::join(tensor->shape(), ","));
      }
      known.insert(name);
      targets.push_back({stored, tensor});
    }
    ++i;
  }
  for (const StoredTensor& stored : file.tensors()) {
    if (!known.contains(stored.name)) {
      return Err(file.path(), "got the unknown tensor '{}', expected only the model's", Printable(stored.name));
    }
  }
  for (const Target& target : targets) {
    std::memcpy(target.tensor->data(), target.stored->data.data(), target.stored->data.size());
  }
  optimizer.steps_done = opened.state.step;
  return {};
}

}  // namespace moe
