/* Which tables this machine can run. */
#include <string.h>

#include "cvit.h"

/* Each instruction set's tables, one an element type. */
#define TABLES(isa, supported) \
    {&cvit_##isa##_f32, supported}, {&cvit_##isa##_f64, supported}, { &cvit_##isa##_bf16, supported }

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

extern const cvit_kernels cvit_portable_f32, cvit_avx2_f32, cvit_avx512_f32;
extern const cvit_kernels cvit_portable_f64, cvit_avx2_f64, cvit_avx512_f64;
extern const cvit_kernels cvit_portable_bf16, cvit_avx2_bf16, cvit_avx512_bf16;

static cvit_table tables[] = {TABLES(portable, 1), TABLES(avx2, 0), TABLES(avx512, 0)};

static void support(const char *isa, int supported)
{
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (!strcmp(tables[i].kernels->isa, isa))
            tables[i].supported = supported;
}

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
    support("avx2", avx2);
    support("avx512", avx512);
}

#elif defined(__aarch64__)

extern const cvit_kernels cvit_portable_f32, cvit_portable_f64, cvit_portable_bf16;
extern const cvit_kernels cvit_neon_f32, cvit_neon_f64, cvit_neon_bf16;

/* NEON is part of every AArch64. */
static cvit_table tables[] = {TABLES(portable, 1), TABLES(neon, 1)};

static void detect(void) {}

#else

extern const cvit_kernels cvit_portable_f32, cvit_portable_f64, cvit_portable_bf16;

static cvit_table tables[] = {TABLES(portable, 1)};

static void detect(void) {}

#endif

const cvit_table *cvit_tables(int *count)
{
    detect();
    *count = (int)(sizeof tables / sizeof *tables);
    return tables;
}
