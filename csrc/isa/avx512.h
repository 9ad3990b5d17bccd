/* AVX-512 F, DQ, BW and VL: 32 registers of 64 bytes. */
#define ISA avx512
#define VECTOR_BYTES 64
#define MR 14
#define NV 2
#define EACH_ROW(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#define UNROLL _Pragma("GCC unroll 2")
