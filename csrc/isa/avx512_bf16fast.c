/* AVX-512 with AVX512_BF16: bfloat16 in the order of that instruction, on the forms of AMX's tables. */
#define ELEMENT bf16fast
#define ELEMENT_NAME "bf16-fast"
#define BF16 1
#define AMX 1
#define FAST 1
#define real float
#define REAL_BITS 32
#define KC 384
#include "avx512.h"
#include "../kernels/all.inc"
