#include "../cvit.h"
#define ISA "portable"

#define TABLE cvit_portable_f32
#define TABLE_TYPE cvit_f32
#define real float
#define REAL_BITS 32
#define VECTOR_BYTES 16
#define MR 6
#define NV 2
#define EACH_ROW(X) X(1) X(2) X(3) X(4) X(5) X(6)
#define KC 256
#define UNROLL _Pragma("GCC unroll 2")
#include "../kernels.inc"
