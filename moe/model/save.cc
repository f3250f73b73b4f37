#include "moe/model/save.h"

#include "moe/files/safetensors.h"
#include "moe/model/hf_config.h"
#include "moe/model/hf_tensors.h"

namespace moe {

Status SaveModel(const Model& model, const std::string& folder, DType dtype) {
  MOE_CHECK(dtype == DType::kF32 || dtype == DType::kBf16, "no checkpoints of {}", Name(dtype));
  std::vector<TensorInfo> tensors;
  const auto list = [&](const HfMatrix& matrix) -> Status {
    for (const HfPiece& piece : matrix.pieces) {
      tensors.push_back({.name = piece.name, .dtype = matrix.exact ? DType::kF32 : dtype, .shape = matrix.Shape(piece)});
    }
    return {};
  };
  MOE_TRY(ForEachHfMatrix(model.config(), list));
  // What transformers asks for to know the framework.
  SafetensorsWriter::Options options{.metadata = {{"format", "pt"}}, .checksums = true};
  MOE_TRY(auto writer, SafetensorsWriter::Create(folder + "/model.safetensors", std::move(tensors), std::move(options)));
  const auto write = [&](const HfMatrix& matrix) -> Status {
    const Parameter* parameter = model.parameters().Find(matrix.parameter);
    MOE_CHECK(parameter != nullptr && !parameter->value.empty(), "{} has no values to save", matrix.parameter);
    const float* values = parameter->value.data() + matrix.index * matrix.rows * matrix.cols;
    for (const HfPiece& piece : matrix.pieces) {
      for (int64_t r = 0, run = piece.RunLength(); r < piece.rows; r += run) {
        MOE_TRY(writer.AppendFloats(piece.name,
                                    {values + piece.MatrixRow(r) * matrix.cols, static_cast<size_t>(run * matrix.cols)}));
      }
    }
    return {};
  };
  MOE_TRY(ForEachHfMatrix(model.config(), write));
  MOE_TRY(writer.Commit());
  return WriteFileAtomically(folder + "/config.json", HfConfigText(model.config(), dtype));
}

}  // namespace moe
