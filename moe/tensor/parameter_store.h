#pragma once
// The one owner of a model's parameters. Layers hold pointers into it; optimizer, checkpoint and gradient clipping walk it.

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "moe/tensor/tensor.h"

namespace moe {

struct Parameter {
  std::string name;     // "layers.0.moe.experts.gate_up"
  Tensor value;         // float32 master; without memory (but with its shape) when a model that only infers has been packed
  Tensor grad;          // same shape, accumulated (+=); empty when inferring
  bool decay = true;    // weight decay applies (matrices; not norms, not biases)
  int64_t experts = 0;  // > 0: shape[0] counts experts
};

class ParameterStore {
 public:
  // allocate false: parameters get a shape but no values yet (Tensor::Allocate), for models that are packed piece by piece.
  explicit ParameterStore(bool allocate = true) : allocate_(allocate) {}

  // Adds a parameter of zeros. The reference stays valid. Names are unique (checked).
  Parameter& Add(std::string name, std::vector<int64_t> shape, bool decay, int64_t experts = 0);
  Parameter* Find(const std::string& name);  // null if absent
  const Parameter* Find(const std::string& name) const;

  std::deque<Parameter>& all() { return parameters_; }
  const std::deque<Parameter>& all() const { return parameters_; }

  void AllocateGradients();  // zeros
  void ZeroGradients();
  int64_t num_values() const;

 private:
  bool allocate_;
  std::deque<Parameter> parameters_;  // in the order of creation: the order of every walk
};

}  // namespace moe
