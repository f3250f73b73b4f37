#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <string>

#include "moe/base/cpu_info.h"
#include "moe/kernels/cpu/kernel_table.h"

namespace moe::test {
namespace {

// Sets MOE_ISA while it lives.
class ForcedIsa {
 public:
  explicit ForcedIsa(const char* value) {
    if (const char* old = std::getenv("MOE_ISA")) old_ = old, had_ = true;
    setenv("MOE_ISA", value, 1);
  }
  ~ForcedIsa() { had_ ? setenv("MOE_ISA", old_.c_str(), 1) : unsetenv("MOE_ISA"); }

 private:
  std::string old_;
  bool had_ = false;
};

TEST(SelectKernelTable, TakesTheBestUnlessForced) {
  const ForcedIsa none("");
  ASSERT_FALSE(SupportedKernelTables().empty());
  EXPECT_EQ(SelectKernelTable().value(), SupportedKernelTables()[0]);
  for (const KernelTable* table : SupportedKernelTables()) {
    EXPECT_EQ(SelectKernelTable(table->name).value(), table);
    const ForcedIsa forced(table->name);
    EXPECT_EQ(SelectKernelTable().value(), table);
  }
}

TEST(SelectKernelTable, TheArgumentWinsOverTheVariable) {
  const ForcedIsa forced("nonsense");
  EXPECT_STREQ(SelectKernelTable("scalar").value()->name, "scalar");
}

TEST(SelectKernelTable, AnUnknownNameIsAnErrorThatListsTheUsableOnes) {
  const ForcedIsa forced("avx9000");
  const auto result = SelectKernelTable();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().where, "MOE_ISA");
  EXPECT_EQ(result.error().exit_code, 2);
  EXPECT_NE(result.error().what.find("got 'avx9000'"), std::string::npos) << result.error().what;
  EXPECT_NE(result.error().what.find("scalar"), std::string::npos) << result.error().what;
  EXPECT_EQ(SelectKernelTable("SCALAR").error().where, "isa");
}

TEST(SelectKernelTable, ATableThisCpuLacksIsRefused) {
  for (const KernelTable* table : BuiltInKernelTables()) {
    const auto supported = SupportedKernelTables();
    const bool usable = std::find(supported.begin(), supported.end(), table) != supported.end();
    EXPECT_EQ(SelectKernelTable(table->name).has_value(), usable) << table->name;
  }
}

TEST(KernelTables, HaveTheirNamesAndEveryEntry) {
  EXPECT_STREQ(BuiltInKernelTables().back()->name, "scalar");
#if defined(__x86_64__)
  ASSERT_EQ(BuiltInKernelTables().size(), 4u);
  EXPECT_STREQ(BuiltInKernelTables()[0]->name, "avx512bf16");
  const CpuInfo& cpu = GetCpuInfo();
  EXPECT_EQ(SupportedKernelTables().size(), 1u + cpu.avx2 + cpu.avx512 + cpu.avx512bf16);
#endif
  for (const KernelTable* table : BuiltInKernelTables()) {
    // After the name and the row count come function pointers only.
    const auto* entry = reinterpret_cast<void* const*>(reinterpret_cast<const char*>(table) + offsetof(KernelTable, tile_f32));
    const auto* end = reinterpret_cast<void* const*>(table + 1);
    for (; entry != end; ++entry) EXPECT_NE(*entry, nullptr) << table->name;
    EXPECT_GE(table->max_rows, 1);
    EXPECT_LE(table->max_rows, 16);
  }
}

}  // namespace
}  // namespace moe::test
