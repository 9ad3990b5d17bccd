/* Softmax attention of one head, forward and backward, whole and in parts. */
#include "fuzz.h"

/* What is multiplied: of the tables of bfloat16 rounded. */
PLAIN double factor(cvit_matrix x, ptrdiff_t i, ptrdiff_t j) { return operand(in_matrix(x, i, j), 1); }

/* Probabilities p (T, T), log-sum-exp, o (T, dh), and what roundings of o go by. */
PLAIN void reference(ptrdiff_t T, ptrdiff_t dh, cvit_matrix q, cvit_matrix k, cvit_matrix v, double *p, double *lse,
                     double *o, double *size, double *highest)
{
    const double scale = 1 / sqrt((double)dh);
    memset(o, 0, (size_t)(T * dh) * sizeof *o);
    memset(size, 0, (size_t)(T * dh) * sizeof *size);
    *highest = 0;
    for (ptrdiff_t i = 0; i < T; i++) {
        double top = -INFINITY, sum = 0;
        for (ptrdiff_t t = 0; t < T; t++) {
            double score = 0, magnitude = 0;
            for (ptrdiff_t d = 0; d < dh; d++) {
                score += factor(q, i, d) * factor(k, t, d);
                magnitude += fabs(factor(q, i, d) * factor(k, t, d));
            }
            p[i * T + t] = score * scale;
            top = score * scale > top ? score * scale : top;
            *highest = fmax(*highest, magnitude * scale);
        }
        for (ptrdiff_t t = 0; t < T; t++)
            sum += p[i * T + t] = exp(p[i * T + t] - top);
        lse[i] = top + log(sum);
        for (ptrdiff_t t = 0; t < T; t++) {
            p[i * T + t] /= sum;
            for (ptrdiff_t d = 0; d < dh; d++) {
                o[i * dh + d] += p[i * T + t] * factor(v, t, d);
                size[i * dh + d] += p[i * T + t] * fabs(factor(v, t, d));
            }
        }
    }
}

/* dq, dk, dv (T, dh) each, and their sizes, from o as the forward left it. */
PLAIN void reference_backward(ptrdiff_t T, ptrdiff_t dh, cvit_matrix q, cvit_matrix k, cvit_matrix v, cvit_matrix o,
                              cvit_matrix d_o, const double *p, double *grad, double *size)
{
    const double scale = 1 / sqrt((double)dh);
    memset(grad, 0, (size_t)(3 * T * dh) * sizeof *grad);
    memset(size, 0, (size_t)(3 * T * dh) * sizeof *size);
    double *dq = grad, *dk = grad + T * dh, *dv = dk + T * dh;
    double *size_q = size, *size_k = size + T * dh, *size_v = size_k + T * dh;
    for (ptrdiff_t i = 0; i < T; i++) {
        double delta = 0, size_delta = 0;
        for (ptrdiff_t d = 0; d < dh; d++) {
            delta += factor(d_o, i, d) * in_matrix(o, i, d);
            size_delta += fabs(factor(d_o, i, d) * in_matrix(o, i, d));
        }
        for (ptrdiff_t t = 0; t < T; t++) {
            double dp = 0, size_dp = 0;
            for (ptrdiff_t d = 0; d < dh; d++) {
                dp += factor(d_o, i, d) * factor(v, t, d);
                size_dp += fabs(factor(d_o, i, d) * factor(v, t, d));
            }
            const double share = p[i * T + t], ds = share * (dp - delta) * scale;
            const double size_ds = share * (size_dp + size_delta) * scale;
            for (ptrdiff_t d = 0; d < dh; d++) {
                dq[i * dh + d] += ds * factor(k, t, d);
                size_q[i * dh + d] += size_ds * fabs(factor(k, t, d));
                dk[t * dh + d] += ds * factor(q, i, d);
                size_k[t * dh + d] += size_ds * fabs(factor(q, i, d));
                dv[t * dh + d] += share * factor(d_o, i, d);
                size_v[t * dh + d] += share * fabs(factor(d_o, i, d));
            }
        }
    }
}

static void compare(const char *what, cvit_matrix x, ptrdiff_t T, ptrdiff_t dh, const double *wanted,
                    const double *size, double growth, double relative)
{
    for (ptrdiff_t i = 0; i < T; i++)
        for (ptrdiff_t d = 0; d < dh; d++)
            near(what, i, d, in_matrix(x, i, d), wanted[i * dh + d], size[i * dh + d], growth,
                 relative * size[i * dh + d]);
}

/* The same bits. */
static void same(const char *what, cvit_matrix x, cvit_matrix y, ptrdiff_t first, ptrdiff_t rows, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            const double a = in_matrix(x, first + i, j), b = in_matrix(y, i, j);
            if ((a != b || signbit(a) != signbit(b)) && (a == a || b == b))
                fail("%s (%td, %td) is %.17g as a whole and %.17g in parts", what, first + i, j, a, b);
        }
}

static void once(void)
{
    target = "attention";
    ptrdiff_t T = size_upto(choose(4) == 3 ? 900 : 200), dh = size_upto(200);
    while (T * T * dh > 60000)
        *(T > dh || dh == 1 ? &T : &dh) /= 2;
    if (choose(64) == 63) /* more keys than a block, of few numbers */
        T = 385 + choose(200), dh = 1;
    const kind_of_numbers kind = any(choose(3) == 2 ? 12 : 2), values = any(2);
    const int half = choose(2) && K->half;
    /* one ld for q, k and v, as they stand side by side in a row; the same for o and do */
    const ptrdiff_t offset = choose(8), ld = 3 * dh + offset, size = half ? 2 : K->size;
    const cvit_matrix all = {room(((T - 1) * ld + 3 * dh) * size, choose(16) * size), ld, half};
    for (ptrdiff_t i = 0; i < T; i++)
        for (ptrdiff_t j = 0; j < 3 * dh; j++) {
            const double x = number(j < 2 * dh ? kind : values);
            if (half)
                ((uint16_t *)all.at)[i * ld + j] = narrowed((float)x);
            else
                put(all.at, i * ld + j, x);
        }
    const cvit_matrix q = all, k = {(char *)all.at + dh * size, ld, half}, v = {(char *)k.at + dh * size, ld, half};
    const cvit_matrix o = matrix(T, dh, half);
    void *lse = vector(T);
    void *scratch = room(K->attention_scratch(T, dh, 0) * K->size, 0);
    cvit_attention call = {.tokens = T, .dh = dh, .count = T, .q = q, .k = k, .v = v, .o = o, .lse = lse};
    call.scratch = scratch;
    K->attention(&call);
    agree("o", o, T, dh);
    agree_vector("lse", lse, T);
    double *p = expected(T * T), *of_lse = expected(T), *of_o = expected(T * dh), *size_o = expected(T * dh);
    double *highest = expected(1);
    if (first_of_element)
        reference(T, dh, q, k, v, p, of_lse, of_o, size_o, highest);
    /* A score's roundings, in magnitude, are e^score's relative ones, above the line and below. */
    const double growth = 2 * (double)(dh + 4) * *highest + 2 * (double)T + 24;
    const int tame = growth * (K->size == 8 ? 0x1p-53 : 0x1p-24) < 0.01;
    const double rounded = K->half ? 0x1p-8 : 0;
    if (tame) {
        compare("o", o, T, dh, of_o, size_o, growth, rounded * (half ? 2 : 1));
        for (ptrdiff_t i = 0; i < T; i++)
            near("lse", i, 0, at(lse, i), of_lse[i], *highest + log((double)T) + 1, growth, 0);
    }
    const ptrdiff_t cut = choose(T + 1); /* queries before it and from it on */
    for (int part = 0; part < 2; part++) {
        call.first = part ? cut : 0, call.count = part ? T - cut : cut;
        if (!call.count)
            continue;
        call.o = matrix(call.count, dh, half);
        call.lse = choose(2) ? vector(call.count) : NULL;
        call.scratch = room(K->attention_scratch(T, dh, 0) * K->size, 0);
        K->attention(&call);
        same("o", o, call.o, call.first, call.count, dh);
    }

    target = "attention_backward";
    cvit_matrix d_o = {room(((T - 1) * o.ld + dh) * K->size, 0), o.ld, 0};
    for (ptrdiff_t i = 0; i < T; i++)
        for (ptrdiff_t d = 0; d < dh; d++)
            put(d_o.at, i * o.ld + d, number(values));
    const cvit_matrix dk = matrix(T, dh, 0), dv = {room(((T - 1) * dk.ld + dh) * K->size, 0), dk.ld, 0};
    cvit_attention_backward back = {.tokens = T, .dh = dh, .count = T, .q = q, .k = k, .v = v, .o = o, .d_o = d_o};
    back.lse = lse, back.dq = matrix(T, dh, 0), back.dk = dk, back.dv = dv;
    back.scratch = room(K->attention_scratch(T, dh, 1) * K->size, 0);
    K->attention_backward(&back);
    agree("dq", back.dq, T, dh);
    agree("dk", dk, T, dh);
    agree("dv", dv, T, dh);
    double *grad = expected(3 * T * dh), *sizes = expected(3 * T * dh);
    if (first_of_element)
        reference_backward(T, dh, q, k, v, o, d_o, p, grad, sizes);
    if (tame) { /* probabilities come from the log-sum-exp here; the first table's o is not quite this one's */
        compare("dq", back.dq, T, dh, grad, sizes, 3 * growth + (double)(dh + T), 4 * rounded);
        compare("dk", dk, T, dh, grad + T * dh, sizes + T * dh, 3 * growth + (double)(dh + T), 4 * rounded);
        compare("dv", dv, T, dh, grad + 2 * T * dh, sizes + 2 * T * dh, 2 * growth + (double)T, 2 * rounded);
    }
    const cvit_matrix whole_k = dk, whole_v = dv;
    for (int part = 0; part < 2; part++) { /* of the keys: dk and dv of each are the whole's */
        back.first = part ? cut : 0, back.count = part ? T - cut : cut;
        if (!back.count)
            continue;
        back.dq = matrix(T, dh, 0), back.dk = matrix(T, dh, 0);
        back.dv = (cvit_matrix){room(((T - 1) * back.dk.ld + dh) * K->size, 0), back.dk.ld, 0};
        back.scratch = room(K->attention_scratch(T, dh, 1) * K->size, 0);
        K->attention_backward(&back);
        const ptrdiff_t at_k = back.first * back.dk.ld * K->size;
        same("dk", whole_k, (cvit_matrix){(char *)back.dk.at + at_k, back.dk.ld, 0}, back.first, back.count, dh);
        same("dv", whole_v, (cvit_matrix){(char *)back.dv.at + at_k, back.dv.ld, 0}, back.first, back.count, dh);
    }
}
