#pragma once
// Text as training batches: which tokens make step s is a function of the corpus, the seed and s alone, so there is no reader
// position to save.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moe/base/result.h"
#include "moe/base/thread_pool.h"
#include "moe/files/tokenizer.h"
#include "moe/model/step_batch.h"

namespace moe {

// The tokens of some texts, one document per text, without BOS.
struct Corpus {
  std::vector<std::vector<int32_t>> documents;
  int64_t num_tokens = 0;
  int64_t num_bytes = 0;
};

// Encodes the texts, large ones in pieces at line ends. `cut` (true only for tokenizers we make): a line end before a character
// that is no space ends a piece of the pre-tokenisation, so that cutting there changes nothing.
Corpus Tokenize(std::span<const std::string> texts, const Tokenizer& tokenizer, bool cut, ThreadPool& pool);

// XXH3-64 of the documents' lengths and tokens, as 16 digits: has this run's data changed?
std::string Digest(std::span<const std::span<const int32_t>> documents);
std::string Digest(const Corpus& corpus);
std::string Digest(const Tokenizer& tokenizer);  // of its tokenizer.json

// Rows and targets of one forward and backward pass. A sequence is BOS and the window's tokens but the last; its targets are
// the window's tokens: as evaluation does it.
struct Batch {
  std::vector<RowInfo> rows;     // [T]
  std::vector<int32_t> targets;  // [T]
};

// An endless stream of training targets. Epoch e cuts every document at a random offset into windows of `context` tokens, the
// first and the last of a document shorter; takes the full windows in random order, then the short ones: every token once per
// epoch, never two documents in one window, other window borders in every epoch.
class DataStream {
 public:
  // The corpus must hold tokens and outlive this; context >= 1.
  DataStream(const Corpus& corpus, int64_t context, int32_t bos_id, uint64_t seed);

  // Targets [position, position + count) of the stream. A window that begins before `position` goes on as a sequence of its
  // own. Calls may come in any order; the epoch last used is kept.
  void Read(int64_t position, int64_t count, Batch& batch);

 private:
  struct Window {
    int32_t document;
    int32_t length;
    int64_t begin;  // in the document
  };
  void PrepareEpoch(int64_t epoch);

  const Corpus& corpus_;
  int64_t context_;
  int32_t bos_id_;
  uint64_t seed_;
  int64_t epoch_ = -1;             // the one that windows_ holds
  std::vector<Window> windows_;    // in the order of the stream
  std::vector<int64_t> begin_of_;  // [windows + 1] first target of each in the epoch
};

}  // namespace moe
