/* The vector vocabulary: one set of names for every instruction set and element type.
 *
 * A file that includes this has defined `real` (float or double), REAL_BITS (32 or 64) and VECTOR_BYTES. Everything
 * below is GCC/Clang vector extensions, which compile to AVX-512, AVX2, SSE2 or NEON alike; arithmetic (+ - * /) and
 * comparisons work on `vec` directly, and `a * b + c` becomes one fused multiply-add where the machine has it
 * (-ffp-contract=fast). Only max, min and sqrt, which the extensions lack, name an instruction.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if VECTOR_BYTES == 64 || VECTOR_BYTES == 32 || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define VL ((ptrdiff_t)(VECTOR_BYTES / sizeof(real))) /* lanes of a vector */

#if REAL_BITS == 32
typedef int32_t bits;
#define SQRT sqrtf
#else
typedef int64_t bits;
#define SQRT sqrt
#endif

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef bits ivec __attribute__((vector_size(VECTOR_BYTES))); /* lane masks are all ones or all zeros */
typedef real vec_any __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE \
    static __attribute__((noinline)) /* where inlining into loops would leave the compiler without registers */

INLINE vec load(const real *p) { return *(const vec_any *)p; }
INLINE void store(real *p, vec v) { *(vec_any *)p = v; }
INLINE vec splat(real x) { return x - (vec){0}; } /* x + 0 would lose the sign of -0 */

/* Mask of the first n lanes. */
INLINE ivec first_lanes(ptrdiff_t n)
{
    ivec lane = {0};
    for (int i = 0; i < VL; i++)
        lane[i] = i;
    return (ivec)(lane < (bits)n);
}

/* The first n < VL lanes; the others read as zero, and are left alone in memory. */
#if VECTOR_BYTES == 64 && REAL_BITS == 32
INLINE vec load_n(const real *p, ptrdiff_t n) { return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
INLINE void store_n(real *p, vec v, ptrdiff_t n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v); }
#elif VECTOR_BYTES == 64
INLINE vec load_n(const real *p, ptrdiff_t n) { return (vec)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p); }
INLINE void store_n(real *p, vec v, ptrdiff_t n) { _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v); }
#elif VECTOR_BYTES == 32 && REAL_BITS == 32
INLINE vec load_n(const real *p, ptrdiff_t n) { return (vec)_mm256_maskload_ps(p, (__m256i)first_lanes(n)); }
INLINE void store_n(real *p, vec v, ptrdiff_t n) { _mm256_maskstore_ps(p, (__m256i)first_lanes(n), (__m256)v); }
#elif VECTOR_BYTES == 32
INLINE vec load_n(const real *p, ptrdiff_t n) { return (vec)_mm256_maskload_pd(p, (__m256i)first_lanes(n)); }
INLINE void store_n(real *p, vec v, ptrdiff_t n) { _mm256_maskstore_pd(p, (__m256i)first_lanes(n), (__m256d)v); }
#else
INLINE vec load_n(const real *p, ptrdiff_t n)
{
    vec v = {0};
    memcpy(&v, p, (size_t)n * sizeof(real));
    return v;
}
INLINE void store_n(real *p, vec v, ptrdiff_t n) { memcpy(p, &v, (size_t)n * sizeof(real)); }
#endif

/* The same for a count that may be a whole vector or more. */
INLINE vec load_upto(const real *p, ptrdiff_t n) { return n >= VL ? load(p) : load_n(p, n); }
INLINE void store_upto(real *p, vec v, ptrdiff_t n)
{
    if (n >= VL)
        store(p, v);
    else
        store_n(p, v, n);
}

/* a * b + c. The bfloat16 tables' results are the same bits on every machine, so what is rounded once there says so
 * here, and nothing else is contracted (setup.py); the others leave it to the compiler. */
#if !BF16
INLINE vec fused(vec a, vec b, vec c) { return a * b + c; }
#elif VECTOR_BYTES == 64
INLINE vec fused(vec a, vec b, vec c) { return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif VECTOR_BYTES == 32
INLINE vec fused(vec a, vec b, vec c) { return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#elif defined(__ARM_NEON)
INLINE vec fused(vec a, vec b, vec c) { return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
NOINLINE vec fused(vec a, vec b, vec c) /* calls of the C library, which takes the CPU's instruction if it has one */
{
    for (int i = 0; i < VL; i++)
        c[i] = fmaf(a[i], b[i], c[i]);
    return c;
}
#endif

/* c - a * b. Where c is a product as well, compilers choose which of the two is rounded by itself. */
#if BF16
INLINE vec fused_from(vec a, vec b, vec c) { return fused(-a, b, c); }
#else
INLINE vec fused_from(vec a, vec b, vec c) { return c - a * b; }
#endif

/* sum + *x * v with *x read anew, if the machine can in the multiply-add itself (AVX-512: one instruction less to
 * issue, one more load). A compiler would keep a broadcast *x that it has. */
#if VECTOR_BYTES == 64
INLINE vec add_product(vec sum, const real *x, vec v)
{
#if REAL_BITS == 32
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(v), "m"(*x));
#else
    __asm__("vfmadd231pd %2%{1to8%}, %1, %0" : "+v"(sum) : "v"(v), "m"(*x));
#endif
    return sum;
}
#else
INLINE vec add_product(vec sum, const real *x, vec v) { return fused(splat(*x), v, sum); }
#endif

/* 1 / x for x >= 1, to a rounding or two; above 2^126, where 1 / x is subnormal, to an absolute 2^-126. A 512-bit
 * division takes 16 cycles; an estimate of 14 bits and one Newton step are far less. But estimates are each machine's
 * own, so the bfloat16 tables divide. */
#if VECTOR_BYTES == 64 && REAL_BITS == 32 && !BF16
INLINE vec reciprocal(vec x)
{
    const vec guess = (vec)_mm512_rcp14_ps((__m512)x);
    return guess + guess * (1 - x * guess);
}
#else
INLINE vec reciprocal(vec x) { return 1 / x; }
#endif

INLINE vec pick(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
INLINE vec keep(ivec mask, vec v) { return (vec)(mask & (ivec)v); }

#if VECTOR_BYTES == 64 && REAL_BITS == 32
INLINE vec vmax(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec vmin(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec vsqrt(vec a) { return (vec)_mm512_sqrt_ps((__m512)a); }
#elif VECTOR_BYTES == 64
INLINE vec vmax(vec a, vec b) { return (vec)_mm512_max_pd((__m512d)a, (__m512d)b); }
INLINE vec vmin(vec a, vec b) { return (vec)_mm512_min_pd((__m512d)a, (__m512d)b); }
INLINE vec vsqrt(vec a) { return (vec)_mm512_sqrt_pd((__m512d)a); }
#elif VECTOR_BYTES == 32 && REAL_BITS == 32
INLINE vec vmax(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vec vmin(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vec vsqrt(vec a) { return (vec)_mm256_sqrt_ps((__m256)a); }
#elif VECTOR_BYTES == 32
INLINE vec vmax(vec a, vec b) { return (vec)_mm256_max_pd((__m256d)a, (__m256d)b); }
INLINE vec vmin(vec a, vec b) { return (vec)_mm256_min_pd((__m256d)a, (__m256d)b); }
INLINE vec vsqrt(vec a) { return (vec)_mm256_sqrt_pd((__m256d)a); }
#else
/* As x86's instructions do it: of an unordered pair the second is taken, and of two zeros. Clang, if it sees that,
 * takes AArch64's maximum, which prefers +0: the bfloat16 tables do not let it. */
INLINE ivec unseen(ivec mask)
{
#if BF16 && defined(__aarch64__)
    __asm__("" : "+w"(mask));
#endif
    return mask;
}
INLINE vec vmax(vec a, vec b) { return pick(unseen((ivec)(a > b)), a, b); }
INLINE vec vmin(vec a, vec b) { return pick(unseen((ivec)(a < b)), a, b); }
INLINE vec vsqrt(vec a)
{
    for (int i = 0; i < VL; i++)
        a[i] = SQRT(a[i]);
    return a;
}
#endif

/* Lane sums and maxima in one fixed tree, so that their bits depend on nothing but the lanes: the upper half onto the
 * lower, and so on. */
#if BF16 && VECTOR_BYTES == 64
INLINE real sum_lanes(vec v) /* in the order of the tree below, whatever a compiler's header has */
{
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return two[0] + two[1];
}
INLINE real max_lanes(vec v)
{
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return two[0] > two[1] ? two[0] : two[1];
}
#elif VECTOR_BYTES == 64 && REAL_BITS == 32
INLINE real sum_lanes(vec v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE real max_lanes(vec v) { return _mm512_reduce_max_ps((__m512)v); }
#elif VECTOR_BYTES == 64
INLINE real sum_lanes(vec v) { return _mm512_reduce_add_pd((__m512d)v); }
INLINE real max_lanes(vec v) { return _mm512_reduce_max_pd((__m512d)v); }
#else
INLINE real sum_lanes(vec v)
{
#pragma GCC unroll 4
    for (int half = VL / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            v[i] += v[i + half];
    return v[0];
}
INLINE real max_lanes(vec v)
{
#pragma GCC unroll 4
    for (int half = VL / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            v[i] = v[i] > v[i + half] ? v[i] : v[i + half];
    return v[0];
}
#endif

/* zip_low(a, b) = a0 b0 a1 b1 …; zip_high the same from the upper halves. */
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
#if VECTOR_BYTES * 8 / REAL_BITS == 16
INLINE vec zip_low(vec a, vec b) { return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23); }
INLINE vec zip_high(vec a, vec b)
{
    return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
INLINE vec zip_low(vec a, vec b) { return SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
INLINE vec zip_high(vec a, vec b) { return SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
INLINE vec zip_low(vec a, vec b) { return SHUFFLE(a, b, 0, 4, 1, 5); }
INLINE vec zip_high(vec a, vec b) { return SHUFFLE(a, b, 2, 6, 3, 7); }
#else
INLINE vec zip_low(vec a, vec b) { return SHUFFLE(a, b, 0, 2); }
INLINE vec zip_high(vec a, vec b) { return SHUFFLE(a, b, 1, 3); }
#endif

/* Transpose a VL x VL block in registers: log2(VL) perfect shuffles. */
INLINE void transpose(vec *rows)
{
    for (ptrdiff_t round = 1; round < VL; round *= 2) {
        vec next[VECTOR_BYTES / sizeof(real)];
#pragma GCC unroll 16
        for (ptrdiff_t i = 0; i < VL / 2; i++) {
            next[2 * i] = zip_low(rows[i], rows[i + VL / 2]);
            next[2 * i + 1] = zip_high(rows[i], rows[i + VL / 2]);
        }
#pragma GCC unroll 16
        for (ptrdiff_t i = 0; i < VL; i++)
            rows[i] = next[i];
    }
}

/* The sum (maximum) of the lanes of each of VL vectors, as the lanes of one: a transposition that adds on the way.
 * `rows` is used up. */
INLINE vec sum_rows(vec *rows)
{
#pragma GCC unroll 4
    for (ptrdiff_t half = VL / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (ptrdiff_t i = 0; i < half; i++)
            rows[i] = zip_low(rows[i], rows[i + half]) + zip_high(rows[i], rows[i + half]);
    return rows[0];
}
INLINE vec max_rows(vec *rows)
{
#pragma GCC unroll 4
    for (ptrdiff_t half = VL / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (ptrdiff_t i = 0; i < half; i++)
            rows[i] = vmax(zip_low(rows[i], rows[i + half]), zip_high(rows[i], rows[i + half]));
    return rows[0];
}

INLINE ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* Sums over a row are of SPAN lanes, those of WIDE vectors: of the bfloat16 tables 16 on every machine, so that sums
 * are the same bits. `fold` makes one vector of them, the upper half onto the lower as everywhere.
 *
 *     for (ptrdiff_t c = 0; c < n; c += SPAN)
 *         EACH_WIDE(c, n)
 *             sum[u] += load_upto(x + c + u * VL, n - c - u * VL);
 */
#if BF16
enum { WIDE = 64 / VECTOR_BYTES };
#else
enum { WIDE = 1 };
#endif
#define SPAN (WIDE * VL)
#define EACH_WIDE(c, n) _Pragma("GCC unroll 4") for (int u = 0; u < WIDE; u++) if (WIDE == 1 || (c) + u * VL < (n))
INLINE vec fold(vec *v)
{
#pragma GCC unroll 2
    for (int count = WIDE / 2; count > 0; count /= 2)
#pragma GCC unroll 2
        for (int i = 0; i < count; i++)
            v[i] += v[i + count];
    return v[0];
}
INLINE real sum_wide(vec *v) { return sum_lanes(fold(v)); }
