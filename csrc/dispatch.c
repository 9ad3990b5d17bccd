/* Which tables this machine can run. */
#include "cvit.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

extern const cvit_kernels cvit_portable_f32, cvit_avx2_f32, cvit_avx512_f32;
extern const cvit_kernels cvit_portable_f64, cvit_avx2_f64, cvit_avx512_f64;

enum { PORTABLE = 0, AVX2 = 2, AVX512 = 4 }; /* where each instruction set's pair begins */
static cvit_table tables[] = {
    [PORTABLE] = {&cvit_portable_f32, 1}, {&cvit_portable_f64, 1}, [AVX2] = {&cvit_avx2_f32, 0}, {&cvit_avx2_f64, 0},
    [AVX512] = {&cvit_avx512_f32, 0},     {&cvit_avx512_f64, 0},
};

/* A CPU that has wide registers is not enough: the operating system must save them when it switches threads, which it
 * announces in XCR0 (Intel SDM vol. 1, 13.1 and 14.3, 15.2): bits 1, 2 for AVX's YMM; 5, 6, 7 for AVX-512's mask and
 * ZMM. */
static void detect(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX) || !(c & bit_FMA))
        return;
    unsigned xcr0, high;
    __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return;
    const int avx2 = (xcr0 & 0x06) == 0x06 && (b & bit_AVX2);
    const unsigned wanted = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    const int avx512 = avx2 && (xcr0 & 0xe6) == 0xe6 && (b & wanted) == wanted;
    tables[AVX2].supported = tables[AVX2 + 1].supported = avx2;
    tables[AVX512].supported = tables[AVX512 + 1].supported = avx512;
}

#elif defined(__aarch64__)

extern const cvit_kernels cvit_portable_f32, cvit_portable_f64, cvit_neon_f32, cvit_neon_f64;

static cvit_table tables[] = {
    {&cvit_portable_f32, 1},
    {&cvit_portable_f64, 1},
    {&cvit_neon_f32, 1}, /* part of every AArch64 */
    {&cvit_neon_f64, 1},
};

static void detect(void) {}

#else

extern const cvit_kernels cvit_portable_f32, cvit_portable_f64;

static cvit_table tables[] = {{&cvit_portable_f32, 1}, {&cvit_portable_f64, 1}};

static void detect(void) {}

#endif

const cvit_table *cvit_tables(int *count)
{
    detect();
    *count = (int)(sizeof tables / sizeof *tables);
    return tables;
}
