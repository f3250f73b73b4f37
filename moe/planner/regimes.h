#pragma once
// The valley in words and numbers: what a curve of speed-ups over batch sizes says, and what closed forms say beforehand.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/costs/machine.h"
#include "moe/model/config.h"
#include "moe/planner/step_ops.h"

namespace moe {

inline constexpr double kGain = 1.25;  // a speed-up over the equal-total twin that is worth having

enum class Regime : uint8_t {
  kMemory,   // the dense model waits for memory, and the MoE reads less
  kMiddle,   // nearly every expert is read: the gain is below kGain
  kCompute,  // arithmetic binds, and the MoE does less of it
};
std::string_view Name(Regime regime);  // "memory", "middle", "compute"

// Where something is gained, what binds the equal-total twin says of what the MoE has less: bytes or arithmetic.
Regime RegimeOf(double speedup_total, bool twin_memory_bound);
// The same of a measured curve, which does not say what binds: above kGain left of the least it is memory, right of it compute.
// Of equal least ones the first counts.
std::vector<Regime> RegimesOf(std::span<const double> speedup_total);

// Stretches of batches with the same name, to draw; they meet where the speed-up over the equal-total twin passes kGain, or
// half way between the batches. names, speedup_total: one per batch.
struct RegimeBand {
  double from = 1, to = 1;
  std::string name;
};
std::vector<RegimeBand> BandsOf(std::span<const int64_t> batches, std::span<const double> speedup_total,
                                std::span<const std::string> names);

// Closed forms for uniform routing, products of many rows, and weights from memory.
struct Boundaries {
  double gamma = 0, beta = 0;  // FLOP/s of products of many rows; bytes/s of weights from memory
  double b_sat = 0;            // (E/k) ln 20: 95 % of the experts have a token; 0 without experts
  // The dense model's arithmetic takes as long as moving what a value of a matrix needs once a step: gamma w / (2 beta) when
  // inferring; in training both packs are read, the gradient comes and goes, AdamW passes over its state.
  double b_d = 0;
  double b_m = 0;                                            // (E/k) b_d: the same of the MoE; 0 without experts
  bool plateau() const { return b_sat > 0 && b_sat < b_d; }  // every expert is read before arithmetic binds
};
// What B_d is, in words.
std::string_view MeaningOfBd(Phase phase);
// weight_bytes: per value of a matrix.
Boundaries BoundariesOf(const ModelConfig& config, const MachineProfile& machine, DType format, double weight_bytes,
                        Phase phase);

// An octave of batches over which the speed-up over the equal-total twin stays closest to 1, straight lines in log B between
// the batches given. It is a plateau when it stays within kPlateau of it; nothing less than an octave counts.
inline constexpr double kPlateau = 0.1;
struct Plateau {
  double from = 0;                       // to 2 * from; 0: fewer batches than an octave
  std::optional<double> deviation = {};  // the most that the speed-up is away from 1 there
  bool exists() const { return deviation && *deviation <= kPlateau; }
};
Plateau PlateauOf(std::span<const int64_t> batches, std::span<const double> speedup_total);

// The batch at which the speed-up over the equal-active twin is least, if there are batches on both sides: the foot of the
// parabola in log B through the least and its neighbours, for a flat valley's least is anywhere in it. Then the batch from
// where it is back at 0.8, if it is. (That of the equal-total twin passes kGain at Crossings(..., kGain).)
std::vector<double> ActiveCrossings(std::span<const int64_t> batches, std::span<const double> speedup_active);

// The smallest batch after which no doubling gives 10 % more tokens per second, while each doubles what is in flight. Empty:
// the last doubling still does, or there is none.
inline constexpr double kKneeGain = 0.1;
std::optional<int64_t> KneeOf(std::span<const int64_t> batches, std::span<const double> tokens_per_s);

}  // namespace moe
