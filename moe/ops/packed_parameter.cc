#include "moe/ops/packed_parameter.h"

#include <algorithm>
#include <type_traits>

#include "moe/ops/elementwise.h"

namespace moe {

PackedParameter::PackedParameter(Parameter* parameter, DType format) : parameter_(parameter), format_(format) {
  const auto& shape = parameter->value.shape();
  MOE_CHECK(shape.size() == 2 || shape.size() == 3, "{} has {} dimensions", parameter->name, shape.size());
  count_ = shape.size() == 3 ? shape[0] : 1;
  N_ = shape[shape.size() - 2];
  K_ = shape.back();
}

int64_t PackedParameter::StorageBytes(bool with_transposed) const {
  int64_t bytes = PackedBytes(format_, N_, K_, PackSide::kForward);
  if (with_transposed) bytes += PackedBytes(format_, N_, K_, PackSide::kTransposed);
  return bytes * count_;
}

void PackedParameter::UseStorage(std::span<std::byte> bytes, bool with_transposed) {
  MOE_CHECK(static_cast<int64_t>(bytes.size()) == StorageBytes(with_transposed), "{} bytes, expected {}", bytes.size(),
            StorageBytes(with_transposed));
  MOE_CHECK(reinterpret_cast<uintptr_t>(bytes.data()) % kAlignment == 0, "{}: storage at {}, expected a multiple of {}",
            parameter_->name, static_cast<const void*>(bytes.data()), kAlignment);
  if (bytes.data() != owned_.get()) owned_.reset();
  storage_ = bytes;
  forward_.clear();
  transposed_.clear();
  std::byte* p = bytes.data();
  const auto place = [&](std::vector<PackedWeight>& packs, int64_t N, int64_t K) {
    for (int64_t i = 0; i < count_; ++i) {
      packs.push_back({.format = format_, .N = N, .K = K, .data = p});
      p += packs.back().bytes();
    }
  };
  place(forward_, N_, K_);
  if (with_transposed) place(transposed_, K_, N_);
}

void PackedParameter::PackOne(int64_t i, MatView<const float> w, bool with_transposed, ExecContext& ctx) {
  MOE_CHECK(w.rows == N_ && w.cols == K_, "{} [{},{}], expected [{},{}]", parameter_->name, w.rows, w.cols, N_, K_);
  const auto size = static_cast<size_t>(StorageBytes(with_transposed));
  if (storage_.size() != size) {
    owned_ = AllocateAligned(size);
    UseStorage({owned_.get(), size}, with_transposed);
  }
  const auto pack = [&](const PackedWeight& target, PackSide side) {
    const auto begin = static_cast<size_t>(target.data - storage_.data());
    Pack(w, format_, side, storage_.subspan(begin, static_cast<size_t>(target.bytes())), ctx);
  };
  pack(forward_[static_cast<size_t>(i)], PackSide::kForward);
  if (with_transposed) pack(transposed_[static_cast<size_t>(i)], PackSide::kTransposed);
}

void PackedParameter::Repack(bool with_transposed, ExecContext& ctx) {
  const Tensor& value = parameter_->value;
  MOE_CHECK(!value.empty(), "{} has no master to pack", parameter_->name);
  for (int64_t i = 0; i < count_; ++i) PackOne(i, {value.data() + i * N_ * K_, N_, K_}, with_transposed, ctx);
}

void PackedParameter::PackBlock(int64_t i, int64_t row, int64_t rows, int64_t col, int64_t cols, bool stream,
                                const KernelTable& kernels) {
  MOE_DCHECK(row % kPanel == 0 && rows <= kPanel && col % kPanel == 0, "rows {}+{} columns {}+{}", row, rows, col, cols);
  const PackedWeight &forward = forward_[static_cast<size_t>(i)], &transposed = transposed_[static_cast<size_t>(i)];
  const auto at = [&](const PackedWeight& pack, int64_t panel, int64_t k) {
    return storage_.data() + (pack.panel(panel) - storage_.data()) + PackedWeight::PanelBytes(format_, k);
  };
  const auto pack = [&](auto* element, auto pack_both, auto pack_one) {
    using Element = std::remove_pointer_t<decltype(element)>;
    const float* w = parameter_->value.data() + (i * N_ + row) * K_;
    const auto to = [](std::byte* p) { return reinterpret_cast<Element*>(p); };
    const int64_t stride = transposed.panel_bytes() / static_cast<int64_t>(sizeof(Element));
    const int64_t whole = rows == kPanel ? cols / kPanel * kPanel : 0, rest = col + whole;
    if (whole > 0)
      pack_both(w + col, K_, whole, stream, to(at(forward, row / kPanel, col)), to(at(transposed, col / kPanel, row)), stride);
    if (whole == cols) return;
    pack_one(w + rest, K_, 1, rows, cols - whole, to(at(forward, row / kPanel, rest)));
    for (int64_t k = rest; k < col + cols; k += kPanel)
      pack_one(w + k, 1, K_, std::min(kPanel, col + cols - k), rows, to(at(transposed, k / kPanel, row)));
  };
  if (format_ == DType::kBf16) return pack(static_cast<uint32_t*>(nullptr), kernels.pack_both_bf16, kernels.pack_bf16);
  pack(static_cast<float*>(nullptr), kernels.pack_both_f32, kernels.pack_f32);
}

MatView<float> PackedParameter::grad(int64_t i) const {
  MOE_CHECK(!parameter_->grad.empty(), "{} has no gradient", parameter_->name);
  return {parameter_->grad.data() + i * N_ * K_, N_, K_};
}

void LinearForward(const PackedParameter& weight, ConstAnyMat x, MatView<float> y, Epilogue epilogue, ExecContext& ctx) {
  Gemm({.a = x, .weight = &weight.forward(), .epilogue = epilogue, .c = y}, ctx);
}

void LinearBackward(const PackedParameter& weight, ConstAnyMat x, ConstAnyMat d_y, AnyMat d_x, Epilogue epilogue,
                    ExecContext& ctx) {
  Arena::Scope scope(ctx.arena);
  const ConstAnyMat d = d_x.empty() ? d_y : Rounded(d_y, weight.format(), ctx);
  if (!d_x.empty()) Gemm({.a = d, .weight = &weight.transposed(), .epilogue = epilogue, .c = d_x}, ctx);
  const WeightGradProblem problem{.d_y = d, .x = x, .d_w = weight.grad(), .format = weight.format()};
  GroupedWeightGrad({&problem, 1}, ctx);
}

}  // namespace moe
