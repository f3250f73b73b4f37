// oneDNN's matmul. Weights in the layout it asks for (format_tag::any), reordered once.
#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>

#include "benches/peers/peers.h"

namespace moe {
namespace {

struct State {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::matmul matmul;
  dnnl::memory x, y;
  std::vector<dnnl::memory> weights;
};

}  // namespace

GemmPeer OneDnnPeer(const PeerProduct& product) {
  using dnnl::memory;
  using Tag = memory::format_tag;
  const auto [M, N, K] = product.shape;
  const bool bf16 = product.format == DType::kBf16;
  const auto inputs = bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  omp_set_num_threads(product.threads);  // also decides how it plans
  const auto s = std::make_shared<State>();
  const auto out = std::make_shared<Tensor>(std::vector<int64_t>{M, N});
  const auto reorder = [&](const float* from, const memory::desc& from_desc, const memory::desc& to_desc) {
    memory source(from_desc, s->engine, const_cast<float*>(from)), target(to_desc, s->engine);
    dnnl::reorder(source, target).execute(s->stream, source, target);
    s->stream.wait();
    return target;
  };
  const memory::desc x_desc({M, K}, inputs, Tag::ab), y_desc({M, N}, memory::data_type::f32, Tag::ab);
  const dnnl::matmul::primitive_desc plan({x_desc, memory::desc({K, N}, inputs, Tag::any), y_desc}, s->engine);
  s->matmul = dnnl::matmul(plan);
  s->x = reorder(product.x.data, {{M, K}, memory::data_type::f32, Tag::ab}, x_desc);
  s->y = memory(y_desc, s->engine, out->data());
  for (int64_t i = 0; i < product.num_weights; ++i) {
    const MatView<const float> w = product.weight(i);  // [N,K]: to it, [K,N] by columns
    s->weights.push_back(reorder(w.data, {{K, N}, memory::data_type::f32, Tag::ba}, plan.weights_desc()));
  }
  return {.name = "onednn",
          .run =
              [s, threads = product.threads](int64_t i) {
                omp_set_num_threads(threads);
                s->matmul.execute(
                    s->stream,
                    {{DNNL_ARG_SRC, s->x}, {DNNL_ARG_WEIGHTS, s->weights[static_cast<size_t>(i)]}, {DNNL_ARG_DST, s->y}});
                s->stream.wait();
              },
          .y = out};
}

}  // namespace moe
