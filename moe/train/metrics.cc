#include "moe/train/metrics.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "moe/base/check.h"
#include "moe/mixture/moe_metrics.h"

namespace moe {
namespace {

template <class F>
double MeanOverMoeLayers(const std::vector<LayerStats>& layers, F&& value) {
  double sum = 0;
  int64_t count = 0;
  for (const LayerStats& layer : layers) {
    if (layer.tokens_per_expert.empty()) continue;
    sum += value(layer);
    ++count;
  }
  return count == 0 ? 0 : sum / static_cast<double>(count);
}

template <class F>
double MostOfLayers(const std::vector<LayerStats>& layers, F&& value) {  // of numbers that are 0 for a dense layer
  double most = 0;
  for (const LayerStats& layer : layers) most = std::max(most, value(layer));
  return most;
}

}  // namespace

double StepMetrics::balance_loss() const {
  return MeanOverMoeLayers(layers, [](const LayerStats& layer) { return layer.balance_loss; });
}
double StepMetrics::z_loss() const {
  return MeanOverMoeLayers(layers, [](const LayerStats& layer) { return layer.z_loss; });
}
RouterLosses StepMetrics::losses() const {
  RouterLosses mean;
  for (const auto& [name, member] : kRouterLosses) {
    mean.*member = MeanOverMoeLayers(layers, [of = member](const LayerStats& layer) { return layer.losses.*of; });
  }
  return mean;
}
double StepMetrics::max_violation() const {
  return MostOfLayers(layers, [](const LayerStats& layer) { return MaxViolation(layer.tokens_per_expert); });
}
double StepMetrics::coefficient_of_variation() const {
  return MostOfLayers(layers, [](const LayerStats& layer) { return CoefficientOfVariation(layer.tokens_per_expert); });
}
double StepMetrics::entropy() const {
  return MeanOverMoeLayers(layers, [](const LayerStats& layer) { return layer.entropy; });
}
double StepMetrics::gate_mean() const {
  return MeanOverMoeLayers(layers, [](const LayerStats& layer) { return layer.gate_mean(); });
}
double StepMetrics::largest_logit() const {
  return MostOfLayers(layers, [](const LayerStats& layer) { return layer.largest_logit; });
}
int64_t StepMetrics::dead_experts() const {
  int64_t dead = 0;
  for (const LayerStats& layer : layers) dead += DeadExperts(layer.tokens_per_expert);
  return dead;
}
double StepMetrics::drop_rate() const {
  int64_t dropped = 0, slots = 0;
  for (const LayerStats& layer : layers) dropped += layer.num_dropped, slots += layer.num_slots;
  return slots == 0 ? 0 : static_cast<double>(dropped) / static_cast<double>(slots);
}

std::string ToJsonLine(const StepMetrics& metrics) {
  nlohmann::ordered_json line = {
      {"step", metrics.step},
      {"loss", metrics.loss},
      {"train_bits_per_byte", metrics.bits_per_byte},
      {"tokens", metrics.tokens},
      {"tokens_per_s", metrics.tokens_per_s()},
      {"lr", metrics.lr},
      {"grad_norm", metrics.grad_norm},
      {"aux_loss", metrics.balance_loss()},
      {"z_loss", metrics.z_loss()},
      {"max_violation", metrics.max_violation()},
      {"coefficient_of_variation", metrics.coefficient_of_variation()},
      {"drop_rate", metrics.drop_rate()},
      {"entropy", metrics.entropy()},
      {"dead_experts", metrics.dead_experts()},
      {"gate_mean", metrics.gate_mean()},
      {"largest_logit", metrics.largest_logit()},
      {"seconds", metrics.seconds},
      {"seconds_by_part",
       {{"data", metrics.parts.data}, {"model", metrics.parts.model}, {"optimizer", metrics.parts.optimizer}}}};
  const auto add = [](nlohmann::ordered_json& to, const RouterLosses& losses) {  // those in use
    for (const auto& [name, loss] : kRouterLosses) {
      if (losses.*loss != 0) to[name] = losses.*loss;
    }
  };
  add(line, metrics.losses());
  auto layers = nlohmann::ordered_json::array();
  for (const LayerStats& layer : metrics.layers) {
    if (layer.tokens_per_expert.empty()) {
      layers.push_back(nullptr);  // a dense layer
      continue;
    }
    layers.push_back({{"tokens_per_expert", layer.tokens_per_expert},
                      {"max_violation", MaxViolation(layer.tokens_per_expert)},
                      {"coefficient_of_variation", CoefficientOfVariation(layer.tokens_per_expert)},
                      {"dropped", layer.num_dropped},
                      {"drop_rate", DropRate(layer.num_dropped, layer.tokens_per_expert)},
                      {"entropy", layer.entropy},
                      {"dead_experts", DeadExperts(layer.tokens_per_expert)},
                      {"gate_mean", layer.gate_mean()},
                      {"largest_logit", layer.largest_logit},
                      {"aux_loss", layer.balance_loss},
                      {"z_loss", layer.z_loss}});
    add(layers.back(), layer.losses);
    if (layer.capacity_factor > 0) layers.back()["capacity_factor"] = layer.capacity_factor;
  }
  line["layers"] = std::move(layers);
  return line.dump();
}

std::string WithValidation(const std::string& json_line, const ValidationMetrics& validation) {
  auto line = nlohmann::ordered_json::parse(json_line, nullptr, false);
  MOE_CHECK(line.is_object(), "got {}, expected a line of ToJsonLine", json_line);
  line["validation_loss"] = validation.loss;
  line["bits_per_byte"] = validation.bits_per_byte;
  line["validation_seconds"] = validation.seconds;
  auto layers = nlohmann::ordered_json::array();
  for (const ExpertLoad& load : validation.layers) {
    layers.push_back(load.tokens_per_expert.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(ToJson(load)));
  }
  line["validation_layers"] = std::move(layers);
  return line.dump();
}

Result<MetricsFile> MetricsFile::Open(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor < 0) return Err(path, "cannot open: {}", std::strerror(errno));
  MetricsFile file(path, descriptor);
  if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return Err(path, "another process is training in this folder now, expected none");
    return Err(path, "cannot lock: {}", std::strerror(errno));
  }
  file.bytes_ = lseek(descriptor, 0, SEEK_END);
  return file;
}

Status MetricsFile::Truncate(int64_t keep_bytes) {
  bytes_ = std::clamp<int64_t>(keep_bytes, 0, bytes_);
  for (char last = '\0'; bytes_ > 0; --bytes_) {
    if (pread(descriptor_, &last, 1, bytes_ - 1) != 1) return Err(path_, "cannot read: {}", std::strerror(errno));
    if (last == '\n') break;
  }
  if (ftruncate(descriptor_, bytes_) != 0) return Err(path_, "cannot shorten: {}", std::strerror(errno));
  lseek(descriptor_, bytes_, SEEK_SET);
  return {};
}

MetricsFile::MetricsFile(MetricsFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), bytes_(other.bytes_) {}

MetricsFile& MetricsFile::operator=(MetricsFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MetricsFile::~MetricsFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

Status MetricsFile::Append(const std::string& line) {
  const std::string text = line + "\n";
  for (std::string_view rest = text; !rest.empty();) {
    const ssize_t written = write(descriptor_, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Err(path_, "cannot write: {}", std::strerror(errno));
    rest.remove_prefix(static_cast<size_t>(written));
  }
  bytes_ += std::ssize(text);
  return {};
}

Status MetricsFile::Sync() {
  if (fsync(descriptor_) != 0 && errno != EINVAL) return Err(path_, "cannot write: {}", std::strerror(errno));
  return {};
}

}  // namespace moe
