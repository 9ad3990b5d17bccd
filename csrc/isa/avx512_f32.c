#define ELEMENT f32
#define real float
#define REAL_BITS 32
#include "avx512.h"
#include "../kernels/all.inc"
