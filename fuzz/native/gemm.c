/* Products and the packers of their operands. */
#include "fuzz.h"

/* c = a @ b + bias + add: operands as doubles, a (m, k) and b (k, n). */
PLAIN void product(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, const double *a, const double *b, double *sum, double *size)
{
    memset(sum, 0, (size_t)(m * n) * sizeof *sum);
    memset(size, 0, (size_t)(m * n) * sizeof *size);
    for (ptrdiff_t i = 0; i < m; i++)
        for (ptrdiff_t p = 0; p < k; p++)
            for (ptrdiff_t j = 0; j < n; j++) {
                sum[i * n + j] += a[i * k + p] * b[p * n + j];
                size[i * n + j] += fabs(a[i * k + p] * b[p * n + j]);
            }
}

/* An operand that is no number makes none of every sum it is in; with `normed` it may not be the kernel's. */
/* `times` the sums, added up one after the other. */
PLAIN void compare(const char *what, cvit_matrix c, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, const double *sum,
                   const double *size, int times, int normed)
{
    for (ptrdiff_t i = 0; i < m; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            const double found = in_matrix(c, i, j), wanted = times * sum[i * n + j], all = times * size[i * n + j];
            if (!normed && all != all && found == found)
                fail("%s (%td, %td) is %g where an operand is no number", what, i, j, found);
            near(what, i, j, found, wanted, all, (double)(times * (k + 8)),
                 c.half ? half_unit(wanted) + half_unit(all) / 1024 : 0);
        }
}

/* Rows of `depth` by n numbers w, or with `transposed` (n, depth), as panels, by two calls; `wanted` becomes what they
 * must hold. */
static cvit_panels panels_of(ptrdiff_t depth, ptrdiff_t n, int way, kind_of_numbers kind, double *wanted)
{
    const int half = way == 2 && choose(2) && K->half;
    const cvit_matrix w = way == 1 ? filled(n, depth, 0, kind) : filled(depth, n, half, kind);
    const cvit_panels b = panels(depth, n);
    void *factor = way < 2 && choose(2) ? filled_vector(way ? depth : n, plain(2)) : NULL;
    const ptrdiff_t cut = choose(depth / 2 + 1) * 2;
    for (int part = 0; part < 2; part++) {
        const ptrdiff_t row = part ? cut : 0, rows = part ? depth - cut : cut;
        if (!rows)
            continue;
        cvit_pack_panels call = {.k = rows, .n = n, .x = w, .factor = factor, .b = b};
        call.b.row = row;
        call.x.at = (char *)w.at + (way == 1 ? row : row * w.ld) * (half ? 2 : K->size);
        if (way == 1) {
            call.factor = factor ? (char *)factor + row * K->size : NULL;
            K->pack_panels_transposed(&call);
        } else if (way == 0) {
            K->pack_panels(&call);
        } else {
            const cvit_rows a = packed_rows(rows, n);
            K->pack_both(&(cvit_pack_rows){.rows = rows, .k = n, .x = call.x, .scale = 1, .a = a, .b = call.b});
            for (ptrdiff_t i = 0; i < rows; i++)
                for (ptrdiff_t p = 0; p < n; p++) {
                    const double there = in_rows(a, i, p), right = operand(in_matrix(w, row + i, p), 1);
                    if (there != right && there == there)
                        fail("packed row %td, %td is %g and not %g", i, p, there, right);
                }
        }
    }
    for (ptrdiff_t p = 0; first_of_element && p < depth; p++)
        for (ptrdiff_t j = 0; j < n; j++)
            wanted[p * n + j] =
                operand(way == 1 ? in_matrix(w, j, p) : in_matrix(w, p, j), factor ? at(factor, way ? p : j) : 1);
    for (ptrdiff_t p = 0; p < depth; p++)
        for (ptrdiff_t j = 0; j < n; j++) {
            const double there = in_panels(b, p, j, n), right = wanted[p * n + j];
            if (there != right && (there == there || right == right))
                fail("row %td, column %td of panels is %g and not %g", p, j, there, right);
        }
    return b;
}

/* m, n, k and a depth of panels, of which a product takes k rows from `row` on. */
typedef struct {
    ptrdiff_t m, n, k, row, depth;
} shape;
static shape any_shape(void)
{
    shape s = {.m = size_upto(100), .n = size_upto(400), .k = size_upto(1000)};
    while (s.m * s.n * s.k > 140000) {
        ptrdiff_t *longest = s.m > s.n ? &s.m : &s.n;
        *(*longest > s.k ? longest : &s.k) /= 2;
    }
    s.row = choose(3) * K->depth_unit;
    s.depth = s.row + s.k;
    if (s.k % K->depth_unit == 0)
        s.depth += choose(40);
    return s;
}

static void by_rows(void)
{
    const shape s = any_shape();
    const ptrdiff_t m = s.m, n = s.n, k = s.k;
    const kind_of_numbers kind = any(2);
    const int half = choose(2) && K->half, way = (int)choose(3), half_result = choose(4) == 3 && K->half;
    const cvit_matrix x = filled(m, k, half, kind);
    const cvit_rows a = packed_rows(m, k);
    const double scale = choose(2) ? 1 : 0.3;
    double *left = expected(m * k), *right = expected(s.depth * n), *sum = expected(m * n), *size = expected(m * n);
    K->pack_rows(&(cvit_pack_rows){.rows = m, .k = k, .x = x, .scale = scale, .a = a});
    const cvit_panels b = panels_of(s.depth, n, way, kind, right);
    if (first_of_element) {
        for (ptrdiff_t i = 0; i < m; i++)
            for (ptrdiff_t p = 0; p < k; p++)
                left[i * k + p] = operand(in_matrix(x, i, p), scale);
        product(m, n, k, left, right + s.row * n, sum, size);
    }
    cvit_gemm g = {.m = m, .n = n, .k = k, .a = a, .b = b, .c = matrix(m, n, half_result)};
    g.b.row = s.row;
    g.bias = choose(2) ? filled_vector(n, kind) : NULL;
    if (!half_result && choose(2))
        g.add = filled(m, n, 0, kind);
    g.hint.c_is_cached = (int)choose(2);
    if (choose(2))
        g.hint.next = x;
    K->gemm(&g);
    double *all = expected(m * n), *sizes = expected(m * n);
    if (first_of_element)
        for (ptrdiff_t i = 0; i < m; i++)
            for (ptrdiff_t j = 0; j < n; j++) {
                const double bias = g.bias ? at(g.bias, j) : 0, add = g.add.at ? in_matrix(g.add, i, j) : 0;
                all[i * n + j] = sum[i * n + j] + bias + add;
                sizes[i * n + j] = size[i * n + j] + fabs(bias) + fabs(add);
            }
    compare("c", g.c, m, n, k, all, sizes, 1, 0);
    agree("c", g.c, m, n);
    if (half_result)
        return;
    g.add = g.c; /* once more, onto what there is */
    const cvit_matrix before = copied(g.c, m, n);
    K->gemm(&g);
    for (ptrdiff_t i = 0; i < m; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            const double there = in_matrix(before, i, j) + (g.bias ? at(g.bias, j) : 0);
            near("c, accumulated,", i, j, in_matrix(g.c, i, j), sum[i * n + j] + there,
                 size[i * n + j] + fabs(there) + fabs(in_matrix(before, i, j)), (double)k + 8, 0);
        }
    agree("c, accumulated,", g.c, m, n);
}

static void by_columns(void)
{
    const shape s = any_shape();
    const ptrdiff_t m = s.m, n = s.n, k = s.k;
    const kind_of_numbers kind = any(2);
    const int half = choose(2) && K->half, way = (int)choose(3), normed = (int)choose(4);
    const cvit_matrix x = filled(k, m, half, kind);
    void *a = packed_columns(k, m);
    double *left = expected(m * k), *right = expected(s.depth * n), *sum = expected(m * n), *size = expected(m * n);
    double *sums = expected(n), *sizes = expected(n);
    cvit_pack_columns pack = {.k = k, .m = m, .x = x, .a = a};
    if (normed)
        pack.mean = filled_vector(k, plain(1)), pack.rstd = filled_vector(k, plain(2));
    if (normed > 1)
        pack.scale = filled_vector(m, plain(2));
    if (normed > 2)
        pack.shift = filled_vector(m, plain(1));
    K->pack_columns(&pack);
    const cvit_panels b = panels_of(s.depth, n, way, kind, right);
    if (first_of_element) {
        for (ptrdiff_t i = 0; i < m; i++)
            for (ptrdiff_t p = 0; p < k; p++) {
                double value = in_matrix(x, p, i);
                if (normed && K->half) { /* to the bit, as what is rounded then must be the same */
                    float v = ((float)value - (float)at(pack.mean, p)) * (float)at(pack.rstd, p);
                    if (normed == 3)
                        v = fmaf(v, (float)at(pack.scale, i), (float)at(pack.shift, i));
                    else if (normed == 2)
                        v *= (float)at(pack.scale, i);
                    value = widened(narrowed(v));
                } else if (normed) {
                    value = (value - at(pack.mean, p)) * at(pack.rstd, p);
                    value = value * (normed > 1 ? at(pack.scale, i) : 1) + (normed > 2 ? at(pack.shift, i) : 0);
                } else
                    value = operand(value, 1);
                left[i * k + p] = value;
            }
        product(m, n, k, left, right + s.row * n, sum, size);
        for (ptrdiff_t j = 0; j < n; j++) {
            sums[j] = sizes[j] = 0;
            for (ptrdiff_t p = 0; p < k; p++) {
                sums[j] += right[(s.row + p) * n + j];
                sizes[j] += fabs(right[(s.row + p) * n + j]);
            }
        }
        /* Of what is normalised the terms' magnitudes are what roundings go by. */
        for (ptrdiff_t i = 0; normed && i < m; i++)
            for (ptrdiff_t p = 0; p < k; p++)
                for (ptrdiff_t j = 0; j < n; j++) {
                    double term = (fabs(in_matrix(x, p, i)) + fabs(at(pack.mean, p))) * fabs(at(pack.rstd, p));
                    term =
                        term * (normed > 1 ? fabs(at(pack.scale, i)) : 1) + (normed > 2 ? fabs(at(pack.shift, i)) : 0);
                    size[i * n + j] += 4 * term * fabs(right[(s.row + p) * n + j]);
                }
    }
    cvit_gemm_columns g = {.m = m, .n = n, .k = k, .a = a, .b = b, .c = matrix(m, n, 0)};
    g.b.row = s.row;
    g.column_sums = choose(2) ? vector(n) : NULL;
    if (choose(2))
        g.hint.next = x;
    for (int times = 1; times <= 2; times++) {
        g.accumulate = times == 2;
        K->gemm_columns(&g);
        compare("dW", g.c, m, n, k, sum, size, times, normed);
        agree("dW", g.c, m, n);
        if (!g.column_sums)
            continue;
        compare("db", (cvit_matrix){g.column_sums, n, 0}, 1, n, k, sums, sizes, times, 0);
        agree_vector("db", g.column_sums, n);
    }
}

static void once(void)
{
    target = "gemm";
    if (choose(2))
        by_columns();
    else
        by_rows();
}
