#include "moe/planner/route_report.h"

#include <algorithm>
#include <optional>

#include "moe/base/clock.h"
#include "moe/base/cpu_info.h"
#include "moe/mixture/moe_metrics.h"
#include "moe/planner/route_times.h"
#include "moe/planner/routing_trace.h"

namespace moe {
namespace {

constexpr std::string_view kOwn = "model";

// A layer with experts, and what was seen of it so far.
struct Watched : TracedLayer {
  std::span<const ExpertGroup> groups = {};  // of the layer
  std::vector<RouterConfig> policies = {};   // those of the report that go together with it, in their order
  std::vector<float> first_logits = {};      // of the first step, [rows,E]

  std::span<const float> BiasFor(const RouterConfig& policy) const {
    return TakesBiasOf(router, policy) ? selection_bias : std::span<const float>();
  }
};

class Watcher {
 public:
  Watcher(Model& model, const RouteOptions& options, ExecContext& ctx) : options_(options), ctx_(ctx), tracer_(ctx) {
    for (TracedLayer& layer : LayersToTrace(model)) {
      watched_.push_back({std::move(layer)});
      watched_.back().groups = model.moe_layer(watched_.back().layer).config.groups;
    }
  }

  Status Prepare(std::vector<PolicyRoutes>& policies) {
    const bool asked = !options_.policies.empty();
    for (const std::string& text : asked ? options_.policies : DefaultPolicies(watched_.front().router)) {
      PolicyRoutes result{.policy = text};
      std::vector<RouterConfig> configs;
      for (const Watched& layer : watched_) {
        auto config = PolicyOfLayer(text, layer.router, asked ? "--policy" : text);
        if (!config && asked) return tl::make_unexpected(config.error());
        if (!config) result.why = config.error().what;
        if (config) configs.push_back(*config);
      }
      for (size_t i = 0; result.why.empty() && i < watched_.size(); ++i) {
        watched_[i].policies.push_back(configs[i]);
        result.layers.push_back(
            {.layer = watched_[i].layer,
             .tokens_per_expert = std::vector<int64_t>(static_cast<size_t>(watched_[i].router.num_experts))});
      }
      policies.push_back(std::move(result));
    }
    return {};
  }

  // One step of the model.
  Status See(std::span<const RowInfo> rows, std::span<const MatView<float>> logits, std::vector<PolicyRoutes>& policies) {
    const bool first = ids_.empty();
    const TracedStep step(rows, options_.seed, std::ssize(ids_));
    ids_.insert(ids_.end(), step.ids.begin(), step.ids.end());
    if (first) first_sequences_ = step.sequence_begin;
    for (Watched& layer : watched_) {
      const MatView<float> z = logits[static_cast<size_t>(layer.layer)];
      if (first) layer.first_logits.assign(z.data, z.data + z.rows * z.cols);
      MOE_TRY(tracer_.Add(step, z, layer));
      const ReplayOptions replay = step.Options(layer, options_.training);
      size_t next = 0;
      for (PolicyRoutes& policy : policies) {
        if (!policy.why.empty()) continue;
        const RouterConfig& config = layer.policies[next++];
        MOE_TRY(const Replay done, tracer_.Replayed(config, z, layer.BiasFor(config), replay));
        PolicyLayer& sum = policy.layers[static_cast<size_t>(&layer - watched_.data())];
        for (size_t e = 0; e < sum.tokens_per_expert.size(); ++e) sum.tokens_per_expert[e] += done.tokens_per_expert[e];
        sum.slots += std::ssize(done.expert), sum.dropped += done.num_dropped;
        sum.bucket_rows += done.bucket_rows * z.cols, sum.padded_rows += done.padded_rows;
      }
    }
    return {};
  }

  LayerRoutes Summary(const Watched& layer, const Evaluation& evaluation) const {
    const TokenExperts choices{layer.router.num_experts, ids_, layer.slot_begin, layer.expert};
    return {.layer = layer.layer,
            .router = layer.router,
            .load = evaluation.layers[static_cast<size_t>(layer.layer)],
            .information = MeasureInformation(choices, options_.seed),
            .likes = LikedTokens(choices, options_.least_count, options_.num_likes),
            .groups = {layer.groups.begin(), layer.groups.end()}};
  }

  void Time(Model& model, RouteReport& report) {
    const auto layer = std::ranges::find(watched_, report.timed_layer, &Watched::layer);
    const auto rows = static_cast<int64_t>(first_sequences_.back());
    const RoutedRows seen{.layer = model.moe_layer(layer->layer),
                          .D = model.config().hidden,
                          .logits = {layer->first_logits.data(), rows, layer->router.num_experts},
                          .ids = std::span(ids_).first(static_cast<size_t>(rows)),
                          .sequence_begin = first_sequences_,
                          .selection_bias = layer->selection_bias};
    PolicyTimes times =
        TimePolicies(seen, layer->policies, options_.training, options_.seed, options_.seconds, options_.go_on, ctx_);
    report.timed_rows = times.rows, report.repetitions = times.repetitions;
    size_t next = 0;
    for (PolicyRoutes& policy : report.policies) {
      if (policy.why.empty() && next < times.times.size()) policy.times = std::move(times.times[next++]);
    }
  }

  const std::vector<Watched>& layers() const { return watched_; }

 private:
  const RouteOptions& options_;
  ExecContext& ctx_;
  Tracer tracer_;
  std::vector<Watched> watched_;
  std::vector<int32_t> ids_;
  std::vector<int32_t> first_sequences_;
};

double Share(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

template <class F>
int64_t Sum(const std::vector<PolicyLayer>& layers, F&& of) {
  int64_t sum = 0;
  for (const PolicyLayer& layer : layers) sum += of(layer);
  return sum;
}

}  // namespace

double PolicyRoutes::slots_per_token(int64_t num_tokens) const {
  return Share(Sum(layers, [](const PolicyLayer& l) { return l.slots; }), num_tokens * std::ssize(layers));
}
double PolicyRoutes::drop_rate() const {
  return Share(Sum(layers, [](const PolicyLayer& l) { return l.dropped; }),
               Sum(layers, [](const PolicyLayer& l) { return l.slots; }));
}
double PolicyRoutes::padded_share() const {
  return Share(Sum(layers, [](const PolicyLayer& l) { return l.padded_rows; }),
               Sum(layers, [](const PolicyLayer& l) { return l.bucket_rows; }));
}
double PolicyRoutes::mean_violation() const {
  double sum = 0;
  for (const PolicyLayer& layer : layers) sum += MaxViolation(layer.tokens_per_expert);
  return layers.empty() ? 0 : sum / static_cast<double>(layers.size());
}
double PolicyRoutes::largest_violation() const {
  double most = 0;
  for (const PolicyLayer& layer : layers) most = std::max(most, MaxViolation(layer.tokens_per_expert));
  return most;
}

const LayerRoutes* RouteReport::Find(int64_t layer) const {
  const auto found = std::ranges::find(layers, layer, &LayerRoutes::layer);
  return found == layers.end() ? nullptr : &*found;
}

int64_t RouteReport::most_telling_layer() const {
  return std::ranges::max_element(layers, {}, [](const LayerRoutes& l) { return l.information.excess_bits(); })->layer;
}

std::vector<std::string> DefaultPolicies(const RouterConfig& own) {
  // What other selections do not go together with.
  const std::string plain = std::string(own.selects_by_bias() ? ",balance_bias=none" : "") +
                            (own.groups > 1 ? ",groups=1,top_groups=1" : "") +
                            (own.score == RouterScore::kTopKSoftmax ? ",score=softmax" : "") +
                            (own.noise != RouterNoise::kNone ? ",noise=none,noise_scale=0" : "");
  const std::string whole =
      std::string(own.normalize ? ",normalize=false" : "") + (own.normalize_after_drop ? ",normalize_after_drop=false" : "") +
      (own.capacity.target_drop > 0 ? ",target_drop=0" : "") + (own.capacity.factor > 0 ? ",capacity_factor=0" : "") +
      (own.capacity.eval_factor > 0 ? ",eval_capacity_factor=0" : "");
  std::vector<std::string> policies = {std::string(kOwn)};
  const std::string fixed = own.capacity.target_drop > 0 ? ",target_drop=0" : "";
  if (own.capacity.factor > 0) policies.push_back("capacity_factor=0" + fixed);
  for (const char* factor : {"1", "1.25", "2"}) policies.push_back(fmt::format("capacity_factor={}{}", factor, fixed));
  if (own.selection != RouterSelection::kSinkhorn) policies.push_back("selection=sinkhorn" + plain);
  if (own.selection != RouterSelection::kExpertChoice) policies.push_back("selection=expert_choice" + plain + whole);
  for (const char* trainer : {"as-switch", "as-gshard", "as-megablocks", "as-deepspeed", "as-megatron-capacity"}) {
    policies.emplace_back(trainer);
  }
  return policies;
}

Result<RouterConfig> PolicyOfLayer(const std::string& text, const RouterConfig& own, const std::string& where) {
  if (text == kOwn) return own;
  const bool named = text.starts_with(std::string(kOwn) + ",");
  return ParsePolicy(named ? std::string_view(text).substr(kOwn.size() + 1) : text, own.num_experts, where, own);
}

Result<RouteReport> ReportRoutes(Model& model, std::span<const Document> documents, const RouteOptions& options,
                                 ExecContext& ctx) {
  if (!model.config().has_experts()) return Err("model", "has no experts: every layer is dense");
  const double start = NowSeconds();
  RouteReport report{.context = options.evaluation.context == 0 ? model.config().context : options.evaluation.context,
                     .num_layers = std::ssize(model.config().layers),
                     .training = options.training,
                     .least_count = options.least_count,
                     .cpu = GetCpuInfo().name,
                     .isa = ctx.kernels.name,
                     .threads = ctx.pool.num_threads(),
                     .format = model.format()};
  Watcher watcher(model, options, ctx);
  MOE_TRY(watcher.Prepare(report.policies));
  EvaluateOptions evaluation = options.evaluation;
  evaluation.on_router_logits = [&](std::span<const RowInfo> rows, std::span<const MatView<float>> logits) {
    report.step_rows = std::max<int64_t>(report.step_rows, std::ssize(rows));
    return watcher.See(rows, logits, report.policies);
  };
  MOE_TRY(report.evaluation, Evaluate(model, documents, evaluation, ctx));
  for (const Watched& layer : watcher.layers()) report.layers.push_back(watcher.Summary(layer, report.evaluation));
  if (options.seconds > 0) {
    report.timed_layer = options.timed_layer >= 0 ? options.timed_layer
                                                  : std::ranges::max_element(report.layers, {}, [](const LayerRoutes& layer) {
                                                      return layer.load.max_violation;
                                                    })->layer;
    watcher.Time(model, report);
  }
  report.seconds = NowSeconds() - start;
  return report;
}

}  // namespace moe
