/* Rows of elements that may be half the size: bfloat16, of the bfloat16 tables; and rounding to it. After simd.h. */
#if BF16
/* bfloat16, the upper half of a float: rounded to nearest even; a NaN stays one. */
typedef uint16_t half;
typedef uint32_t uvec __attribute__((vector_size(VECTOR_BYTES)));
typedef half hvec __attribute__((vector_size(VECTOR_BYTES / 2)));

/* The bits of x rounded to bfloat16, in the upper halves: the lower ones are anything here, and zero below. */
INLINE uvec round_upper(vec x)
{
    const uvec b = (uvec)x, up = b + 0x7fff + ((b >> 16) & 1);
#if VECTOR_BYTES == 64
    const __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
    return (uvec)_mm512_mask_set1_epi32((__m512i)up, nan, -1);
#else
    return up | (uvec)(x != x);
#endif
}
INLINE uvec round_bits(vec x) { return round_upper(x) & 0xffff0000u; }
INLINE vec rounded(vec x) { return (vec)round_bits(x); }

/* The upper halves of the elements, and back. */
#if VECTOR_BYTES == 64
INLINE hvec upper(uvec b) { return (hvec)_mm512_cvtepi32_epi16((__m512i)(b >> 16)); }
INLINE vec widen(hvec h) { return (vec)((uvec)_mm512_cvtepu16_epi32((__m256i)h) << 16); }
#elif VECTOR_BYTES == 32
INLINE hvec upper(uvec b)
{
    const __m256i low = (__m256i)(b >> 16);
    return (hvec)_mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
}
INLINE vec widen(hvec h) { return (vec)((uvec)_mm256_cvtepu16_epi32((__m128i)h) << 16); }
#else
INLINE hvec upper(uvec b) { return __builtin_convertvector(b >> 16, hvec); }
INLINE vec widen(hvec h) { return (vec)(__builtin_convertvector(h, uvec) << 16); }
#endif

/* x rounded to bfloat16. AVX512_BF16 has an instruction for it, which takes subnormals as zero. */
#if AMX && !defined(CVIT_AMX_EMULATED) && !defined(CVIT_BF16_EMULATED)
INLINE hvec halves(vec x) { return (hvec)_mm512_cvtneps_pbh((__m512)x); }
#else
INLINE hvec halves(vec x) { return upper(round_upper(x)); }
#endif

INLINE vec load_half(const half *p)
{
    hvec h;
    memcpy(&h, p, sizeof h);
    return widen(h);
}
INLINE void store_half(half *p, vec v)
{
    const hvec h = halves(v);
    memcpy(p, &h, sizeof h);
}
INLINE vec load_half_upto(const half *p, ptrdiff_t n)
{
    if (n >= VL)
        return load_half(p);
    hvec h = {0};
    memcpy(&h, p, (size_t)n * sizeof(half));
    return widen(h);
}
INLINE void store_half_upto(half *p, vec v, ptrdiff_t n)
{
    if (n >= VL) {
        store_half(p, v);
        return;
    }
    const hvec h = halves(v);
    memcpy(p, &h, (size_t)n * sizeof(half));
}
#endif

/* Elements [c, c + n) of a row that may be half, at most a vector of them. */
#if BF16
INLINE vec load_row(const void *row, int is_half, ptrdiff_t c, ptrdiff_t n)
{
    return is_half ? load_half_upto((const half *)row + c, n) : load_upto((const real *)row + c, n);
}
INLINE void store_row(void *row, int is_half, ptrdiff_t c, vec v, ptrdiff_t n)
{
    if (is_half)
        store_half_upto((half *)row + c, v, n);
    else
        store_upto((real *)row + c, v, n);
}
INLINE void *row_at(void *x, int is_half, ptrdiff_t elements)
{
    return is_half ? (void *)((half *)x + elements) : (void *)((real *)x + elements);
}
#else
INLINE vec rounded(vec x) { return x; } /* operands as they are */
INLINE vec load_row(const void *row, int is_half, ptrdiff_t c, ptrdiff_t n)
{
    (void)is_half;
    return load_upto((const real *)row + c, n);
}
INLINE void store_row(void *row, int is_half, ptrdiff_t c, vec v, ptrdiff_t n)
{
    (void)is_half;
    store_upto((real *)row + c, v, n);
}
INLINE void *row_at(void *x, int is_half, ptrdiff_t elements)
{
    (void)is_half;
    return (real *)x + elements;
}
#endif
