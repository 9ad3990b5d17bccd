/* What heads take besides attention: attention of one query over all keys, and rotary positions. */
#include "fuzz.h"

static void attend(void)
{
    target = "attend";
    const ptrdiff_t T = size_upto(500), dh = size_upto(T > 100 ? 40 : 200);
    const kind_of_numbers kind = any(choose(3) == 2 ? 10 : 2);
    void *q = filled_vector(dh, kind), *d_o = filled_vector(dh, kind), *o = vector(dh), *dq = vector(dh);
    const cvit_matrix k = filled(T, dh, 0, kind), v = filled(T, dh, 0, kind), dk = matrix(T, dh, 0);
    const cvit_matrix dv = matrix(T, dh, 0);
    cvit_attend call = {.tokens = T, .dh = dh, .q = q, .k = k, .v = v, .o = o};
    call.scratch = room(K->attend_scratch(T) * K->size, 0);
    K->attend(&call);
    cvit_attend_backward back = {.tokens = T, .dh = dh, .q = q, .d_o = d_o, .k = k, .v = v, .dq = dq, .dk = dk};
    back.dv = dv, back.scratch = room(K->attend_scratch(T) * K->size, 0);
    K->attend_backward(&back);
    agree_vector("o", o, dh);
    agree_vector("dq", dq, dh);
    agree("dk", dk, T, dh);
    agree("dv", dv, T, dh);

    const double scale = 1 / sqrt((double)dh);
    double *p = expected(T), *dp = expected(T), *size_dp = expected(T), *ds = expected(T), *size_ds = expected(T);
    double top = -INFINITY, highest = 0, sum = 0, mean = 0, size_mean = 0;
    for (ptrdiff_t t = 0; t < T; t++) {
        double score = 0, magnitude = 0;
        dp[t] = size_dp[t] = 0;
        for (ptrdiff_t d = 0; d < dh; d++) {
            score += at(q, d) * in_matrix(k, t, d) * scale;
            magnitude += fabs(at(q, d) * in_matrix(k, t, d)) * scale;
            dp[t] += at(d_o, d) * in_matrix(v, t, d);
            size_dp[t] += fabs(at(d_o, d) * in_matrix(v, t, d));
        }
        p[t] = score;
        top = score > top ? score : top;
        highest = fmax(highest, magnitude);
    }
    for (ptrdiff_t t = 0; t < T; t++)
        sum += p[t] = exp(p[t] - top);
    for (ptrdiff_t t = 0; t < T; t++) {
        p[t] /= sum;
        mean += p[t] * dp[t];
        size_mean += p[t] * size_dp[t];
    }
    const double growth = 2 * (double)(dh + 4) * highest + 2 * (double)T + 24;
    if (!(growth * (K->size == 8 ? 0x1p-53 : 0x1p-24) < 0.01))
        return;
    for (ptrdiff_t t = 0; t < T; t++) {
        ds[t] = p[t] * (dp[t] - mean) * scale;
        size_ds[t] = p[t] * (size_dp[t] + size_mean) * scale;
    }
    for (ptrdiff_t d = 0; d < dh; d++) {
        double of_o = 0, size_o = 0, of_q = 0, size_q = 0;
        for (ptrdiff_t t = 0; t < T; t++) {
            of_o += p[t] * in_matrix(v, t, d), size_o += p[t] * fabs(in_matrix(v, t, d));
            of_q += ds[t] * in_matrix(k, t, d), size_q += size_ds[t] * fabs(in_matrix(k, t, d));
            near("dk", t, d, in_matrix(dk, t, d), ds[t] * at(q, d), size_ds[t] * fabs(at(q, d)),
                 2 * growth + (double)dh, 0);
            near("dv", t, d, in_matrix(dv, t, d), p[t] * at(d_o, d), p[t] * fabs(at(d_o, d)), growth, 0);
        }
        near("o", 0, d, at(o, d), of_o, size_o, growth, 0);
        near("dq", 0, d, at(dq, d), of_q, size_q, 2 * growth + (double)dh, 0);
    }
}

static void rotate(void)
{
    target = "rotate";
    const ptrdiff_t rows = size_upto(60), heads = 1 + choose(6), half = size_upto(70), n = heads * 2 * half;
    const int each = (int)choose(2), back = (int)choose(2);
    const kind_of_numbers kind = any(2);
    cvit_rotate call = {.rows = rows, .heads = heads, .half = half, .each_head = each, .back = back};
    call.x = filled(rows, n, 0, kind);
    call.cosines = filled(rows, (each ? heads : 1) * half, 0, plain(1));
    call.sines = filled(rows, (each ? heads : 1) * half, 0, plain(1));
    const cvit_matrix x = copied(call.x, rows, n);
    K->rotate(&call);
    agree("x", call.x, rows, n);
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t h = 0; h < heads; h++)
            for (ptrdiff_t j = 0; j < half; j++) {
                const ptrdiff_t to = h * 2 * half + j, from = (each ? h * half : 0) + j;
                const double a = in_matrix(x, i, to), b = in_matrix(x, i, to + half);
                const double c = in_matrix(call.cosines, i, from), s = in_matrix(call.sines, i, from) * (back ? -1 : 1);
                near("x", i, to, in_matrix(call.x, i, to), a * c - b * s, fabs(a * c) + fabs(b * s), 3, 0);
                near("x", i, to + half, in_matrix(call.x, i, to + half), b * c + a * s, fabs(b * c) + fabs(a * s), 3,
                     0);
            }
}

static void rotate_frequencies(void)
{
    target = "rotate_frequencies";
    const ptrdiff_t rows = size_upto(60), heads = 1 + choose(6), half = size_upto(70), n = heads * 2 * half;
    const kind_of_numbers kind = any(2);
    cvit_rotate_frequencies call = {.rows = rows, .heads = heads, .half = half};
    call.y = filled(rows, n, 0, kind), call.dy = filled(rows, n, 0, kind);
    call.coordinates = filled_vector(2 * rows, plain(3));
    call.sums = filled_vector(n, kind);
    double *before = expected(n);
    for (ptrdiff_t j = 0; first_of_element && j < n; j++)
        before[j] = at(call.sums, j);
    K->rotate_frequencies(&call);
    agree_vector("sums", call.sums, n);
    for (ptrdiff_t h = 0; h < heads; h++)
        for (ptrdiff_t j = 0; j < half; j++)
            for (ptrdiff_t axis = 0; axis < 2; axis++) {
                const ptrdiff_t to = axis * heads * half + h * half + j, a = h * 2 * half + j, b = a + half;
                double sum = before[to], size = fabs(before[to]);
                for (ptrdiff_t i = 0; i < rows; i++) {
                    const double place = at(call.coordinates, 2 * i + axis);
                    const double one = in_matrix(call.dy, i, b) * in_matrix(call.y, i, a);
                    const double other = in_matrix(call.dy, i, a) * in_matrix(call.y, i, b);
                    sum += (one - other) * place;
                    size += (fabs(one) + fabs(other)) * fabs(place);
                }
                near("sums", axis, h * half + j, at(call.sums, to), sum, size, (double)rows + 5, 0);
            }
}

static void once(void)
{
    switch (choose(3)) {
    case 0: attend(); break;
    case 1: rotate(); break;
    default: rotate_frequencies();
    }
}
