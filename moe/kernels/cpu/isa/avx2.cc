// AVX2 + FMA: 16 registers, so 6 rows by two vectors of 8 columns.
#define MOE_ISA isa_avx2
#define MOE_ISA_NAME "avx2"
#define MOE_VECTOR_BYTES 32
#define MOE_TILE_ROWS 6
#include <immintrin.h>

#include "moe/kernels/cpu/impl/table.h"
