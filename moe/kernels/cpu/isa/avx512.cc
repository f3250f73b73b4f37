// AVX-512 F/BW/VL/DQ: 32 registers, 12 rows by two vectors of 16 columns; bf16 pairs are expanded to float32.
#define MOE_ISA isa_avx512
#define MOE_ISA_NAME "avx512"
#define MOE_VECTOR_BYTES 64
#define MOE_TILE_ROWS 12
#include <immintrin.h>

#include "moe/kernels/cpu/impl/table.h"
