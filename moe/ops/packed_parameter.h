#pragma once

#include <span>
#include <vector>

#include "moe/ops/gemm.h"
#include "moe/tensor/parameter_store.h"

namespace moe {

// A matrix [N,K] of the ParameterStore, or E of them [E,N,K], with the packs that products read. Packs are made from the
// float32 master after load and after every optimizer step; products never read the master.
class PackedParameter {
 public:
  PackedParameter() = default;
  // shape [N,K] or [E,N,K]. `format` kF32 or kBf16.
  PackedParameter(Parameter* parameter, DType format);

  // Bytes that both packs (inference: the forward one) of all matrices take.
  int64_t StorageBytes(bool with_transposed) const;
  // Makes the packs from the master. Storage is allocated the first time, unless UseStorage gave some.
  void Repack(bool with_transposed, ExecContext& ctx);
  // The packs live in `bytes` (StorageBytes of them, kAlignment; outlives this) and hold whatever is there: several models with
  // random weights can share one arena.
  void UseStorage(std::span<std::byte> bytes, bool with_transposed);
  // Packs matrix i alone from w [N,K], without a master: loading for inference goes matrix by matrix.
  void PackOne(int64_t i, MatView<const float> w, bool with_transposed, ExecContext& ctx);
  // Packs rows [row, row+rows) and columns [col, col+cols) of matrix i anew, in both packs: at most a panel's rows; both ranges
  // begin at multiples of the panel and end at one or with the matrix. Threads may pack different blocks at once. stream: past
  // the caches.
  void PackBlock(int64_t i, int64_t row, int64_t rows, int64_t col, int64_t cols, bool stream, const KernelTable& kernels);
  // Frees the master: from here on the weight can only be multiplied with.
  void DropMaster() { parameter_->value.Free(), parameter_->grad.Free(); }

  Parameter& parameter() const { return *parameter_; }
  DType format() const { return format_; }
  int64_t count() const { return count_; }  // E, or 1
  int64_t N() const { return N_; }
  int64_t K() const { return K_; }
  const PackedWeight& forward(int64_t i = 0) const { return forward_[static_cast<size_t>(i)]; }
  const PackedWeight& transposed(int64_t i = 0) const { return transposed_[static_cast<size_t>(i)]; }
  std::span<const PackedWeight> forward_all() const { return forward_; }
  std::span<const PackedWeight> transposed_all() const { return transposed_; }
  MatView<float> grad(int64_t i = 0) const;  // [N,K]

 private:
  Parameter* parameter_ = nullptr;
  DType format_ = DType::kF32;
  int64_t count_ = 0, N_ = 0, K_ = 0;
  AlignedBytes owned_;
  std::span<std::byte> storage_;
  std::vector<PackedWeight> forward_, transposed_;
};

// y = x W^T. x [T,K], y [T,N] (overwritten, or += with kAccumulate).
void LinearForward(const PackedParameter& weight, ConstAnyMat x, MatView<float> y, Epilogue epilogue, ExecContext& ctx);
// d_x [T,K] (op)= d_y W; d_x empty: not wanted. Adds d_y^T x to the weight's gradient.
void LinearBackward(const PackedParameter& weight, ConstAnyMat x, ConstAnyMat d_y, AnyMat d_x, Epilogue epilogue,
                    ExecContext& ctx);

}  // namespace moe
