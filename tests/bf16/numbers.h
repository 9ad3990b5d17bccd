/* What kernels.c calls kernels with: memory and numbers of a case, a checksum of results, and packed operands. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cvit.h"
#include "team.h"

static const cvit_kernels *K;
static FILE *out;
enum { ROOM = 1 << 26 };
static char *arena;
static size_t used;
static int halves; /* whether this table takes rows of bfloat16 */

/* ------------------------------------------------------------------------------------------------ numbers and sums */
static uint64_t state;
static uint32_t draw(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

/* Memory of a case, all ones: a NaN wherever a kernel reads what nobody wrote. */
static void *fresh(ptrdiff_t bytes)
{
    char *at = arena + used;
    used += ((size_t)bytes + 63) / 64 * 64 + 64;
    if (used > ROOM)
        abort();
    memset(at, 0xff, (size_t)bytes);
    return at;
}
static float *floats(ptrdiff_t n) { return fresh(n * 4); }
/* n numbers between -spread and spread */
static float *numbers(ptrdiff_t n, float spread)
{
    float *x = floats(n);
    for (ptrdiff_t i = 0; i < n; i++)
        x[i] = spread * ((float)(int32_t)(draw() & 0xffffff) - 8388608.0f) / 8388608.0f;
    return x;
}
/* The same with what is no number or nearly so, every few of them. */
static float *odd_numbers(ptrdiff_t n, float spread)
{
    static const uint32_t odd[] = {0x7f800000, 0xff800000, 0x7fc00000, 0x00000000, 0x80000000, 0x00000001,
                                   0x807fffff, 0x7f7fffff, 0xff7fffff, 0x00800000, 0x42c80000, 0xc2c80000};
    float *x = numbers(n, spread);
    for (ptrdiff_t i = draw() % 5; i < n; i += 1 + draw() % 5)
        memcpy(x + i, odd + draw() % 12, 4);
    return x;
}

static cvit_matrix matrix(float *x, ptrdiff_t ld) { return (cvit_matrix){.at = x, .ld = ld}; }
/* A matrix of numbers, rounded to bfloat16 with `half`. */
static cvit_matrix as_rows(float *x, ptrdiff_t n, ptrdiff_t ld, int half)
{
    cvit_matrix m = {.at = x, .ld = ld, .half = half};
    if (half) {
        uint16_t *to = m.at = fresh(n * 2);
        for (ptrdiff_t i = 0; i < n; i++)
            memcpy(to + i, (char *)(x + i) + 2, 2);
    }
    return m;
}
static cvit_matrix room(ptrdiff_t n, ptrdiff_t ld, int half)
{
    return (cvit_matrix){.at = fresh(half ? n * 2 : n * 4), .ld = ld, .half = half};
}

/* A sum of all bits; every NaN counts as the same one. */
static uint64_t sum;
static void count(uint64_t bits) { sum = (sum ^ bits) * 0x9e3779b97f4a7c15u ^ sum >> 29; }
static void count_matrix(cvit_matrix x, ptrdiff_t rows, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t c = 0; c < n; c++) {
            uint32_t bits = 0;
            if (x.half)
                memcpy((char *)&bits + 2, (uint16_t *)x.at + i * x.ld + c, 2);
            else
                memcpy(&bits, (float *)x.at + i * x.ld + c, 4);
            count((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : bits);
        }
}
static void count_floats(const float *x, ptrdiff_t n) { count_matrix(matrix((float *)x, n), 1, n); }
static void count_double(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, 8);
    count(x != x ? 1 : bits);
}
static void say(const char *kernel, const char *variant, ptrdiff_t a, ptrdiff_t b, ptrdiff_t c)
{
    fprintf(out, "%s%s %td %td %td %016llx\n", kernel, variant, a, b, c, (unsigned long long)sum);
    sum = 0;
    used = 0;
}

/* ----------------------------------------------------------------------------------------------- packed operands */
static ptrdiff_t up(ptrdiff_t n, ptrdiff_t to) { return (n + to - 1) / to * to; }
static cvit_rows new_rows(ptrdiff_t rows, ptrdiff_t k)
{
    return (cvit_rows){fresh(up(rows, K->rows_unit + 32) * K->lda * (k / K->kc + 1) * K->rows_size), rows};
}
static cvit_panels new_panels(ptrdiff_t depth, ptrdiff_t n)
{
    return (cvit_panels){fresh(up(depth, K->depth_unit + 32) * up(n, K->nr + 32) * K->panels_size), depth, 0};
}
static float *identity(ptrdiff_t n)
{
    float *x = floats(n * n);
    memset(x, 0, (size_t)(n * n) * 4);
    for (ptrdiff_t i = 0; i < n; i++)
        x[i * n + i] = 1;
    return x;
}
/* What packed rows (m, k) hold. */
static void count_rows(cvit_rows a, ptrdiff_t m, ptrdiff_t k)
{
    cvit_panels b = new_panels(k, k);
    cvit_matrix c = room(m * k, k, 0);
    K->pack_panels(&(cvit_pack_panels){.k = k, .n = k, .x = matrix(identity(k), k), .b = b});
    K->gemm(&(cvit_gemm){.m = m, .n = k, .k = k, .a = a, .b = b, .c = c});
    count_matrix(c, m, k);
}
/* What panels (k, n) hold. */
static void count_panels(cvit_panels b, ptrdiff_t k, ptrdiff_t n)
{
    cvit_rows a = new_rows(k, k);
    cvit_matrix c = room(k * n, n, 0);
    K->pack_rows(&(cvit_pack_rows){.rows = k, .k = k, .x = matrix(identity(k), k), .scale = 1, .a = a});
    K->gemm(&(cvit_gemm){.m = k, .n = n, .k = k, .a = a, .b = b, .c = c});
    count_matrix(c, k, n);
}
