#define ELEMENT bf16
#define BF16 1
#define real float
#define REAL_BITS 32
#include "portable.h"
#include "../kernels/all.inc"
