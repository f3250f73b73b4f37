// Any bytes as text: trains as the naive twin does, encodes as it does, and loses no byte; NFC of it has nothing left to
// change. The first byte says how many merges.

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "moe/base/check.h"
#include "moe/files/bpe_train.h"
#include "moe/files/nfc.h"
#include "moe/files/utf8.h"
#include "testing/reference/bpe.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const int num_merges = data[0] % 64;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1), pattern(moe::kGpt2Pattern);
  static const moe::Pretokenizer pretokenizer = *moe::Pretokenizer::Create(std::span(&pattern, 1), "GPT-2");
  std::map<std::string, int64_t> counts;
  std::string joined;
  pretokenizer.Split(text, [&](std::string_view piece) {
    ++counts[std::string(piece)];
    joined += piece;
  });
  MOE_CHECK(joined == text);

  const auto tokenizer = moe::TrainBpe(std::span(&text, 1), 259 + num_merges);
  MOE_CHECK(tokenizer.has_value());
  const std::vector<int32_t> ids = tokenizer->Encode(text);
  MOE_CHECK(tokenizer->Decode(ids) == text);
  if (size <= 256) {
    const auto merges = moe::reference::TrainBpe(counts, num_merges);
    MOE_CHECK(tokenizer->vocab_size() == static_cast<int32_t>(259 + merges.size()));
    std::vector<int32_t> expected;
    if (merges.empty())
      expected = moe::reference::ByteIds(text);
    else
      pretokenizer.Split(text, [&](std::string_view piece) {
        for (const int32_t id : moe::reference::EncodePiece(std::string(piece), merges)) expected.push_back(id);
      });
    MOE_CHECK(ids == expected);
  }

  std::string storage, again;
  const std::string_view nfc = moe::ToNfc(text, storage);
  MOE_CHECK(moe::ToNfc(nfc, again) == nfc);
  MOE_CHECK((moe::ValidUtf8Prefix(text) == text.size()) == (moe::ValidUtf8Prefix(nfc) == nfc.size()));

  moe::Utf8Stream whole, cut;
  std::string shown = whole.Push(text), shown_cut;
  shown += whole.Flush();
  for (const int32_t id : ids) shown_cut += cut.Push(tokenizer->TokenBytes(id));
  shown_cut += cut.Flush();
  MOE_CHECK(shown == shown_cut && moe::ValidUtf8Prefix(shown) == shown.size());
  return 0;
}
