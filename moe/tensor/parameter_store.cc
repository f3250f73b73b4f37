#include "moe/tensor/parameter_store.h"

#include <algorithm>

namespace moe {

Parameter& ParameterStore::Add(std::string name, std::vector<int64_t> shape, bool decay, int64_t experts) {
  MOE_CHECK(Find(name) == nullptr, "parameter {} exists", name);
  Tensor value = allocate_ ? Tensor(std::move(shape)) : Tensor::ShapeOnly(std::move(shape));
  return parameters_.emplace_back(Parameter{std::move(name), std::move(value), Tensor(), decay, experts});
}

Parameter* ParameterStore::Find(const std::string& name) {
  for (auto& p : parameters_) {
    if (p.name == name) return &p;
  }
  return nullptr;
}

const Parameter* ParameterStore::Find(const std::string& name) const {
  return const_cast<ParameterStore*>(this)->Find(name);
}

void ParameterStore::AllocateGradients() {
  for (auto& p : parameters_) {
    if (p.grad.empty()) p.grad = Tensor(p.value.shape());
  }
}

void ParameterStore::ZeroGradients() {
  for (auto& p : parameters_) std::ranges::fill(p.grad.span(), 0.0f);
}

int64_t ParameterStore::num_values() const {
  int64_t n = 0;
  for (const auto& p : parameters_) n += p.value.size();
  return n;
}

}  // namespace moe
