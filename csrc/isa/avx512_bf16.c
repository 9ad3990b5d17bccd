#define ELEMENT bf16
#define BF16 1
#define real float
#define REAL_BITS 32
#define KC 384
#include "avx512.h"
#include "../kernels/all.inc"
