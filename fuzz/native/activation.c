/* Activations, alone and gated, and their backward. */
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

static void once(void)
{
    const int kind = (int)choose(CVIT_ACTIVATION_COUNT);
    const ptrdiff_t rows = size_upto(70), n = size_upto(rows > 16 ? 150 : 500);
    if (choose(2)) {
        target = "activation_backward";
        backward(kind, rows, n);
    } else {
        target = "activation";
        forward(kind, rows, n);
    }
}
