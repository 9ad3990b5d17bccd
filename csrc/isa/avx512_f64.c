#define ELEMENT f64
#define real double
#define REAL_BITS 64
#define KC 256
#include "avx512.h"
#include "../kernels/all.inc"
