// Reading a profile: nothing in it is trusted.

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "moe/base/edit_distance.h"
#include "moe/base/printable.h"
#include "moe/costs/machine_json.h"

namespace moe {
namespace {

using Json = nlohmann::json;

constexpr DType kFormats[] = {DType::kF32, DType::kBf16};

// What a machine can have, with room: a product of any two is finite, and so are the times made of them.
struct Range {
  double least, most;
  bool zero = false;  // allowed besides: unknown, or nothing
};
constexpr Range kRate{1e3, 1e21}, kRateOrUnknown{1e3, 1e21, true}, kTime{1e-30, 1e9}, kTimeOrNone{1e-30, 1e9, true};
constexpr Range kRows{1, 1e9}, kSetBytes{1, 1e18}, kEfficiency{0.01, 100}, kOverlap{1, 64}, kThreads{1, 65536},
    kRevisions{1, 1e6, true};
constexpr Range kCapacity{1, 0x1p60, true};
constexpr Range kAny{1e-300, 1e300};  // not used, or tested elsewhere

constexpr std::string_view kKeys[] = {"name",
                                      "cpu",
                                      "isa",
                                      "version",
                                      "revision",
                                      "date",
                                      "source",
                                      "threads",
                                      "l2_bytes",
                                      "l3_bytes",
                                      "memory_bytes",
                                      "weights_by_working_set",
                                      "weights_bytes_per_s",
                                      "read_bytes_per_s",
                                      "rmw_bytes_per_s",
                                      "adamw_bytes_per_s",
                                      "adamw_wide_bytes_per_s",
                                      "peak_flop_per_s",
                                      "pace_flop_per_s",
                                      "handover_s",
                                      "barrier_s",
                                      "step_s",
                                      "gamma",
                                      "streams",
                                      "attention",
                                      "row_ops",
                                      "routing",
                                      "routing_backward",
                                      "switches"};

std::string Shown(const Json& value) {
  return Printable(value.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60));
}

// An object of the file, and the way to it: "streams[0]." before its keys.
struct Place {
  const Json& object;
  std::string path;
};

// Reads on after an error; the first one counts.
class Reader {
 public:
  explicit Reader(const std::string& where) : where_(where) {}

  void Refuse(const std::string& key, std::string_view got, std::string_view expected) {
    if (!error_) error_ = Error{where_, fmt::format("got {} for {}, expected {}", got, key, expected)};
  }
  void RefuseWhole(std::string what) {
    if (!error_) error_ = Error{where_, std::move(what)};
  }

  // Missing: `otherwise`, or an error where there is none.
  double Number(const Place& in, std::string_view key, Range range, std::optional<double> otherwise = {}) {
    const std::string path = in.path + std::string(key);
    const auto it = in.object.find(key);
    if (it == in.object.end()) {
      if (!otherwise) Refuse(path, "nothing", "a number more than 0");
      return otherwise.value_or(1);
    }
    if (!it->is_number()) return Refuse(path, Shown(*it), "a number"), 1;
    const double value = it->get<double>();
    if (range.zero && value == 0) return 0;
    if (!std::isfinite(value)) return Refuse(path, Shown(*it), "a number"), 1;
    if (range.zero && value < 0) return Refuse(path, Shown(*it), "0 or more"), 1;
    if (value <= 0) return Refuse(path, Shown(*it), "more than 0"), 1;
    if (value < range.least) return Refuse(path, Shown(*it), fmt::format("at least {:g}", range.least)), 1;
    if (value > range.most) return Refuse(path, Shown(*it), fmt::format("at most {:g}", range.most)), 1;
    return value;
  }

  int64_t Whole(const Place& in, std::string_view key, Range range, int64_t otherwise) {
    const double value = Number(in, key, range, static_cast<double>(otherwise));
    if (value != std::floor(value)) Refuse(in.path + std::string(key), fmt::format("{:g}", value), "a whole number");
    return static_cast<int64_t>(value);
  }

  // One line: it is shown to people. Missing: empty.
  std::string Text(const Place& in, std::string_view key) {
    constexpr size_t kMost = 1000;
    const auto it = in.object.find(key);
    if (it == in.object.end()) return {};
    const std::string path = in.path + std::string(key);
    if (!it->is_string()) return Refuse(path, Shown(*it), "a string"), "";
    const auto& text = it->get_ref<const std::string&>();
    if (text.size() > kMost) Refuse(path, fmt::format("{} bytes", text.size()), fmt::format("at most {}", kMost));
    const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
    if (std::any_of(text.begin(), text.end(), control)) Refuse(path, Shown(*it), "one line without control characters");
    return text;
  }

  DType Format(const Place& in) {
    const std::string name = Text(in, "dtype");
    for (const DType format : kFormats) {
      if (Name(format) == name) return format;
    }
    Refuse(in.path + "dtype", name.empty() ? "nothing" : "'" + Printable(name) + "'", "f32 or bf16");
    return DType::kF32;
  }

  // Missing: empty.
  std::optional<Place> Object(const Place& in, std::string_view key) {
    const auto it = in.object.find(key);
    if (it == in.object.end()) return {};
    if (!it->is_object()) {
      Refuse(in.path + std::string(key), Shown(*it), "an object");
      return {};
    }
    return Place{*it, in.path + std::string(key) + "."};
  }
  std::vector<Place> List(const Place& in, std::string_view key) {
    std::vector<Place> places;
    const auto it = in.object.find(key);
    if (it == in.object.end()) return places;
    const std::string path = in.path + std::string(key);
    if (!it->is_array() || it->empty()) return Refuse(path, Shown(*it), "a list of objects"), places;
    for (size_t i = 0; i < it->size(); ++i) {
      if (!(*it)[i].is_object()) return Refuse(fmt::format("{}[{}]", path, i), Shown((*it)[i]), "an object"), places;
      places.push_back({(*it)[i], fmt::format("{}[{}].", path, i)});
    }
    return places;
  }

  // x after the curve's last one.
  void Add(Curve& curve, CurvePoint point, const Place& in, std::string_view key) {
    if (!curve.empty() && point.x <= curve.points.back().x) {
      return Refuse(in.path + std::string(key), fmt::format("{:g}", point.x),
                    fmt::format("more than {:g}, that of the one before", curve.points.back().x));
    }
    curve.points.push_back(point);
  }
  Curve Points(const Place& in, std::string_view list, std::string_view x, Range x_range, std::string_view y, Range y_range) {
    Curve curve;
    for (const Place& p : List(in, list)) Add(curve, {Number(p, x, x_range), Number(p, y, y_range)}, p, x);
    return curve;
  }

  const std::optional<Error>& error() const { return error_; }

 private:
  const std::string& where_;
  std::optional<Error> error_;
};

// A key that is not ours, but nearly one that is missing.
void ReadKeys(const Json& json, Reader& reader) {
  constexpr size_t kNear = 2, kLongest = 40;
  for (const auto& item : json.items()) {
    const std::string& key = item.key();
    if (key.size() > kLongest || std::ranges::find(kKeys, key) != std::end(kKeys)) continue;
    for (const std::string_view known : kKeys) {
      if (known.size() <= 2 * kNear || json.contains(known) || EditDistance(key, known) > kNear) continue;
      reader.RefuseWhole(fmt::format("got the key '{}', expected '{}'?", Printable(key), known));
    }
  }
}

ProductCost& ProductOf(DType format, ProductKind kind, std::vector<ProductCost>& products) {
  const auto it = std::ranges::find_if(products, [&](const ProductCost& c) { return c.format == format && c.kind == kind; });
  if (it != products.end()) return *it;
  return products.emplace_back(ProductCost{.format = format, .kind = kind});
}

// The kinds that an entry of "gamma" speaks of: one, or all of a pass, or all.
std::vector<ProductKind> KindsOf(const Place& entry, Reader& reader) {
  const std::string product = reader.Text(entry, "product"), pass = reader.Text(entry, "pass");
  if (!pass.empty() && pass != "forward" && pass != "backward") {
    reader.Refuse(entry.path + "pass", "'" + Printable(pass) + "'", "forward or backward");
  }
  std::vector<ProductKind> kinds;
  for (int i = 0; i < kNumProductKinds; ++i) {
    const auto kind = static_cast<ProductKind>(i);
    const bool of_pass = pass.empty() || IsBackward(kind) == (pass == "backward");
    if (of_pass && (product.empty() || product == Name(kind))) kinds.push_back(kind);
  }
  if (kinds.empty()) {
    reader.Refuse(entry.path + "product", "'" + Printable(product) + "'",
                  pass.empty() ? "linear, gate_up, down or weight_grad" : "one of the pass " + Printable(pass));
  }
  return kinds;
}

std::vector<ProductCost> ReadGamma(const Place& root, Reader& reader) {
  std::vector<ProductCost> products;
  for (const Place& entry : reader.List(root, "gamma")) {
    const DType format = reader.Format(entry);
    const double rows = reader.Number(entry, "rows", kRows);
    const bool has_step = entry.object.contains("step_s"), has_panel = entry.object.contains("panel_s");
    const bool by_rate = !has_step && !has_panel;
    const double rate = reader.Number(entry, "flop_per_s", by_rate ? kRate : kAny, by_rate ? std::nullopt : std::optional(1.0));
    const double step = by_rate ? StepSeconds(rows, rate) : reader.Number(entry, "step_s", kTime, 1);
    const double panel = reader.Number(entry, "panel_s", kTime, 1);
    for (const ProductKind kind : KindsOf(entry, reader)) {
      ProductCost& cost = ProductOf(format, kind, products);
      if (has_step || by_rate) reader.Add(cost.step_s, {rows, step}, entry, "rows");
      if (has_panel) reader.Add(cost.panel_s, {rows, panel}, entry, "rows");
    }
  }
  for (ProductCost& cost : products) {
    if (cost.step_s.empty()) {
      reader.RefuseWhole(fmt::format("got panel_s alone in gamma of {} {}, expected step_s or flop_per_s besides",
                                     Name(cost.format), Name(cost.kind)));
    }
    // More rows never take less time; noise of someone's own measurement does not change that.
    cost.step_s = NeverFalling(std::move(cost.step_s)), cost.panel_s = NeverFalling(std::move(cost.panel_s));
  }
  return products;
}

bool SameThing(const StreamCost& a, const StreamCost& b) {
  return a.format == b.format && a.gradients == b.gradients;
}
bool SameThing(const AttentionCost& a, const AttentionCost& b) {
  return a.format == b.format;
}

// One entry per thing at most.
template <class Costs>
void AddOnce(Costs& costs, typename Costs::value_type cost, const Place& entry, Reader& reader) {
  const auto same = [&](const auto& c) { return SameThing(c, cost); };
  if (std::ranges::any_of(costs, same)) {
    return reader.Refuse(entry.path + "dtype", fmt::format("'{}' again", Name(cost.format)), "each once");
  }
  costs.push_back(std::move(cost));
}

// "of": weights, unless it says gradients.
bool OfGradients(const Place& entry, Reader& reader) {
  const std::string of = entry.object.contains("of") ? reader.Text(entry, "of") : "weights";
  if (of != "weights" && of != "gradients") {
    reader.Refuse(entry.path + "of", of.empty() ? "nothing" : "'" + Printable(of) + "'", "weights or gradients");
  }
  return of == "gradients";
}

std::vector<StreamCost> ReadStreams(const Place& root, Reader& reader) {
  std::vector<StreamCost> streams;
  const StreamCost usual;
  for (const Place& entry : reader.List(root, "streams")) {
    const StreamCost cost{.format = reader.Format(entry),
                          .gradients = OfGradients(entry, reader),
                          .efficiency = reader.Number(entry, "efficiency", kEfficiency, usual.efficiency),
                          .overlap = reader.Number(entry, "overlap", kOverlap, usual.overlap),
                          .matrix_s = reader.Number(entry, "matrix_s", kTimeOrNone, usual.matrix_s),
                          .list_s = reader.Number(entry, "list_s", kTimeOrNone, usual.list_s)};
    AddOnce(streams, cost, entry, reader);
  }
  return streams;
}

std::vector<AttentionCost> ReadAttention(const Place& root, Reader& reader) {
  std::vector<AttentionCost> attention;
  const AttentionCost usual;
  for (const Place& entry : reader.List(root, "attention")) {
    AttentionCost cost{.format = reader.Format(entry),
                       .pair_s = reader.Points(entry, "pair_s", "rows", kRows, "s", kTime),
                       .backward_pair_s = reader.Points(entry, "backward_pair_s", "rows", kRows, "s", kTime),
                       .row_s = reader.Number(entry, "row_s", kTimeOrNone, usual.row_s),
                       .efficiency = reader.Number(entry, "efficiency", kEfficiency, usual.efficiency),
                       .overlap = reader.Number(entry, "overlap", kOverlap, usual.overlap)};
    if (cost.pair_s.empty()) reader.Refuse(entry.path + "pair_s", "nothing", "a list of objects");
    if (cost.backward_pair_s.empty()) {  // as Complete has it: five products for two
      cost.backward_pair_s = cost.pair_s;
      for (CurvePoint& p : cost.backward_pair_s.points) p.y = std::min(2.5 * p.y, kTime.most);
    }
    AddOnce(attention, std::move(cost), entry, reader);
  }
  return attention;
}

RoutingCost ReadRouting(const Place& root, std::string_view key, Reader& reader) {
  const auto in = reader.Object(root, key);
  if (!in) return {};
  return {.call_s = reader.Number(*in, "call_s", kTimeOrNone, 0),
          .token_s = reader.Number(*in, "token_s", kTimeOrNone, 0),
          .expert_s = reader.Number(*in, "expert_s", kTimeOrNone, 0),
          .slot_s = reader.Number(*in, "slot_s", kTimeOrNone, 0)};
}

SwitchGains ReadSwitches(const Place& root, Reader& reader) {
  const auto in = reader.Object(root, "switches");
  if (!in) return {};
  return {.interleave = reader.Points(*in, "interleave", "panels", kRows, "speedup", kEfficiency),
          .stream = reader.Points(*in, "stream", "bytes", kSetBytes, "speedup", kEfficiency)};
}

void ReadFacts(const Place& root, MachineProfile& m, Reader& reader) {
  m.name = reader.Text(root, "name"), m.cpu = reader.Text(root, "cpu");
  if (m.name.empty() && m.cpu.empty()) reader.Refuse("cpu", "nothing", "the processor's name, or a name");
  if (m.name.empty()) m.name = m.cpu;
  if (m.cpu.empty()) m.cpu = m.name;
  m.isa = reader.Text(root, "isa"), m.version = reader.Text(root, "version"), m.date = reader.Text(root, "date");
  m.source = reader.Text(root, "source");
  m.revision = static_cast<int>(reader.Whole(root, "revision", kRevisions, 0));
  m.threads = static_cast<int>(reader.Whole(root, "threads", kThreads, 1));
  m.l2_bytes = reader.Whole(root, "l2_bytes", kCapacity, 0), m.l3_bytes = reader.Whole(root, "l3_bytes", kCapacity, 0);
  m.memory_bytes = reader.Whole(root, "memory_bytes", kCapacity, 0);
}

void ReadRates(const Place& root, MachineProfile& m, Reader& reader) {
  m.read_bytes_per_s = reader.Number(root, "read_bytes_per_s", kRate);
  m.weights_bytes_per_s = reader.Points(root, "weights_by_working_set", "bytes", kSetBytes, "bytes_per_s", kRate);
  const double of_memory = reader.Number(root, "weights_bytes_per_s", kRate, m.read_bytes_per_s);
  if (m.weights_bytes_per_s.empty()) {
    // Of twice its size a cache that replaces the oldest holds nothing that is read again.
    m.weights_bytes_per_s.points = {{std::max(0x1p20, 2 * static_cast<double>(m.l3_bytes)), of_memory}};
  }
  m.weights_bytes_per_s = NeverRising(std::move(m.weights_bytes_per_s));
  // 0: Complete knows.
  m.rmw_bytes_per_s = reader.Number(root, "rmw_bytes_per_s", kRate, 0);
  m.adamw_bytes_per_s = reader.Number(root, "adamw_bytes_per_s", kRate, 0);
  m.adamw_wide_bytes_per_s = reader.Number(root, "adamw_wide_bytes_per_s", kRate, 0);
  m.pace_flop_per_s = reader.Number(root, "pace_flop_per_s", kRateOrUnknown, 0);
  m.handover_s = reader.Number(root, "handover_s", kTimeOrNone, 0);
  m.barrier_s = reader.Number(root, "barrier_s", kTimeOrNone, 0);
  m.step_s = reader.Number(root, "step_s", kTimeOrNone, 0);
  const auto peak = reader.Object(root, "peak_flop_per_s");
  if (!peak) return reader.Refuse("peak_flop_per_s", "nothing", "an object with f32, bf16 or both");
  m.peak_f32 = reader.Number(*peak, "f32", kRate, 0), m.peak_bf16 = reader.Number(*peak, "bf16", kRate, 0);
  m.peak_int8 = reader.Number(*peak, "int8", kRateOrUnknown, 0);
  if (m.peak_f32 + m.peak_bf16 <= 0) reader.Refuse("peak_flop_per_s", "neither f32 nor bf16", "one of them");
  // Half as fast at twice the width.
  if (m.peak_f32 <= 0) m.peak_f32 = std::max(m.peak_bf16 / 2, kRate.least);
}

void ReadRowOps(const Place& root, MachineProfile& m, Reader& reader) {
  const auto in = reader.Object(root, "row_ops");
  if (!in) return;
  for (int op = 0; op < kNumRowOps; ++op) {
    m.row_op_s[static_cast<size_t>(op)] = reader.Number(*in, Name(static_cast<RowOp>(op)), kTime, 0);
  }
}

}  // namespace

Result<MachineProfile> MachineFromJson(const Json& json, const std::string& where) {
  if (!json.is_object()) return Err(where, "got {}, expected an object as moe probe writes it", Shown(json));
  Reader reader(where);
  const Place root{json, ""};
  MachineProfile m;
  ReadKeys(json, reader);
  ReadFacts(root, m, reader);
  ReadRates(root, m, reader);
  m.products = ReadGamma(root, reader);
  m.streams = ReadStreams(root, reader);
  m.attention = ReadAttention(root, reader);
  ReadRowOps(root, m, reader);
  m.routing = ReadRouting(root, "routing", reader), m.routing_backward = ReadRouting(root, "routing_backward", reader);
  m.switches = ReadSwitches(root, reader);
  if (reader.error()) return tl::make_unexpected(*reader.error());
  Complete(m);
  return m;
}

}  // namespace moe
