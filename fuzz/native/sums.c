/* Sums of rows and of columns. */
#include "fuzz.h"

static void add_rows(ptrdiff_t rows, ptrdiff_t n, kind_of_numbers kind)
{
    target = "add_rows";
    cvit_add_rows call = {.rows = rows, .n = n, .factor = choose(2) ? 1 : 0.3, .x = filled(rows, n, 0, kind)};
    call.columns = choose(2) ? filled_vector(n, kind) : NULL;
    call.add = choose(2) ? filled(rows, n, 0, kind) : none();
    call.y = call.add.at && choose(2) ? call.add : matrix(rows, n, 0);
    if (choose(3) == 2)
        call.x.ld = 0; /* one row for all */
    const cvit_matrix add = call.add.at ? copied(call.add, rows, n) : none();
    K->add_rows(&call);
    agree("y", call.y, rows, n);
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            const double x = in_matrix(call.x, i, j) * call.factor * (call.columns ? at(call.columns, j) : 1);
            const double more = add.at ? in_matrix(add, i, j) : 0;
            near("y", i, j, in_matrix(call.y, i, j), x + more, fabs(x) + fabs(more), 4, 0);
        }
}

static void column_sums(ptrdiff_t rows, ptrdiff_t n, kind_of_numbers kind)
{
    target = "column_sums";
    cvit_column_sums call = {.rows = rows, .n = n, .x = filled(rows, n, 0, kind), .accumulate = (int)choose(2)};
    call.scale = choose(2) ? 1 : 0.25;
    call.sums = call.accumulate ? filled_vector(n, kind) : vector(n);
    double *wanted = expected(n), *size = expected(n);
    for (ptrdiff_t j = 0; first_of_element && j < n; j++) {
        wanted[j] = call.accumulate ? at(call.sums, j) * call.scale : 0;
        size[j] = fabs(wanted[j]);
        for (ptrdiff_t i = 0; i < rows; i++) {
            wanted[j] += in_matrix(call.x, i, j) * call.scale;
            size[j] += fabs(in_matrix(call.x, i, j)) * call.scale;
        }
    }
    K->column_sums(&call);
    agree_vector("sums", call.sums, n);
    for (ptrdiff_t j = 0; j < n; j++)
        near("sums", 0, j, at(call.sums, j), wanted[j], size[j], (double)rows + 2, 0);
}

static void unscale(ptrdiff_t rows, ptrdiff_t n, kind_of_numbers kind)
{
    target = "unscale";
    cvit_unscale call = {.rows = rows, .n = n, .w = filled(rows, n, 0, kind), .dw = filled(rows, n, 0, kind)};
    call.factor = filled_vector(n, kind), call.sums = vector(n);
    const cvit_matrix dw = copied(call.dw, rows, n);
    K->unscale(&call);
    agree_vector("sums", call.sums, n);
    agree("dw", call.dw, rows, n);
    for (ptrdiff_t j = 0; j < n; j++) {
        double sum = 0, size = 0;
        for (ptrdiff_t i = 0; i < rows; i++) {
            const double product = in_matrix(call.w, i, j) * in_matrix(dw, i, j);
            const double scaled = in_matrix(dw, i, j) * at(call.factor, j);
            sum += product, size += fabs(product);
            near("dw", i, j, in_matrix(call.dw, i, j), scaled, fabs(scaled), 1, 0);
        }
        near("sums", 0, j, at(call.sums, j), sum, size, (double)rows + 2, 0);
    }
}

static void once(void)
{
    const int which = (int)choose(3);
    const ptrdiff_t rows = size_upto(100), n = size_upto(rows > 20 ? 100 : 500);
    const kind_of_numbers kind = any(3);
    if (which == 0)
        add_rows(rows, n, kind);
    else if (which == 1)
        column_sums(rows, n, kind);
    else
        unscale(rows, n, kind);
}
