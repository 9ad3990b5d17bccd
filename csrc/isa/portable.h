/* The plainest set that every CPU of an architecture has: SSE2 on x86-64 (16 registers), NEON on AArch64, or plain C.
 * */
#define ISA portable
#define VECTOR_BYTES 16
#define MR 6
#define NV 2
#define EACH_ROW(X) X(1) X(2) X(3) X(4) X(5) X(6)
#define KC 256
#define UNROLL _Pragma("GCC unroll 2")
