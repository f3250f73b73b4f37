// AVX-512 with vdpbf16ps: bf16 products at the hardware's own rate.
#define MOE_ISA isa_avx512bf16
#define MOE_ISA_NAME "avx512bf16"
#define MOE_VECTOR_BYTES 64
#define MOE_TILE_ROWS 12
#include <immintrin.h>

#include "moe/kernels/cpu/impl/table.h"
