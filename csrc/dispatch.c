/* Which tables this machine can run. */
#include <string.h>

#include "cvit.h"

/* Each instruction set's tables, one an element type. */
#define TABLES(isa, supported) \
    {&cvit_##isa##_f32, supported}, {&cvit_##isa##_f64, supported}, { &cvit_##isa##_bf16, supported }

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const cvit_kernels cvit_portable_f32, cvit_avx2_f32, cvit_avx512_f32;
extern const cvit_kernels cvit_portable_f64, cvit_avx2_f64, cvit_avx512_f64;
extern const cvit_kernels cvit_portable_bf16, cvit_avx2_bf16, cvit_avx512_bf16;

/* CVIT_HAS_BF16_FAST, CVIT_HAS_AMX: the compiler knows the instructions (setup.py). */
#ifdef CVIT_HAS_BF16_FAST
extern const cvit_kernels cvit_avx512_bf16fast;
#define FAST_TABLES , {&cvit_avx512_bf16fast, 0}
#else
#define FAST_TABLES
#endif
#ifdef CVIT_HAS_AMX
extern const cvit_kernels cvit_amx_bf16;
#define AMX_TABLES , {&cvit_amx_bf16, 0}
#else
#define AMX_TABLES
#endif

static cvit_table tables[] = {TABLES(portable, 1), TABLES(avx2, 0), TABLES(avx512, 0) FAST_TABLES AMX_TABLES};

static void support(const char *isa, int supported)
{
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (!strcmp(tables[i].kernels->isa, isa))
            tables[i].supported = supported;
}
static void support_element(const char *element, int supported)
{
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (!strcmp(tables[i].kernels->element, element))
            tables[i].supported = supported;
}

/* Tiles take 8 KB of a thread's state, which Linux saves from 5.16 on for processes that have asked
 * (ARCH_REQ_XCOMP_PERM of state 18, Documentation/arch/x86/xstate.rst); a child process inherits the permission. A
 * refusal, or a system call that is not there, is no error: the next table is used. Other systems are not asked: no
 * tiles there. */
static int tiles_permitted(void)
{
#if defined(__linux__) && defined(__x86_64__)
    static int permitted = -1;
    if (permitted < 0)
        permitted = syscall(SYS_arch_prctl, 0x1023L, 18L) == 0;
    return permitted;
#else
    return 0;
#endif
}

enum { AVX512_BF16 = 1 << 5 }; /* in EAX of CPUID leaf 7, subleaf 1 */

/* AMX: bits 17 and 18 of XCR0, the tiles' configuration and data; in CPUID leaf 7 EDX bits 24, AMX-TILE, and 22,
 * AMX-BF16; in its subleaf 1 EAX bit 5, AVX512_BF16, whose conversions the table uses. */
static int amx_supported(unsigned xcr0, unsigned leaf_7_edx, unsigned subleaf_1_eax)
{
    const unsigned wanted = 1u << 24 | 1u << 22;
    return (xcr0 & 0x60000) == 0x60000 && (leaf_7_edx & wanted) == wanted && (subleaf_1_eax & AVX512_BF16)
           && tiles_permitted();
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
    const unsigned features = d;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d))
        a = 0;
    support("amx", avx512 && amx_supported(xcr0, features, a));
    support_element("bf16-fast", avx512 && (a & AVX512_BF16));
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
