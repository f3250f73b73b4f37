// The compiler's base line (SSE2 on x86-64): runs everywhere, the yardstick of correctness.
#define MOE_ISA isa_scalar
#define MOE_ISA_NAME "scalar"
#define MOE_VECTOR_BYTES 16
#define MOE_TILE_ROWS 4

#include "moe/kernels/cpu/impl/table.h"
