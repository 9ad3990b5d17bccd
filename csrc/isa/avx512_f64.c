#include "../cvit.h"
#define ISA "avx512"

#define TABLE cvit_avx512_f64
#define TABLE_TYPE cvit_f64
#define real double
#define REAL_BITS 64
#define VECTOR_BYTES 64
#define MR 14
#define NV 2
#define EACH_ROW(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#define KC 256
#define UNROLL _Pragma("GCC unroll 2")
#include "../kernels.inc"
