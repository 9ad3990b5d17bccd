/* Norms over rows of tokens, and their backward. */
#include "fuzz.h"

static void forward(ptrdiff_t rows, ptrdiff_t d, int rms)
{
    const kind_of_numbers kind = any(choose(2) ? 3 : 100);
    const cvit_matrix x = filled(rows, d, 0, kind);
    const double eps = choose(2) ? 1e-6 : 0.1;
    cvit_norm call = {.rows = rows, .d = d, .rms = rms, .x = x, .eps = eps};
    call.scale = choose(2) ? filled_vector(d, plain(2)) : NULL;
    call.shift = call.scale && choose(2) ? filled_vector(d, plain(2)) : NULL;
    const int to = (int)choose(3); /* rows, packed rows, in place */
    if (choose(2))
        call.mean = vector(rows), call.rstd = vector(rows);
    const cvit_matrix from = copied(x, rows, d);
    call.y = to == 0 ? matrix(rows, d, 0) : to == 1 ? none() : x;
    if (to == 1)
        call.a = packed_rows(rows, d);
    K->norm(&call);
    if (to != 1)
        agree("y", call.y, rows, d);
    if (call.mean) {
        agree_vector("mean", call.mean, rows);
        agree_vector("rstd", call.rstd, rows);
    }
    for (ptrdiff_t i = 0; i < rows; i++) {
        double mean = 0, spread = 0, variance = 0;
        for (ptrdiff_t j = 0; j < d; j++) {
            mean += in_matrix(from, i, j) / (double)d;
            spread += fabs(in_matrix(from, i, j)) / (double)d;
        }
        mean = rms ? 0 : mean;
        for (ptrdiff_t j = 0; j < d; j++)
            variance += (in_matrix(from, i, j) - mean) * (in_matrix(from, i, j) - mean) / (double)d;
        /* As tests/test_kernels_rows.py counts roundings: those of the mean count by how far x is from it. */
        const double rstd = 1 / sqrt(variance + eps), part = rms ? 0 : spread;
        const double growth = (double)(d + 8) / 2 + (double)d * part * rstd;
        if (!(spread < 1e15) || growth * (K->size == 8 ? 0x1p-53 : 0x1p-24) > 0.01)
            continue;
        if (call.mean && !rms)
            near("mean", i, 0, at(call.mean, i), mean, spread, (double)d + 2, 0);
        if (call.mean)
            near("rstd", i, 0, at(call.rstd, i), rstd, rstd, growth, 0);
        for (ptrdiff_t j = 0; j < d; j++) {
            const double n = (in_matrix(from, i, j) - mean) * rstd, gain = call.scale ? at(call.scale, j) : 1;
            const double shift = call.shift ? at(call.shift, j) : 0, wanted = n * gain + shift;
            const double found = to == 1 ? in_rows(call.a, i, j) : in_matrix(call.y, i, j);
            const double size = fabs(gain) * (rstd * part + fabs(n)) + fabs(shift);
            near("y", i, j, found, wanted, size, growth + (double)d / 2 + 6,
                 to == 1 && K->half ? half_unit(wanted) + half_unit(size) / 1024 : 0);
        }
    }
}

static void backward(ptrdiff_t rows, ptrdiff_t d, int rms)
{
    const kind_of_numbers kind = any(2);
    cvit_matrix dy = filled(rows, d, 0, kind);
    const cvit_matrix x = filled(rows, d, 0, kind);
    const int to = (int)choose(4); /* rows of its own, or over dy, the residual or x */
    if (to != 1 && choose(4) == 3)
        dy.ld = 0;
    cvit_norm_backward call = {.rows = rows, .d = d, .rms = rms, .dy = dy, .x = x};
    call.mean = filled_vector(rows, plain(rms ? 0 : 1)), call.rstd = filled_vector(rows, plain(2));
    call.scale = choose(2) ? filled_vector(d, kind) : NULL;
    call.residual = to == 2 || choose(2) ? filled(rows, d, 0, kind) : none();
    call.dscale = choose(2) ? filled_vector(d, kind) : NULL;
    call.dshift = choose(2) ? filled_vector(d, kind) : NULL;
    call.dx = to == 0 ? matrix(rows, d, 0) : to == 1 ? dy : to == 2 ? call.residual : x;
    const cvit_matrix x0 = copied(x, rows, d), residual = call.residual.at ? copied(call.residual, rows, d) : none();
    cvit_matrix dy0 = copied(dy, dy.ld || rows == 1 ? rows : 1, d);
    if (!dy.ld)
        dy0.ld = 0;
    double *dscale = expected(d), *dshift = expected(d), *sizes = expected(2 * d);
    for (ptrdiff_t j = 0; first_of_element && j < d; j++) {
        dscale[j] = call.dscale ? at(call.dscale, j) : 0, dshift[j] = call.dshift ? at(call.dshift, j) : 0;
        sizes[j] = fabs(dscale[j]), sizes[d + j] = fabs(dshift[j]);
        for (ptrdiff_t i = 0; i < rows; i++) {
            const double g = in_matrix(dy0, i, j), r = at(call.rstd, i);
            dscale[j] += g * (in_matrix(x0, i, j) - at(call.mean, i)) * r;
            sizes[j] += fabs(g) * (fabs(in_matrix(x0, i, j)) + fabs(at(call.mean, i))) * fabs(r);
            dshift[j] += g;
            sizes[d + j] += fabs(g);
        }
    }
    K->norm_backward(&call);
    agree("dx", call.dx, rows, d);
    for (ptrdiff_t j = 0; j < d; j++) {
        if (call.dscale)
            near("dscale", 0, j, at(call.dscale, j), dscale[j], sizes[j], (double)rows + 6, 0);
        if (call.dshift)
            near("dshift", 0, j, at(call.dshift, j), dshift[j], sizes[d + j], (double)rows + 2, 0);
    }
    for (ptrdiff_t i = 0; i < rows; i++) {
        const double m = at(call.mean, i), r = at(call.rstd, i);
        double mean_g = 0, mean_gn = 0, size_g = 0, size_gn = 0;
        for (ptrdiff_t j = 0; j < d; j++) {
            const double g = in_matrix(dy0, i, j) * (call.scale ? at(call.scale, j) : 1), v = in_matrix(x0, i, j);
            mean_g += g / (double)d, size_g += fabs(g) / (double)d;
            mean_gn += g * (v - m) * r / (double)d, size_gn += fabs(g) * (fabs(v) + fabs(m)) * fabs(r) / (double)d;
        }
        if (rms)
            mean_g = size_g = 0;
        for (ptrdiff_t j = 0; j < d; j++) {
            const double g = in_matrix(dy0, i, j) * (call.scale ? at(call.scale, j) : 1), v = in_matrix(x0, i, j);
            const double past = residual.at ? in_matrix(residual, i, j) : 0;
            const double size = fabs(r) * (fabs(g) + size_g + (fabs(v) + fabs(m)) * fabs(r) * size_gn) + fabs(past);
            near("dx", i, j, in_matrix(call.dx, i, j), past + r * (g - mean_g - (v - m) * r * mean_gn), size,
                 (double)d + 13, 0);
        }
    }
}

static void once(void)
{
    const ptrdiff_t rows = size_upto(40), d = size_upto(rows > 8 ? 300 : 1000);
    const int rms = (int)choose(2);
    if (choose(2)) {
        target = "norm_backward";
        backward(rows, d, rms);
    } else {
        target = "norm";
        forward(rows, d, rms);
    }
}
