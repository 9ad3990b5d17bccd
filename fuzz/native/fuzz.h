/* What every target here is made of: sizes and numbers drawn from the fuzzer's input, buffers that end where their last
 * element does, and comparisons.
 *
 * A target defines `once`, which draws a call of its kernels, makes it on the table K and compares what comes out with
 * simple loops in double. It runs once on every table that this machine has, on the same draws. Tables of one element
 * type follow each other: what the loops gave for the first is kept for the others (`expected`), and the tables of
 * bfloat16 must give the same bits (`agree`).
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cvit.h"
#include "team.h"

/* Loops in double run without the sanitizers' checks and the fuzzer's counters. */
#if defined(__clang__)
#define PLAIN __attribute__((no_sanitize("address", "undefined", "coverage"))) static inline
#else
#define PLAIN __attribute__((no_sanitize("address", "undefined"))) static inline
#endif

static const cvit_kernels *K;
static const char *target; /* what is called, for a message */
static void once(void);

/* Says what differs, and ends the process: the fuzzer keeps the input. */
__attribute__((format(printf, 1, 2))) static inline void fail(const char *format, ...)
{
    __builtin_va_list values;
    __builtin_va_start(values, format);
    fprintf(stderr, "%s of %s %s: ", target, K->isa, K->element);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    __builtin_va_end(values);
    abort();
}

/* ------------------------------------------------------------------------------------------------- choices, numbers */
static const uint8_t *input;
static size_t input_left;
static uint64_t state; /* of the numbers */

static inline ptrdiff_t byte(void)
{
    if (!input_left)
        return 0;
    input_left--;
    return *input++;
}
/* 0 … n - 1 */
static inline ptrdiff_t choose(ptrdiff_t n) { return (n > 256 ? byte() * 256 + byte() : byte()) % n; }
/* 1 … most, seven times of eight small: around vectors and tiles is where they are wrong. */
static inline ptrdiff_t size_upto(ptrdiff_t most)
{
    const ptrdiff_t small = most < 40 ? most : 40;
    return 1 + (choose(8) ? choose(small) : choose(most));
}
static inline uint32_t draw(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

/* Of the numbers of a buffer: their spread, and whether some are no number or nearly so. */
enum { USUAL, TINY, WILD };
typedef struct {
    double spread;
    int odd;
} kind_of_numbers;
static int wild; /* among this call's numbers are some whose products overflow: `near` has nothing to say */

static inline kind_of_numbers plain(double spread) { return (kind_of_numbers){spread, USUAL}; }
static inline kind_of_numbers any(double spread)
{
    const ptrdiff_t chosen = choose(8);
    wild |= chosen == 7;
    return (kind_of_numbers){spread, chosen == 7 ? WILD : chosen == 6 ? TINY : USUAL};
}

static inline double number(kind_of_numbers kind)
{
    static const float tiny[] = {0, -0.0f, 0x1p-149f, -0x1p-127f, 0x1p-126f, -1.1755e-38f, 100, -100};
    static const float huge[] = {INFINITY, -INFINITY, NAN, 0, 3.4028e+38f, -3.40282e+38f, 1e30f, -1e20f};
    static const double tiny_doubles[] = {0, -0.0, 0x1p-1074, -0x1p-1023, 0x1p-1022, -2.23e-308, 900, -900};
    static const double huge_doubles[] = {INFINITY, -INFINITY, NAN, 0, 1.79e308, -1.7e308, 1e200, -1e160};
    const uint32_t word = draw();
    if (kind.odd && word % 5 == 0) {
        const uint32_t i = (word >> 8) % 8;
        return K->size == 8 ? (kind.odd == WILD ? huge_doubles : tiny_doubles)[i]
                            : (double)(kind.odd == WILD ? huge : tiny)[i];
    }
    return kind.spread * ((double)(word >> 8) - 8388608.0) / 8388608.0;
}

/* -------------------------------------------------------------------------------------------------------- elements */
PLAIN float widened(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
/* To bfloat16, ties to even; a NaN stays one. */
PLAIN uint16_t narrowed(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
PLAIN double at(const void *x, ptrdiff_t i) { return K->size == 8 ? ((const double *)x)[i] : ((const float *)x)[i]; }
PLAIN void put(void *x, ptrdiff_t i, double value)
{
    if (K->size == 8)
        ((double *)x)[i] = value;
    else
        ((float *)x)[i] = (float)value;
}
PLAIN double in_matrix(cvit_matrix x, ptrdiff_t i, ptrdiff_t j)
{
    return x.half ? widened(((const uint16_t *)x.at)[i * x.ld + j]) : at(x.at, i * x.ld + j);
}
/* In the table's own precision: x as a real number, and what its products read of it, with subnormal numbers as zero
 * (the rounding takes them as they are, so the multiplication comes first). */
PLAIN double real(double x) { return K->size == 8 ? x : (float)x; }
PLAIN double operand(double x, double factor)
{
    if (K->size == 8)
        return x * factor;
    const float product = (float)x * (float)factor;
    return K->half ? widened(narrowed(product)) : product;
}

/* --------------------------------------------------------------------------------------------------------- buffers */
enum { MOST_BUFFERS = 128 };
static struct {
    void *memory;
    cvit_matrix x; /* a matrix whose rows lie apart: what is between them stays as it is */
    ptrdiff_t rows, n;
} buffers[MOST_BUFFERS];
static int buffer_count;

/* `bytes` on a 64-byte boundary, and `offset` bytes behind it; all ones, a NaN wherever somebody reads what nobody
 * wrote. */
static inline void *room(ptrdiff_t bytes, ptrdiff_t offset)
{
    char *memory;
    if (buffer_count == MOST_BUFFERS || posix_memalign((void **)&memory, 64, (size_t)(bytes + offset)))
        abort();
    memset(memory, 0xff, (size_t)(bytes + offset));
    memset(&buffers[buffer_count], 0, sizeof *buffers);
    buffers[buffer_count++].memory = memory;
    return memory + offset;
}
static inline void free_buffers(void)
{
    for (int b = 0; b < buffer_count; b++) {
        const cvit_matrix x = buffers[b].x;
        const size_t size = x.half ? 2 : (size_t)K->size;
        for (ptrdiff_t i = 0; i + 1 < buffers[b].rows; i++)
            for (const uint8_t *p = (const uint8_t *)x.at + (size_t)(i * x.ld + buffers[b].n) * size,
                               *end = (const uint8_t *)x.at + (size_t)((i + 1) * x.ld) * size;
                 p < end; p++)
                if (*p != 0xff)
                    fail("something was written between the rows of a matrix of %td columns, behind row %td",
                         buffers[b].n, i);
        free(buffers[b].memory);
    }
    buffer_count = 0;
}

/* (rows, n), somewhere in a line, with gaps between its rows. */
static inline cvit_matrix matrix(ptrdiff_t rows, ptrdiff_t n, int half)
{
    const ptrdiff_t size = half ? 2 : K->size, ld = n + choose(4) * choose(8), offset = choose(16) * size;
    const cvit_matrix x = {room(((rows - 1) * ld + n) * size, offset), ld, half};
    buffers[buffer_count - 1].x = x;
    buffers[buffer_count - 1].rows = rows;
    buffers[buffer_count - 1].n = n;
    return x;
}
static inline cvit_matrix filled(ptrdiff_t rows, ptrdiff_t n, int half, kind_of_numbers kind)
{
    const cvit_matrix x = matrix(rows, n, half);
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < n; j++)
            if (half)
                ((uint16_t *)x.at)[i * x.ld + j] = narrowed((float)number(kind));
            else
                put(x.at, i * x.ld + j, number(kind));
    return x;
}
/* The same numbers in other memory, of the same shape. */
static inline cvit_matrix copied(cvit_matrix x, ptrdiff_t rows, ptrdiff_t n)
{
    const cvit_matrix y = matrix(rows, n, x.half);
    const size_t size = x.half ? 2 : (size_t)K->size;
    for (ptrdiff_t i = 0; i < rows; i++)
        memcpy((char *)y.at + (size_t)(i * y.ld) * size, (char *)x.at + (size_t)(i * x.ld) * size, (size_t)n * size);
    return y;
}
static inline void *vector(ptrdiff_t n) { return room(n * K->size, choose(16) * K->size); }
static inline void *filled_vector(ptrdiff_t n, kind_of_numbers kind)
{
    void *x = vector(n);
    for (ptrdiff_t i = 0; i < n; i++)
        put(x, i, number(kind));
    return x;
}
static inline cvit_matrix none(void) { return (cvit_matrix){0}; }

/* ------------------------------------------------------------------------------------------------- packed operands */
static inline ptrdiff_t up(ptrdiff_t n, ptrdiff_t to) { return (n + to - 1) / to * to; }
static inline cvit_rows packed_rows(ptrdiff_t rows, ptrdiff_t k)
{
    return (cvit_rows){room(up(rows, K->rows_unit) * K->lda * ((k + K->kc - 1) / K->kc) * K->rows_size, 0), rows};
}
static inline cvit_panels panels(ptrdiff_t depth, ptrdiff_t n)
{
    const ptrdiff_t columns = up(n, K->half ? 32 : K->vl);
    return (cvit_panels){room(up(depth, K->depth_unit) * columns * K->panels_size, 0), depth, 0};
}
static inline void *packed_columns(ptrdiff_t k, ptrdiff_t m)
{
    return room(up(k, K->depth_unit) * ((m + K->mr - 1) / K->mr) * up(K->mr, K->vl) * K->rows_size, 0);
}
/* Element (i, p) of packed rows, as the gemm.inc of each kind of table describes them. */
PLAIN double in_rows(cvit_rows a, ptrdiff_t i, ptrdiff_t p)
{
    const ptrdiff_t kc = K->kc, block = p / kc, inside = p % kc;
    if (K->rows_size == 2)
        return widened(((const uint16_t *)a.at)[block * up(a.rows, 32) * kc + i / 32 * 32 * kc + inside / 32 * 1024
                                                + i % 32 * 32 + inside % 32]);
    return at(a.at, block * a.rows * K->lda + i * K->lda + inside);
}
/* Element (p, j) of panels of n columns. */
PLAIN double in_panels(cvit_panels b, ptrdiff_t p, ptrdiff_t j, ptrdiff_t n)
{
    p += b.row;
    if (K->half)
        return widened(((const uint16_t *)b.at)[j / 32 * up(b.depth, 32) * 32 + p / 2 * 64 + j % 32 * 2 + p % 2]);
    const ptrdiff_t first = j / K->nr * K->nr, width = n - first >= K->nr ? K->nr : up(n - first, K->vl);
    return at(b.at, first * b.depth + p * width + j - first);
}

/* ----------------------------------------------------------------------------------------------------- comparisons */
static int first_of_element;
enum { KEPT = 1 << 22 };
static double *kept;
static ptrdiff_t kept_used;

/* Room for n results in double, which the first table of an element type has to fill: the others find them there. */
static inline double *expected(ptrdiff_t n)
{
    if (!kept)
        kept = malloc(KEPT * sizeof *kept);
    kept_used += n;
    if (kept_used > KEPT)
        abort();
    return kept + kept_used - n;
}

/* Of bfloat16: the same bits as the first table's, any NaN the same. */
static inline void agree(const char *what, cvit_matrix x, ptrdiff_t rows, ptrdiff_t n)
{
    if (!K->half)
        return;
    double *others = expected(rows * n);
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            const double value = in_matrix(x, i, j), other = others[i * n + j];
            if (first_of_element)
                others[i * n + j] = value;
            else if ((value != other || signbit(value) != signbit(other)) && (value == value || other == other))
                fail("%s (%td, %td) is %.9g, another table's %.9g", what, i, j, value, other);
        }
}
static inline void agree_vector(const char *what, void *x, ptrdiff_t n) { agree(what, (cvit_matrix){x, n, 0}, 1, n); }
static inline void agree_number(const char *what, double x)
{
    if (!K->half)
        return;
    double *other = expected(1);
    if (first_of_element)
        *other = x;
    else if (x != *other && (x == x || *other == *other))
        fail("%s is %.17g, another table's %.17g", what, x, *other);
}

/* `found` is `wanted` but for `growth` roundings of half a unit each, of terms that add up to `size` in magnitude, and
 * `more`; and for what is lost as subnormal. */
PLAIN void near(const char *what, ptrdiff_t i, ptrdiff_t j, double found, double wanted, double size, double growth,
                double more)
{
    const int wide = K->size == 8;
    const double allowed = growth * (wide ? 0x1p-53 : 0x1p-24) * size + more + (wide ? 1e-300 : 1e-36) * (1 + growth);
    if (wild)
        return;
    if (!(fabs(found - wanted) <= allowed))
        fail("%s (%td, %td) is %.17g and not %.17g: off by %.3g where %.3g is allowed", what, i, j, found, wanted,
             fabs(found - wanted), allowed);
}
/* What rounding to bfloat16 may add. */
PLAIN double half_unit(double x) { return fabs(x) * 0x1p-8; }

/* ------------------------------------------------------------------------------------------------------ all tables */
static inline int runs_here(const cvit_table *table)
{
#ifdef CVIT_AMX_EMULATED /* its tiles are plain C, the rest is AVX-512 with AVX512_BF16's conversions emulated, too */
    if (!strcmp(table->kernels->isa, "amx"))
        return __builtin_cpu_supports("avx512bw") != 0;
#endif
    return table->supported;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const elements[] = {"f32", "f64", "bf16", "bf16-fast"};
    int count;
    const cvit_table *tables = cvit_tables(&count);
    for (int e = 0; e < 4; e++) {
        first_of_element = 1;
        for (int i = 0; i < count; i++) {
            K = tables[i].kernels;
            if (strcmp(K->element, elements[e]) || !runs_here(&tables[i]))
                continue;
            input = data, input_left = size, kept_used = 0, wild = 0;
            state = (uint64_t)choose(1 << 16);
            const cvit_float_mode before = cvit_float_enter();
            K->enter();
            once();
            free_buffers();
            K->leave();
            cvit_float_leave(before);
            first_of_element = 0;
        }
    }
    return 0;
}

#ifdef RUNS /* without a fuzzer: so many inputs of its own, from a seed that may be given */
int main(int count, char **arguments)
{
    uint64_t seed = count > 1 ? strtoull(arguments[1], NULL, 10) : 0;
    uint8_t bytes[64];
    for (long run = 0; run < (count > 2 ? atol(arguments[2]) : RUNS); run++) {
        for (size_t i = 0; i < sizeof bytes; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            bytes[i] = (uint8_t)(seed >> 40);
        }
        LLVMFuzzerTestOneInput(bytes, sizeof bytes);
    }
    return 0;
}
#endif
