#include "moe/model/upcycle.h"

#include <cmath>
#include <filesystem>
#include <map>

#include "moe/base/rng.h"
#include "moe/files/safetensors.h"
#include "moe/model/hf_config.h"
#include "moe/model/hf_tensors.h"
#include "moe/model/load.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

constexpr double kRouterDeviation = 0.02;  // as of a fresh model
constexpr int kInterrupted = 130;          // as shells say it
constexpr const char* kTokenizerFiles[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                           "chat_template.jinja"};

Result<std::map<std::string, HfMatrix>> MatricesOf(const ModelConfig& config) {
  std::map<std::string, HfMatrix> matrices;
  const auto keep = [&](const HfMatrix& matrix) -> Status {
    matrices[matrix.parameter] = matrix;
    return {};
  };
  MOE_TRY(ForEachHfMatrix(config, keep));
  return matrices;
}

// What the tensors of the upcycled model hold, one after the other.
class Source {
 public:
  Source(const ModelFiles& files, std::map<std::string, HfMatrix> dense, const UpcycleOptions& options)
      : files_(files), dense_(std::move(dense)), options_(options) {}

  // Of tensor `piece` of a matrix of the upcycled model.
  Result<std::span<const float>> Values(const HfMatrix& matrix, size_t piece) {
    const std::string& name = matrix.parameter;
    if (name.ends_with(".moe.router")) return Router(name, matrix.rows, matrix.cols);
    const size_t of_expert = name.find(".moe.experts.");
    if (of_expert == std::string::npos) return Dense(dense_.at(name), piece);
    const std::string last = name.substr(name.rfind('.') + 1);
    MOE_TRY(const auto whole, Dense(dense_.at(name.substr(0, of_expert) + ".dense." + last), piece));
    return Slice(matrix, piece, whole, /*columns=*/last == "down");
  }

 private:
  // Kept until another layer's are asked for.
  Result<std::span<const float>> Dense(const HfMatrix& matrix, size_t piece) {
    const std::string& name = matrix.pieces[piece].name;
    const std::string layer = matrix.parameter.substr(0, matrix.parameter.find('.', matrix.parameter.find('.') + 1));
    if (layer != layer_) kept_.clear();
    layer_ = layer;
    std::vector<float>& values = kept_[name];
    if (values.empty()) {
      values.resize(static_cast<size_t>(matrix.pieces[piece].rows * matrix.cols));
      MOE_TRY(ReadFloats(*files_.Find(name), matrix.Shape(matrix.pieces[piece]), values));
    }
    return std::span<const float>(values);
  }

  std::span<const float> Router(const std::string& name, int64_t experts, int64_t D) {
    Rng rng(static_cast<uint64_t>(options_.seed), Stream(name));
    values_.resize(static_cast<size_t>(experts * D));
    const int64_t copy = options_.split * D;  // values of the rows that are alike
    for (int64_t i = 0; i < experts * D; ++i) {
      const bool first = i % copy < D;
      values_[static_cast<size_t>(i)] =
          first ? static_cast<float>(rng.Normal() * kRouterDeviation) : values_[static_cast<size_t>(i - D)];
    }
    return values_;
  }

  // Slice index % N of a whole tensor: rows of gates and ups, columns of down.
  std::span<const float> Slice(const HfMatrix& matrix, size_t piece, std::span<const float> whole, bool columns) {
    const int64_t N = options_.split, slice = matrix.index % N, rows = matrix.pieces[piece].rows, cols = matrix.cols;
    values_.resize(static_cast<size_t>(rows * cols));
    double squares = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t from = columns ? (r * N + slice) * cols : (slice * rows + r) * cols;
      for (int64_t c = 0; c < cols; ++c) {
        const float v = values_[static_cast<size_t>(r * cols + c)] = whole[static_cast<size_t>(from + c)];
        squares += static_cast<double>(v) * v;
      }
    }
    if (options_.noise == 0) return values_;
    const double deviation = options_.noise * std::sqrt(squares / static_cast<double>(values_.size()));
    Rng rng(static_cast<uint64_t>(options_.seed), Stream(fmt::format("{} {} {}", matrix.parameter, matrix.index, piece)));
    for (float& v : values_) v += static_cast<float>(rng.Normal() * deviation);
    return values_;
  }

  static uint64_t Stream(const std::string& name) {
    uint64_t bits = 0;
    for (const char c : name) bits = MixBits(bits ^ static_cast<uint8_t>(c));
    return bits;
  }

  const ModelFiles& files_;
  std::map<std::string, HfMatrix> dense_;
  const UpcycleOptions& options_;
  std::string layer_;
  std::map<std::string, std::vector<float>> kept_;
  std::vector<float> values_;
};

DType DTypeOf(const ModelFiles& files) {
  for (const Safetensors& shard : files.shards()) {
    for (const StoredTensor& tensor : shard.tensors()) {
      if (tensor.dtype != DType::kBf16) return DType::kF32;
    }
  }
  return DType::kBf16;
}

Status CheckEmpty(const std::string& out) {
  std::error_code error;
  if (!fs::exists(fs::symlink_status(out, error))) return {};
  if (!fs::is_directory(out, error)) return Err(out, "got a file, expected a new or empty folder");
  if (!fs::is_empty(out, error) || error) return Err(out, "already holds something, expected a new or empty folder");
  return {};
}

Status WriteTensors(const ModelConfig& dense, const ModelConfig& config, const ModelFiles& files, DType dtype,
                    const std::string& path, const UpcycleOptions& options) {
  std::vector<TensorInfo> tensors;
  int64_t total = 0, done = 0;
  const auto list = [&](const HfMatrix& matrix) -> Status {
    for (const HfPiece& piece : matrix.pieces) {
      tensors.push_back({.name = piece.name, .dtype = matrix.exact ? DType::kF32 : dtype, .shape = matrix.Shape(piece)});
      total += tensors.back().bytes();
    }
    return {};
  };
  MOE_TRY(ForEachHfMatrix(config, list));
  const int64_t element = SizeOf(dtype);
  MOE_TRY(auto writer,
          SafetensorsWriter::Create(path, std::move(tensors), {.metadata = {{"format", "pt"}}, .checksums = true}));
  MOE_TRY(auto matrices, MatricesOf(dense));
  Source source(files, std::move(matrices), options);
  const auto write = [&](const HfMatrix& matrix) -> Status {
    for (size_t i = 0; i < matrix.pieces.size(); ++i) {
      if (options.on_progress && !options.on_progress(done, total)) {
        return tl::make_unexpected(Error{path, "stopped; nothing was written", kInterrupted});
      }
      MOE_TRY(const auto values, source.Values(matrix, i));
      MOE_TRY(writer.AppendFloats(matrix.pieces[i].name, values));
      done += static_cast<int64_t>(values.size()) * element;
    }
    return {};
  };
  MOE_TRY(ForEachHfMatrix(config, write));
  return writer.Commit();
}

Status CopyTokenizer(const std::string& folder, const std::string& out) {
  for (const char* name : kTokenizerFiles) {
    const fs::path from = fs::path(folder) / name;
    std::error_code error;
    if (!fs::exists(from, error)) continue;
    MOE_TRY(const std::string text, ReadFile(from.string()));
    MOE_TRY(WriteFileAtomically((fs::path(out) / name).string(), text));
  }
  return {};
}

Result<std::vector<float>> LogitsOf(const std::string& folder, int64_t tokens, ExecContext& ctx) {
  MOE_TRY(const auto model, LoadModel(folder, {.format = DType::kF32}, ctx));
  const ModelConfig& config = model->config();
  Rng rng(1, 2);
  std::vector<RowInfo> rows;
  std::vector<int32_t> logit_rows;
  for (int32_t i = 0; i < std::min(tokens, config.context); ++i) {
    rows.push_back({.position = i, .token_id = static_cast<int32_t>(rng.Below(config.vocab_size))});
    logit_rows.push_back(i);
  }
  ctx.arena.Reset();
  MOE_TRY(const MatView<float> logits, model->Forward({.rows = rows, .logit_rows = logit_rows}, nullptr, ctx));
  std::vector<float> out;
  for (int64_t r = 0; r < logits.rows; ++r) out.insert(out.end(), logits.row(r), logits.row(r) + logits.cols);
  return out;
}

}  // namespace

Result<ModelConfig> UpcycledConfig(const ModelConfig& dense, const UpcycleOptions& options, const std::string& where) {
  const int64_t E = options.experts, k = options.top_k, N = options.split;
  constexpr int64_t kMost = 1 << 16;
  if (dense.has_experts()) return Err(where, "got a model with experts, expected a dense one");
  if (N < 1 || N > kMost) return UsageErr("--split", "got {}, expected 1 or more slices", N);
  if (E < 2 || E > kMost) return UsageErr("--experts", "got {}, expected 2 to {}", E, kMost);
  if (k < 1 || k > E) return UsageErr("--top-k", "got {}, expected 1 to --experts {}", k, E);
  if (E % N != 0) {
    return UsageErr("--experts", "got {}, expected a multiple of --split {}: whole copies of {} slices each", E, N, N);
  }
  if (k % N != 0) {
    return UsageErr("--top-k",
                    "got {}, expected a multiple of --split {}: a token must reach all slices of a copy, or a part of "
                    "what the FFN says is missing",
                    k, N);
  }
  if (k == 1) {
    return UsageErr("--top-k",
                    "got 1, expected 2 or more: the gate of one chosen expert is always 1, and the router never "
                    "learns, or it is not, and the output is not the dense model's");
  }
  if (!(options.noise >= 0) || !std::isfinite(options.noise)) {
    return UsageErr("--noise", "got {}, expected a number of at least 0", options.noise);
  }
  ModelConfig config = dense;
  for (size_t l = 0; l < config.layers.size(); ++l) {
    const int64_t F = dense.layers[l].ffn_width;
    if (F % (16 * N) != 0) {
      return UsageErr("--split", "got {}, expected slices of a multiple of 16: layer {} has an FFN of width {}", N, l, F);
    }
    LayerSpec layer{.ffn = FfnKind::kMoe};
    layer.moe.router.num_experts = E, layer.moe.router.top_k = k;
    layer.moe.router.scale = static_cast<double>(N);
    layer.moe.expert_width = F / N;
    config.layers[l] = layer;
  }
  MOE_TRY(Validate(config, where));
  return config;
}

Status Upcycle(const std::string& folder, const std::string& out, const UpcycleOptions& options) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) return Err(folder, "is no model folder: there is no such folder");
  MOE_TRY(const ModelConfig dense, LoadModelConfig(folder));
  MOE_TRY(const ModelConfig config, UpcycledConfig(dense, options, folder));
  MOE_TRY(CheckEmpty(out));
  MOE_TRY(const ModelFiles files, OpenModelFiles(folder, dense));
  const DType dtype = DTypeOf(files);
  std::error_code error;
  const bool made = fs::create_directories(out, error);
  if (error) return Err(out, "cannot create the folder: {}", error.message());
  Status status = WriteTensors(dense, config, files, dtype, (fs::path(out) / "model.safetensors").string(), options);
  if (status) status = CopyTokenizer(folder, out);
  if (status) status = WriteFileAtomically((fs::path(out) / "config.json").string(), HfConfigText(config, dtype));
  if (!status && made) fs::remove(out, ignored);  // only if nothing is in it
  return status;
}

Result<LogitDifference> CompareLogits(const std::string& folder, const std::string& other, int64_t tokens, ExecContext& ctx) {
  MOE_TRY(const std::vector<float> a, LogitsOf(folder, tokens, ctx));
  MOE_TRY(const std::vector<float> b, LogitsOf(other, tokens, ctx));
  if (a.size() != b.size()) return Err(other, "got {} logits, expected {} as of {}", b.size(), a.size(), folder);
  LogitDifference out;
  for (size_t i = 0; i < a.size(); ++i) {
    out.largest = std::max(out.largest, std::abs(static_cast<double>(a[i]) - b[i]));
    out.largest_logit = std::max(out.largest_logit, std::abs(static_cast<double>(a[i])));
  }
  return out;
}

}  // namespace moe
