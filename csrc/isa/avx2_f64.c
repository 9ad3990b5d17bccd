#include "../cvit.h"
#define ISA "avx2"

#define TABLE cvit_avx2_f64
#define TABLE_TYPE cvit_f64
#define real double
#define REAL_BITS 64
#define VECTOR_BYTES 32
#define MR 6
#define NV 2
#define EACH_ROW(X) X(1) X(2) X(3) X(4) X(5) X(6)
#define KC 256
#define UNROLL _Pragma("GCC unroll 4")
#include "../kernels.inc"
