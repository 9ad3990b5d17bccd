#define ELEMENT f64
#define real double
#define REAL_BITS 64
#include "avx2.h"
#include "../kernels/all.inc"
