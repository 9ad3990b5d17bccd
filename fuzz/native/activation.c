/* Activations, alone and gated, and their backward; and with the product before them, as hidden rows. */
#include "fuzz.h"

/* f(x) and f'(x). */
PLAIN double value_of(int kind, double x, double *slope)
{
    const double root = 0.79788456080286535588, pi = 3.14159265358979323846;
    double gate = 0, of_gate = 0;
    switch (kind) {
    case CVIT_GELU_TANH: {
        const double z = root * (x + 0.044715 * x * x * x);
        gate = 1 / (1 + exp(-2 * z));
        of_gate = 2 * root * (1 + 3 * 0.044715 * x * x) * gate / (1 + exp(2 * z));
        break;
    }
    case CVIT_GELU_ERF:
        gate = 0.5 * erfc(-x * sqrt(0.5));
        of_gate = exp(-x * x / 2) / sqrt(2 * pi);
        break;
    case CVIT_QUICK_GELU:
        gate = 1 / (1 + exp(-1.702 * x));
        of_gate = 1.702 * gate / (1 + exp(1.702 * x));
        break;
    case CVIT_SILU:
        gate = 1 / (1 + exp(-x));
        of_gate = gate / (1 + exp(x));
        break;
    case CVIT_RELU: gate = x > 0; break;
    case CVIT_TANH: *slope = 1 - tanh(x) * tanh(x); return tanh(x);
    }
    *slope = gate + (of_gate > 0 ? x * of_gate : 0);
    return gate > 0 || x != x ? x * gate : 0;
}

/* In magnitude, what the roundings of f (x) go by: those of a gate are of numbers up to 1. Tanh has no x before it. */
PLAIN double magnitude(int kind, double x) { return kind == CVIT_TANH ? fmin(fabs(x), 1) : fabs(x); }

/* A NaN goes through, in whatever operand. */
PLAIN void must_be_nan(const char *what, ptrdiff_t i, ptrdiff_t j, double found)
{
    if (found == found)
        fail("%s (%td, %td) is %g where an operand is no number", what, i, j, found);
}

/* The rows of x as far apart as packed ones, in memory for either. */
static cvit_matrix in_lda(cvit_matrix x, ptrdiff_t rows, ptrdiff_t n)
{
    const ptrdiff_t plain_rows = rows * K->lda * K->size, packed = up(rows, K->rows_unit) * K->lda * K->rows_size;
    const cvit_matrix y = {room(plain_rows > packed ? plain_rows : packed, 0), K->lda, 0};
    for (ptrdiff_t i = 0; i < rows; i++)
        memcpy((char *)y.at + i * y.ld * K->size, (char *)x.at + i * x.ld * K->size, (size_t)(n * K->size));
    return y;
}

static void forward(int kind, ptrdiff_t rows, ptrdiff_t n)
{
    const int half = choose(2) && K->half, gated = (int)choose(2);
    const kind_of_numbers numbers = any(choose(2) ? 8 : 60);
    cvit_activation call = {.kind = kind, .rows = rows, .n = n, .x = filled(rows, n, half, numbers)};
    call.value = gated ? filled(rows, n, half, numbers) : none();
    const cvit_matrix x = copied(call.x, rows, n);
    const int to = (int)choose(4); /* rows, packed rows, in place, packed rows in place */
    if (to == 3 && n <= K->kc && !half)
        call.x = in_lda(call.x, rows, n), call.a = (cvit_rows){call.x.at, rows};
    else if (to == 1 && n <= K->kc)
        call.a = packed_rows(rows, n);
    else
        call.y = to == 2 ? call.x : matrix(rows, n, half && choose(2));
    K->activation(&call);
    if (!call.a.at)
        agree("y", call.y, rows, n);
    const int rounded = call.a.at ? K->half : call.y.half;
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            double slope;
            const double v = in_matrix(x, i, j), other = gated ? in_matrix(call.value, i, j) : 1;
            const double wanted = value_of(kind, v, &slope) * other, size = magnitude(kind, v) * fabs(other);
            const double found = call.a.at ? in_rows(call.a, i, j) : in_matrix(call.y, i, j);
            if (v != v || other != other)
                must_be_nan("y", i, j, found);
            near("y", i, j, found, wanted, size, 24, rounded ? half_unit(wanted) + half_unit(size) / 1024 : 0);
        }
}

static void backward(int kind, ptrdiff_t rows, ptrdiff_t n)
{
    const int half = choose(2) && K->half, gated = (int)choose(2), packed = choose(2) && n <= K->kc;
    const kind_of_numbers numbers = any(choose(2) ? 8 : 60);
    cvit_activation_backward call = {.kind = kind, .rows = rows, .n = n, .x = filled(rows, n, half, numbers)};
    call.value = gated ? filled(rows, n, half, numbers) : none();
    call.dy = filled(rows, n, 0, numbers);
    const cvit_matrix x = copied(call.x, rows, n), dy = copied(call.dy, rows, n);
    if (packed) {
        const ptrdiff_t before = choose(3) * 2; /* rows of the panels that are another call's */
        if (choose(2))
            call.dy = in_lda(call.dy, rows, n), call.a = (cvit_rows){call.dy.at, rows};
        else
            call.a = packed_rows(rows, n);
        call.b = panels(before + rows, n);
        call.b.row = before;
        if (gated) {
            call.a_value = packed_rows(rows, n);
            call.b_value = panels(before + rows, n);
            call.b_value.row = before;
        }
    } else if (gated)
        call.dvalue = matrix(rows, n, 0);
    K->activation_backward(&call);
    agree("x", call.x, rows, n);
    if (!packed)
        agree("dx", call.dy, rows, n);
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            double slope;
            const double v = in_matrix(x, i, j), other = gated ? in_matrix(call.value, i, j) : 1;
            const double g = in_matrix(dy, i, j), y = value_of(kind, v, &slope), size = magnitude(kind, v);
            const double dx = g * other * slope, dvalue = g * y, more = packed && K->half;
            near("f(x)", i, j, in_matrix(call.x, i, j), y * other, size * fabs(other), 24,
                 half ? half_unit(y * other) + half_unit(size * other) / 1024 : 0);
            for (int form = 0; form <= packed; form++) {
                const double found = !packed ? in_matrix(call.dy, i, j)
                                     : form  ? in_panels(call.b, i, j, n)
                                             : in_rows(call.a, i, j);
                if (v != v || other != other || g != g)
                    must_be_nan("dx", i, j, found);
                near("dx", i, j, found, dx, fabs(g * other) * (1 + fabs(v)), 64,
                     more * (half_unit(dx) + half_unit(g * other) / 1024));
                if (!gated)
                    continue;
                const double of_value = !packed ? in_matrix(call.dvalue, i, j)
                                        : form  ? in_panels(call.b_value, i, j, n)
                                                : in_rows(call.a_value, i, j);
                near("dvalue", i, j, of_value, dvalue, fabs(g) * size, 24,
                     more * (half_unit(dvalue) + half_unit(g * size) / 1024));
            }
        }
}

/* Two matrices, packed rows or panels of one table: the same numbers. */
typedef double reader(const void *x, ptrdiff_t i, ptrdiff_t j, ptrdiff_t n);
PLAIN double of_matrix(const void *x, ptrdiff_t i, ptrdiff_t j, ptrdiff_t n)
{
    (void)n;
    return in_matrix(*(const cvit_matrix *)x, i, j);
}
PLAIN double of_rows(const void *x, ptrdiff_t i, ptrdiff_t j, ptrdiff_t n)
{
    (void)n;
    return in_rows(*(const cvit_rows *)x, i, j);
}
PLAIN double of_panels(const void *x, ptrdiff_t i, ptrdiff_t j, ptrdiff_t n)
{
    return in_panels(*(const cvit_panels *)x, i, j, n);
}
PLAIN void must_equal(const char *what, reader *read, const void *found, const void *wanted, ptrdiff_t rows,
                      ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            const double there = read(found, i, j, n), right = read(wanted, i, j, n);
            if (there != right && (there == there || right == right))
                fail("%s (%td, %td) is %g and in two calls %g", what, i, j, there, right);
        }
}

/* A product and an activation in one call and in two. */
static cvit_gemm some_product(ptrdiff_t m, ptrdiff_t n, int half, kind_of_numbers numbers)
{
    const ptrdiff_t k = size_upto(m * n > 4000 ? 20 : 120);
    const cvit_rows a = packed_rows(m, k);
    const cvit_panels b = panels(k, n);
    K->pack_rows(&(cvit_pack_rows){.rows = m, .k = k, .x = filled(m, k, 0, numbers), .scale = 1, .a = a});
    K->pack_panels(&(cvit_pack_panels){.k = k, .n = n, .x = filled(k, n, 0, numbers), .b = b});
    return (cvit_gemm){.m = m, .n = n, .k = k, .a = a, .b = b, .c = matrix(m, n, half)};
}
static void hidden(int kind, ptrdiff_t m, ptrdiff_t n)
{
    const int half = choose(2) && K->half, gated = (int)choose(2);
    const kind_of_numbers numbers = any(choose(2) ? 2 : 20);
    cvit_gemm product = some_product(m, n, half, numbers);
    product.bias = choose(2) ? filled_vector(n, numbers) : NULL;
    const cvit_matrix u = filled(m, n, half, numbers);
    cvit_activation f = {.kind = kind, .rows = m, .n = n, .a = packed_rows(m, n)};
    f.x = gated ? u : product.c, f.value = gated ? product.c : none();
    K->gemm(&product);
    K->activation(&f);
    const cvit_rows wanted = f.a;
    const cvit_matrix c = copied(product.c, m, n);
    product.c = matrix(m, n, half);
    *(gated ? &f.value : &f.x) = product.c, f.a = packed_rows(m, n);
    const cvit_hidden call = {.product = product, .activation = f, .keep = (int)choose(2)};
    K->hidden(&call);
    if (call.keep)
        must_equal("c", of_matrix, &product.c, &c, m, n);
    must_equal("f(c)", of_rows, &f.a, &wanted, m, n);
}
static void hidden_backward(int kind, ptrdiff_t m, ptrdiff_t n)
{
    const int half = choose(2) && K->half, gated = (int)choose(2);
    const kind_of_numbers numbers = any(choose(2) ? 2 : 20);
    const ptrdiff_t before = choose(3) * 2;
    const cvit_matrix u = filled(m, n, half, numbers), value = filled(m, n, half, numbers);
    const cvit_gemm product = some_product(m, n, 0, numbers);
    cvit_activation_backward f[2];
    for (int one = 0; one < 2; one++) {
        f[one] = (cvit_activation_backward){
            .kind = kind, .rows = m, .n = n, .x = copied(u, m, n), .dy = product.c, .a = packed_rows(m, n)};
        f[one].b = panels(before + m, n), f[one].b.row = before;
        if (gated) {
            f[one].value = value, f[one].a_value = packed_rows(m, n);
            f[one].b_value = panels(before + m, n), f[one].b_value.row = before;
        }
    }
    K->gemm(&product);
    K->activation_backward(&f[0]);
    K->hidden_backward(&(cvit_hidden_backward){.product = product, .activation = f[1]});
    must_equal("f(x)", of_matrix, &f[1].x, &f[0].x, m, n);
    must_equal("dx", of_rows, &f[1].a, &f[0].a, m, n);
    must_equal("dx", of_panels, &f[1].b, &f[0].b, m, n);
    if (gated) {
        must_equal("dvalue", of_rows, &f[1].a_value, &f[0].a_value, m, n);
        must_equal("dvalue", of_panels, &f[1].b_value, &f[0].b_value, m, n);
    }
}

static void once(void)
{
    const int kind = (int)choose(CVIT_ACTIVATION_COUNT);
    const ptrdiff_t rows = size_upto(70), n = size_upto(rows > 16 ? 150 : 500);
    switch (choose(n <= K->kc ? 4 : 2)) {
    case 0: target = "activation_backward", backward(kind, rows, n); break;
    case 1: target = "activation", forward(kind, rows, n); break;
    case 2: target = "hidden", hidden(kind, rows, n); break;
    case 3: target = "hidden_backward", hidden_backward(kind, rows, n); break;
    }
}
