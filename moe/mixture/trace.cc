#include "moe/mixture/trace.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "moe/base/cpu_info.h"
#include "moe/base/rng.h"
#include "moe/mixture/moe_layer.h"
#include "moe/mixture/moe_metrics.h"

namespace moe {
namespace {

constexpr int64_t kMostListed = 8;        // numbers in a line
constexpr int64_t kMostExtent = 1 << 20;  // of any dimension: products of three fit in 64 bits

// "3 5 0 2", cut short after kMostListed.
template <class Values>
std::string List(const Values& values, std::string_view format = "{}") {
  std::string out;
  int64_t count = 0;
  for (const auto& v : values) {
    if (count++ == kMostListed) return out + " ...";
    if (count > 1) out += " ";
    out += fmt::format(fmt::runtime(format), v);
  }
  return out;
}

void FillNormal(std::span<float> out, Rng& rng, double deviation) {
  for (float& x : out) x = static_cast<float>(rng.Normal() * deviation);
}

double RootMeanSquare(std::span<const float> x) {
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v) * v;
  return x.empty() ? 0 : std::sqrt(sum / static_cast<double>(x.size()));
}

MoeConfig ConfigOf(const TraceOptions& o) {
  const int64_t tokens = o.batch * o.sequence;
  MoeConfig config;
  config.router.num_experts = o.experts;
  config.router.top_k = o.top_k;
  config.router.normalize = o.top_k > 1;  // a single renormalised gate would always be 1
  config.router.capacity.factor = o.capacity_factor;
  if (o.capacity_factor == 0 && o.capacity > 0) {  // the factor that gives this capacity
    config.router.capacity.factor =
        static_cast<double>(o.capacity) * static_cast<double>(o.experts) / static_cast<double>(tokens * o.top_k);
  }
  config.expert_width = o.width;
  config.executor = Executor::kPadded;
  return config;
}

Status Validate(const TraceOptions& o) {
  const auto extent = [](const char* name, int64_t value, int64_t least) -> Status {
    if (value < least || value > kMostExtent) return Err(name, "got {}, expected {}..{}", value, least, kMostExtent);
    return {};
  };
  MOE_TRY(extent("batch", o.batch, 1));
  MOE_TRY(extent("sequence", o.sequence, 1));
  MOE_TRY(extent("hidden", o.hidden, 1));
  MOE_TRY(extent("experts", o.experts, 1));
  if (o.top_k < 1 || o.top_k > o.experts) {
    return Err("top_k", "got {}, expected 1..{}, the number of experts", o.top_k, o.experts);
  }
  MOE_TRY(extent("capacity", o.capacity, 0));
  if (!(o.capacity_factor >= 0) || o.capacity_factor > static_cast<double>(kMostExtent)) {
    return Err("capacity_factor", "got {}, expected a positive number, at most {}", o.capacity_factor, kMostExtent);
  }
  MOE_TRY(extent("width", o.width, 1));
  if (o.width % 16 != 0) return Err("width", "got {}, expected a multiple of 16", o.width);
  if (o.seed < 0) return Err("seed", "got {}, expected 0 or more", o.seed);

  // Rows of all buckets at worst, counted in double: any product of extents fits.
  const auto tokens = static_cast<double>(o.batch) * static_cast<double>(o.sequence), experts = static_cast<double>(o.experts);
  const double slots = tokens * static_cast<double>(o.top_k);
  double bucket = tokens;  // dropless: all to one expert
  if (o.capacity_factor > 0) {
    bucket = std::ceil(o.capacity_factor * slots / experts);
  } else if (o.capacity > 0) {
    bucket = static_cast<double>(o.capacity);
  }
  const auto D = static_cast<double>(o.hidden), F = static_cast<double>(o.width);
  const double weights = experts * 3 * D * F * 2;  // masters and packs
  const double bytes = 4 * (weights + experts * bucket * (2 * D + 3 * F) + tokens * (2 * D + 2 * experts) + 6 * slots);
  const auto available = static_cast<double>(AvailableMemoryBytes());
  if (bytes > available || slots > INT32_MAX || experts * bucket > INT32_MAX) {
    return Err("batch", "got a layer that needs {:.3g} GB for {:.0f} slots, expected at most {:.3g} GB and {} slots",
               bytes / 1e9, slots, available / 1e9, INT32_MAX);
  }
  return {};
}

void DescribeCapacity(const TraceOptions& o, const RouterConfig& router, Trace& trace) {
  const int64_t tokens = o.batch * o.sequence;
  if (router.capacity.factor == 0) {
    trace.capacity_lines = {fmt::format("dropless: no limit; buckets hold the most loaded expert's {} rows", trace.capacity)};
    return;
  }
  const auto factor = router.capacity.factor, textbook = factor * static_cast<double>(o.top_k);
  trace.capacity_lines = {
      fmt::format("ceil(capacity_factor * tokens * top_k / experts) = ceil({:.6g} * {} * {} / {}) = {}", factor, tokens,
                  o.top_k, o.experts, trace.capacity),
      fmt::format("textbook B*S/E*CF, its CF with top_k in it = {}*{}/{}*{:.6g} = {:.6g}", o.batch, o.sequence, o.experts,
                  textbook, static_cast<double>(tokens) / static_cast<double>(o.experts) * textbook)};
}

// What one token saw, as an example.
std::string ExampleOf(const MoeSaved& saved, int64_t k) {
  const auto chosen = saved.routing.expert.first(static_cast<size_t>(k));
  return fmt::format("token 0: experts {} with gates {}", List(chosen),
                     List(saved.routing.gate.first(chosen.size()), "{:.3f}"));
}

void AddSteps(const TraceOptions& o, const MoeSaved& saved, MatView<const float> y, Trace& trace) {
  const int64_t T = o.batch * o.sequence, C = trace.capacity;
  const auto shape = [&](int64_t last) { return std::vector<int64_t>{o.batch, o.sequence, last}; };
  std::vector<TraceStep>& steps = trace.steps;
  steps.push_back({.name = "input",
                   .operation = "random tokens",
                   .shape = shape(o.hidden),
                   .happened = {fmt::format("{} tokens, one row each: [{},{}]", T, T, o.hidden)}});
  steps.push_back({.name = "router weights",
                   .operation = "softmax(x W), float32",
                   .shape = shape(o.experts),
                   .happened = {fmt::format("token 0: {}", List(saved.router.probs.row_span(0), "{:.3f}")),
                                fmt::format("entropy {:.3f} of at most {:.3f} nats", trace.entropy,
                                            std::log(static_cast<double>(o.experts)))}});
  steps.push_back(
      {.name = fmt::format("top-{} indices", o.top_k),
       .operation = o.top_k > 1 ? "largest, gates sum to 1" : "largest, gate = weight",
       .shape = shape(o.top_k),
       .happened = {ExampleOf(saved, o.top_k), fmt::format("tokens per expert: {}", List(trace.tokens_per_expert))}});

  std::vector<std::string> late;  // dropped slots, as token>expert
  int64_t num_lost = 0;           // tokens without any row
  for (int64_t t = 0; t < T; ++t) {
    int64_t kept = 0;
    for (int32_t s = saved.routing.slot_begin[static_cast<size_t>(t)]; s < saved.routing.slot_begin[static_cast<size_t>(t) + 1];
         ++s) {
      kept += saved.plan.slot_row[static_cast<size_t>(s)] >= 0 ? 1 : 0;
      if (saved.plan.slot_row[static_cast<size_t>(s)] < 0 && static_cast<int64_t>(late.size()) <= kMostListed) {
        late.push_back(fmt::format("{}>{}", t, saved.routing.expert[static_cast<size_t>(s)]));
      }
    }
    num_lost += kept == 0 ? 1 : 0;
  }
  TraceStep bucket{.name = "bucket and pad",
                   .operation = "gather rows by expert",
                   .shape = {C, o.hidden},
                   .per_expert = true,
                   .happened = {fmt::format("rows kept: {}", List(trace.rows_per_expert)),
                                fmt::format("{} of {} rows are padding", trace.padded, o.experts * C)}};
  bucket.happened.push_back(
      trace.dropped == 0 ? std::string("nothing dropped")
                         : fmt::format("{} of {} slots dropped (token>expert): {}", trace.dropped, T * o.top_k, List(late)));
  steps.push_back(std::move(bucket));
  const auto out = std::span(saved.expert_out.as<float>().data, static_cast<size_t>(saved.expert_out.size()));
  steps.push_back({.name = "expert outputs",
                   .operation = "down(silu(gate) * up)",
                   .shape = {C, o.hidden},
                   .per_expert = true,
                   .happened = {fmt::format("through width {}: [{},{}] products, [{},{}] after SwiGLU", o.width, C, 2 * o.width,
                                            C, o.width),
                                fmt::format("{} rows computed, rms {:.3g}", saved.layout.num_rows(), RootMeanSquare(out))}});
  steps.push_back({.name = "combine",
                   .operation = "sum of gate * output",
                   .shape = shape(o.hidden),
                   .happened = {fmt::format("rms {:.3g}; tokens left to the residual alone: {}",
                                            RootMeanSquare({y.data, static_cast<size_t>(y.size())}), num_lost)}});
}

}  // namespace

Result<Trace> TraceLayer(const TraceOptions& options, ExecContext& ctx) {
  MOE_TRY(Validate(options));
  const int64_t T = options.batch * options.sequence, D = options.hidden;
  const MoeConfig config = ConfigOf(options);
  MOE_TRY(Validate(config, "layer"));
  ParameterStore store;
  MoeLayer layer{.config = config, .weights = AddMoeWeights(config, D, "", DType::kF32, store)};
  Rng rng(static_cast<uint64_t>(options.seed));
  for (Parameter& p : store.all()) {
    FillNormal(p.value.span(), rng, 1 / std::sqrt(static_cast<double>(p.value.shape().back())));
  }
  Repack(layer.weights, /*with_transposed=*/false, ctx);

  Arena::Scope scope(ctx.arena);
  const MatView<float> x{ctx.arena.Alloc<float>(T * D).data(), T, D}, y{ctx.arena.Alloc<float>(T * D).data(), T, D};
  FillNormal({x.data, static_cast<size_t>(x.size())}, rng, 1);
  MoeSaved saved;
  RouterAux aux;
  Trace trace{.options = options};
  MOE_TRY(layer.Forward(x, {}, y, &saved, &aux, &trace.dropped, ctx));

  trace.tokens_per_expert.assign(aux.tokens_per_expert.begin(), aux.tokens_per_expert.end());
  for (int64_t e = 0; e < options.experts; ++e) trace.rows_per_expert.push_back(saved.plan.rows_of(e));
  trace.top_k_experts.assign(saved.routing.expert.begin(), saved.routing.expert.end());
  trace.gates.assign(saved.routing.gate.begin(), saved.routing.gate.end());
  trace.capacity = saved.layout.rows_of(0);
  MOE_CHECK(options.capacity_factor > 0 || options.capacity == 0 || trace.capacity == options.capacity,
            "capacity {}, wanted {}", trace.capacity, options.capacity);
  trace.capacity_factor = config.router.capacity.factor;
  trace.padded = saved.layout.num_rows() - saved.plan.num_rows();
  trace.max_violation = MaxViolation(trace.tokens_per_expert);
  trace.entropy = aux.entropy;
  trace.balance_loss = aux.balance_loss;
  DescribeCapacity(options, config.router, trace);
  AddSteps(options, saved, y, trace);
  return trace;
}

}  // namespace moe
