#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/base/result.h"
#include "moe/files/bpe.h"
#include "moe/files/tokenizer.h"

namespace moe {

inline constexpr int64_t kMinPairCount = 2;  // a pair seen once says nothing about other text

// A byte-level BPE tokenizer of vocab_size tokens, specials included, trained on the texts. The same texts (in any order) give
// the same tokenizer, byte for byte. Stops below vocab_size when no pair of neighbours is left that occurs kMinPairCount times:
// see Tokenizer::vocab_size. Errors: vocab_size below 256 + kNumSpecials or above kMaxVocab.
Result<Tokenizer> TrainBpe(std::span<const std::string> texts, int32_t vocab_size);

struct CountedPiece {
  std::string_view bytes;
  int64_t count;
};

// The training itself (Sennrich et al. 2016, algorithm 1): starting from bytes (token b is byte b), `num_merges` times the most
// frequent pair of neighbours inside a piece becomes token 256, 257, ...; of pairs equally frequent, the one with the lowest
// (left, right). A pair whose bytes are a token already is passed over, so that every token comes from one merge.
std::vector<BpeMerge> TrainMerges(std::span<const CountedPiece> pieces, int32_t num_merges);

}  // namespace moe
