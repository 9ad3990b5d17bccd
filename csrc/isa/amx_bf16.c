/* AVX-512 with AMX's tiles, for bfloat16 alone. */
#define ELEMENT bf16
#define BF16 1
#define AMX 1
#define real float
#define REAL_BITS 32
#define KC 384
#include "avx512.h"
#undef ISA
#define ISA amx
#include "../kernels/all.inc"
