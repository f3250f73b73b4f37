#include <cstdlib>
#include <vector>

#include "moe/base/cpu_info.h"
#include "moe/kernels/cpu/kernel_table.h"

namespace moe {

namespace isa_scalar {
extern const KernelTable kTable;
}
#if defined(__x86_64__)
namespace isa_avx2 {
extern const KernelTable kTable;
}
namespace isa_avx512 {
extern const KernelTable kTable;
}
namespace isa_avx512bf16 {
extern const KernelTable kTable;
}
#endif

namespace {

struct Isa {
  const KernelTable* table;
  bool supported;
};

std::vector<Isa> BestFirst() {
  [[maybe_unused]] const CpuInfo& cpu = GetCpuInfo();
  return {
#if defined(__x86_64__)
    {&isa_avx512bf16::kTable, cpu.avx512bf16}, {&isa_avx512::kTable, cpu.avx512}, {&isa_avx2::kTable, cpu.avx2},
#endif
        {&isa_scalar::kTable, true},
  };
}

std::vector<const KernelTable*> Tables(bool only_supported) {
  std::vector<const KernelTable*> tables;
  for (const Isa& isa : BestFirst()) {
    if (isa.supported || !only_supported) tables.push_back(isa.table);
  }
  return tables;
}

}  // namespace

std::span<const KernelTable* const> SupportedKernelTables() {
  static const std::vector<const KernelTable*> tables = Tables(true);
  return tables;
}

std::span<const KernelTable* const> BuiltInKernelTables() {
  static const std::vector<const KernelTable*> tables = Tables(false);
  return tables;
}

Result<const KernelTable*> SelectKernelTable(std::string_view name) {
  std::string where = "isa";
  if (name.empty()) {
    if (const char* forced = std::getenv("MOE_ISA"); forced != nullptr && *forced != '\0') {
      name = forced;
      where = "MOE_ISA";
    } else {
      return SupportedKernelTables()[0];
    }
  }
  std::string usable;
  for (const KernelTable* table : SupportedKernelTables()) {
    if (name == table->name) return table;
    usable += fmt::format("{}{}", usable.empty() ? "" : ", ", table->name);
  }
  return UsageErr(where, "got '{}', expected one that this CPU can run: {}", name, usable);
}

}  // namespace moe
