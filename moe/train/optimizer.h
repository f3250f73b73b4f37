#pragma once

#include <string>
#include <vector>

#include "moe/ops/exec_context.h"
#include "moe/ops/optimizer_step.h"
#include "moe/tensor/parameter_store.h"

namespace moe {

// AdamW with decoupled decay (Loshchilov & Hutter 2019) after clipping by the global norm (Pascanu et al. 2013). An expert
// that no token chose has gradient 0: its moments shrink and its weights decay and move on like any other's, unless it is
// skipped (OptimizedParameter).
struct Optimizer {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double weight_decay = 0.1;  // of parameters with `decay`, times the learning rate
  double clip = 1;            // largest global norm; 0: no clipping
  int64_t steps_done = 0;
  std::vector<Tensor> m, v;  // moments, as the store's parameters

  // Moments 0.
  void Reset(const ParameterStore& store);
};

// Norm of all gradients together, in double, in the store's order: the same for any number of threads.
double GlobalGradNorm(const ParameterStore& store, ExecContext& ctx);
// The first parameter that holds a NaN or an infinity; empty: none does. Gradients are looked at in the order in which backward
// makes them, from the last layer to the first.
std::string FirstNonFiniteValue(const ParameterStore& store);
std::string FirstNonFiniteGrad(const ParameterStore& store);

// A parameter, and what goes with it in a step.
struct OptimizedParameter {
  Parameter* parameter = nullptr;
  PackedParameter* packed = nullptr;  // its packs, which follow in the same pass; null: it has none
  // [E] assignments in all micro-batches of the step, before dropping. An expert with 0 is skipped: neither decayed nor moved
  // by its old moments, which do not shrink either; the bias corrections go on counting all steps. Empty: none is skipped.
  std::span<const int64_t> tokens_per_expert;
};

// One step: masters, moments and packs change, gradients become 0. parameters: all of the store, in its order. grad_norm: of
// GlobalGradNorm, finite.
void ApplyAdamw(Optimizer& optimizer, std::span<const OptimizedParameter> parameters, double lr, double grad_norm,
                ExecContext& ctx);

}  // namespace moe
