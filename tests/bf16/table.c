/* A table of kernels whose packed operands are bfloat16: plain loops in the place of every kernel that reads or writes
 * one, the others as a float32 table has them. It shows that nothing outside csrc knows what a packed operand holds.
 *
 * bfloat16 is the upper half of a float, rounded to nearest even. Tokens, sums and gradients stay float. Packed rows
 * lie as csrc/kernels/gemm.inc says; every panel is nr columns wide, the last one too; the left operand of gemm_columns
 * is a plain (k, m).
 */
#include <stdint.h>
#include <string.h>

#include "cvit.h"

typedef uint16_t packed;

static const cvit_kernels *f32;

static packed rounded(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x)
        return (packed)(bits >> 16 | 0x40); /* a NaN stays one */
    return (packed)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float widened(packed x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static packed *in_rows(cvit_rows a, ptrdiff_t i, ptrdiff_t p)
{
    return (packed *)a.at + p / f32->kc * a.rows * f32->lda + i * f32->lda + p % f32->kc;
}

static packed *in_panels(cvit_panels b, ptrdiff_t p, ptrdiff_t j)
{
    return (packed *)b.at + j / f32->nr * f32->nr * b.depth + (b.row + p) * f32->nr + j % f32->nr;
}

static float *row_of(cvit_matrix x, ptrdiff_t i) { return (float *)x.at + i * x.ld; }

/* One row of n floats, to row i of packed rows and of panels, or to one of them. */
static void round_row(ptrdiff_t n, const float *x, ptrdiff_t i, cvit_rows a, cvit_panels b)
{
    for (ptrdiff_t c = 0; c < n; c++) {
        if (a.at)
            *in_rows(a, i, c) = rounded(x[c]);
        if (b.at)
            *in_panels(b, i, c) = rounded(x[c]);
    }
}

static void gemm(const cvit_gemm *g)
{
    for (ptrdiff_t i = 0; i < g->m; i++)
        for (ptrdiff_t j = 0; j < g->n; j++) {
            float sum = g->bias ? ((const float *)g->bias)[j] : 0;
            for (ptrdiff_t p = 0; p < g->k; p++)
                sum += widened(*in_rows(g->a, i, p)) * widened(*in_panels(g->b, p, j));
            row_of(g->c, i)[j] = g->add.at ? sum + row_of(g->add, i)[j] : sum;
        }
}

static void gemm_columns(const cvit_gemm_columns *g)
{
    const packed *a = g->a;
    float *sums = g->column_sums;
    for (ptrdiff_t j = 0; j < g->n; j++) {
        for (ptrdiff_t i = 0; i < g->m; i++) {
            float sum = 0;
            for (ptrdiff_t p = 0; p < g->k; p++)
                sum += widened(a[p * g->m + i]) * widened(*in_panels(g->b, p, j));
            row_of(g->c, i)[j] = g->accumulate ? row_of(g->c, i)[j] + sum : sum;
        }
        float sum = 0;
        for (ptrdiff_t p = 0; p < g->k; p++)
            sum += widened(*in_panels(g->b, p, j));
        if (sums)
            sums[j] = g->accumulate ? sums[j] + sum : sum;
    }
}

static void pack_rows(const cvit_pack_rows *call)
{
    for (ptrdiff_t i = 0; i < call->rows; i++)
        for (ptrdiff_t p = 0; p < call->k; p++)
            *in_rows(call->a, i, p) = rounded(row_of(call->x, i)[p] * (float)call->scale);
}

static void pack_both(const cvit_pack_rows *call)
{
    for (ptrdiff_t i = 0; i < call->rows; i++)
        round_row(call->k, row_of(call->x, i), i, call->a, call->b);
}

static void pack_columns(const cvit_pack_columns *call)
{
    const float *mean = call->mean, *rstd = call->rstd, *scale = call->scale, *shift = call->shift;
    packed *a = call->a;
    for (ptrdiff_t p = 0; p < call->k; p++)
        for (ptrdiff_t i = 0; i < call->m; i++) {
            float x = row_of(call->x, p)[i];
            if (mean)
                x = (x - mean[p]) * rstd[p] * (scale ? scale[i] : 1) + (shift ? shift[i] : 0);
            a[p * call->m + i] = rounded(x);
        }
}

static void pack_panels(const cvit_pack_panels *call)
{
    const float *factor = call->factor;
    for (ptrdiff_t p = 0; p < call->k; p++)
        for (ptrdiff_t j = 0; j < call->n; j++)
            *in_panels(call->b, p, j) = rounded(row_of(call->x, p)[j] * (factor ? factor[j] : 1));
}

static void pack_panels_transposed(const cvit_pack_panels *call)
{
    const float *factor = call->factor;
    for (ptrdiff_t p = 0; p < call->k; p++)
        for (ptrdiff_t j = 0; j < call->n; j++)
            *in_panels(call->b, p, j) = rounded(row_of(call->x, j)[p] * (factor ? factor[p] : 1));
}

/* The kernels below run the float32 one row by row, to a row of floats that is then rounded. */
static void norm(const cvit_norm *call)
{
    if (!call->a.at) {
        f32->norm(call);
        return;
    }
    float y[call->d];
    for (ptrdiff_t i = 0; i < call->rows; i++) {
        cvit_norm one = *call;
        one.rows = 1;
        one.x.at = row_of(call->x, i);
        one.y = (cvit_matrix){y, call->d};
        one.a = (cvit_rows){0};
        one.mean = call->mean ? (float *)call->mean + i : NULL;
        one.rstd = call->mean ? (float *)call->rstd + i : NULL;
        f32->norm(&one);
        round_row(call->d, y, i, call->a, (cvit_panels){0});
    }
}

static void activation(const cvit_activation *call)
{
    if (!call->a.at) {
        f32->activation(call);
        return;
    }
    float y[call->n];
    for (ptrdiff_t i = 0; i < call->rows;
         i++) { /* a may begin where x does: its rows are shorter, and never overtake x's */
        cvit_activation one = *call;
        one.rows = 1;
        one.x.at = row_of(call->x, i);
        one.value.at = call->value.at ? row_of(call->value, i) : NULL;
        one.y = (cvit_matrix){y, call->n};
        one.a = (cvit_rows){0};
        f32->activation(&one);
        round_row(call->n, y, i, call->a, (cvit_panels){0});
    }
}

static void activation_backward(const cvit_activation_backward *call)
{
    const size_t bytes = (size_t)call->n * sizeof(float);
    float dx[call->n], dvalue[call->n];
    for (ptrdiff_t i = 0; i < call->rows; i++) {
        cvit_activation_backward one = {.kind = call->kind, .rows = 1, .n = call->n};
        one.x.at = row_of(call->x, i);
        one.value.at = call->value.at ? row_of(call->value, i) : NULL;
        memcpy(dx, row_of(call->dy, i), bytes);
        one.dy = (cvit_matrix){dx, call->n};
        one.dvalue = (cvit_matrix){call->value.at ? dvalue : NULL, call->n};
        f32->activation_backward(&one);
        round_row(call->n, dx, i, call->a, call->b);
        if (!call->a.at)
            memcpy(row_of(call->dy, i), dx, bytes);
        if (!call->value.at)
            continue;
        round_row(call->n, dvalue, i, call->a_value, call->b_value);
        if (!call->a_value.at)
            memcpy(row_of(call->dvalue, i), dvalue, bytes);
    }
}

/* The table that stands on a float32 one. */
const cvit_kernels *cvit_emulated_bf16(const cvit_kernels *table)
{
    static cvit_kernels bf16;
    f32 = table;
    bf16 = *table;
    bf16.element = "bf16";
    bf16.packed_size = sizeof(packed);
    bf16.gemm = gemm;
    bf16.gemm_columns = gemm_columns;
    bf16.pack_rows = pack_rows;
    bf16.pack_both = pack_both;
    bf16.pack_columns = pack_columns;
    bf16.pack_panels = pack_panels;
    bf16.pack_panels_transposed = pack_panels_transposed;
    bf16.norm = norm;
    bf16.activation = activation;
    bf16.activation_backward = activation_backward;
    return &bf16;
}
