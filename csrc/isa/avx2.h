/* AVX2 and FMA: 16 registers of 32 bytes. */
#define ISA avx2
#define VECTOR_BYTES 32
#define MR 6
#define NV 2
#define EACH_ROW(X) X(1) X(2) X(3) X(4) X(5) X(6)
#define KC 256
#define UNROLL _Pragma("GCC unroll 4")
