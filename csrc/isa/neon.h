/* AArch64's Advanced SIMD: 32 registers of 16 bytes. */
#define ISA neon
#define VECTOR_BYTES 16
#define MR 8
#define NV 2
#define EACH_ROW(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#define KC 256
#define UNROLL _Pragma("GCC unroll 2")
