// A Mixture-of-Experts layer by itself: 64 tokens forward and backward, and where they went.
#include <cstdio>
#include <vector>

#include "moe/base/rng.h"
#include "moe/mixture/moe_layer.h"
#include "moe/mixture/moe_metrics.h"

int main() {
  using namespace moe;

  // What a step needs: threads, memory, and the kernels of this machine.
  ThreadPool pool(2);
  Arena arena;
  const auto kernels = SelectKernelTable();
  if (!kernels) return std::fprintf(stderr, "%s\n", kernels.error().Message().c_str()), 1;
  ExecContext ctx{pool, arena, **kernels};

  // 8 SwiGLU experts of width 32 over tokens of width 16; each token goes to 2 of them, each expert takes at most
  // ceil(1.0 * 64 * 2 / 8) = 16 tokens.
  const int64_t T = 64, D = 16;
  const MoeConfig config{.router = {.num_experts = 8, .top_k = 2, .capacity = {.factor = 1.0}}, .expert_width = 32};
  if (const Status valid = Validate(config, "example"); !valid) {
    return std::fprintf(stderr, "%s\n", valid.error().Message().c_str()), 1;
  }

  // The store owns the parameters, the layer points into it. Products read packed copies of them.
  ParameterStore store;
  MoeLayer layer{.config = config, .weights = AddMoeWeights(config, D, "moe.", DType::kF32, store)};
  Rng rng(1);
  for (Parameter& p : store.all()) {
    for (float& v : p.value.span()) v = static_cast<float>(rng.Normal() * 0.25);
  }
  store.AllocateGradients();
  Repack(layer.weights, /*with_transposed=*/true, ctx);

  std::vector<float> x(T * D), y(T * D), d_x(T * D);
  for (float& v : x) v = static_cast<float>(rng.Normal());

  // Forward keeps in `saved` what backward reads; both take their memory from the arena.
  MoeSaved saved;
  RouterAux aux;
  int64_t num_dropped = 0;
  const Status status = layer.Forward({x.data(), T, D}, {}, {y.data(), T, D}, &saved, &aux, &num_dropped, ctx);
  if (!status) return std::fprintf(stderr, "%s\n", status.error().Message().c_str()), 1;
  // The gradient of sum(y^2)/2 by y is y itself; the router's losses come on top.
  layer.Backward({x.data(), T, D}, saved, {y.data(), T, D}, /*loss_scale=*/1, {d_x.data(), T, D}, ctx);

  std::printf("expert  tokens  rows kept  gradient norm^2 of down\n");
  for (int64_t e = 0; e < config.router.num_experts; ++e) {
    double norm = 0;
    const MatView<float> d_down = layer.weights.experts[0].down.grad(e);
    for (int64_t row = 0; row < d_down.rows; ++row) {
      for (const float g : d_down.row_span(row)) norm += static_cast<double>(g) * g;
    }
    std::printf("%6d  %6d  %9d  %.4f\n", static_cast<int>(e), static_cast<int>(aux.tokens_per_expert[static_cast<size_t>(e)]),
                static_cast<int>(saved.plan.rows_of(e)), norm);
  }
  std::printf("dropped %d of %d, max violation %.2f, balance loss %.3f, router entropy %.2f nats\n",
              static_cast<int>(num_dropped), static_cast<int>(2 * T), MaxViolation(aux.tokens_per_expert), aux.balance_loss,
              aux.entropy);
  return Assignments(aux.tokens_per_expert) == 2 * T ? 0 : 1;
}
