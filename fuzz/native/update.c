/* Optimizer steps, averages, sums of squares, and the elementary functions. */
#include "fuzz.h"

static cvit_update settings(ptrdiff_t n, kind_of_numbers kind)
{
    cvit_update call = {.n = n, .w = filled_vector(n, kind), .g = filled_vector(n, kind), .lr = 0.03, .beta1 = 0.9};
    call.beta2 = 0.999, call.eps = 1e-8, call.decay = choose(2) ? 0.05 : 0, call.scale = choose(2) ? 1 : 0.3;
    call.c1 = 0.271, call.c2 = 0.002997, call.nesterov = (int)choose(2);
    return call;
}

static void sgd(ptrdiff_t n, kind_of_numbers kind)
{
    target = "sgd";
    cvit_update call = settings(n, kind);
    call.m = choose(2) ? filled_vector(n, kind) : NULL;
    const cvit_matrix w = copied((cvit_matrix){call.w, n, 0}, 1, n);
    const cvit_matrix m = call.m ? copied((cvit_matrix){call.m, n, 0}, 1, n) : none();
    K->sgd(&call);
    agree_vector("w", call.w, n);
    for (ptrdiff_t i = 0; i < n; i++) {
        const double g = at(call.g, i) * real(call.scale), decay = at(w.at, i) * real(call.decay), b = real(call.beta1);
        const double before = call.m ? at(m.at, i) * b : 0, u = before + g + decay;
        const double size = fabs(before) + fabs(g) + fabs(decay), factor = call.m && call.nesterov ? 1 + b : 1;
        const double step = call.m && call.nesterov ? g + decay + b * u : u;
        if (call.m)
            near("velocity", 0, i, at(call.m, i), u, size, 4, 0);
        near("w", 0, i, at(call.w, i), at(w.at, i) - real(call.lr) * step,
             fabs(at(w.at, i)) + real(call.lr) * factor * size, 6, 0);
    }
}

static void adamw(ptrdiff_t n, kind_of_numbers kind)
{
    target = "adamw";
    cvit_update call = settings(n, kind);
    call.m = filled_vector(n, kind), call.v = filled_vector(n, kind);
    for (ptrdiff_t i = 0; i < n; i++)
        put(call.v, i, fabs(at(call.v, i)));
    const cvit_matrix w = copied((cvit_matrix){call.w, n, 0}, 1, n), m = copied((cvit_matrix){call.m, n, 0}, 1, n);
    const cvit_matrix v = copied((cvit_matrix){call.v, n, 0}, 1, n);
    K->adamw(&call);
    agree_vector("w", call.w, n);
    agree_vector("m", call.m, n);
    agree_vector("v", call.v, n);
    for (ptrdiff_t i = 0; i < n; i++) {
        const double g = at(call.g, i) * real(call.scale), first = at(m.at, i) * real(call.beta1);
        const double fresh = g * real(1 - call.beta1), second = at(v.at, i) * real(call.beta2);
        const double square = g * g * real(1 - call.beta2), lr = real(call.lr);
        const double under = sqrt(square + second) / sqrt(real(call.c2)) + real(call.eps);
        const double rate = lr / real(call.c1) / under;
        near("m", 0, i, at(call.m, i), first + fresh, fabs(first) + fabs(fresh), 4, 0);
        near("v", 0, i, at(call.v, i), square + second, square + second, 6, 0);
        near("w", 0, i, at(call.w, i), at(w.at, i) * (1 - lr * real(call.decay)) - (first + fresh) * rate,
             fabs(at(w.at, i)) + (fabs(first) + fabs(fresh)) * rate, 24, (K->size == 8 ? 1e-307 : 5e-38) * rate);
    }
}

static void average(ptrdiff_t n, kind_of_numbers kind)
{
    target = "average";
    void *x = filled_vector(n, kind), *averages = filled_vector(n, kind);
    const cvit_matrix before = copied((cvit_matrix){averages, n, 0}, 1, n);
    const double rate = choose(2) ? 0.01 : 0.7;
    K->average(n, rate, x, averages);
    agree_vector("average", averages, n);
    for (ptrdiff_t i = 0; i < n; i++)
        near("average", 0, i, at(averages, i), at(before.at, i) + real(rate) * (at(x, i) - at(before.at, i)),
             fabs(at(before.at, i)) + fabs(at(x, i)), 4, 0);
}

static void sum_of_squares(ptrdiff_t n, kind_of_numbers kind)
{
    target = "sum_of_squares";
    kind.spread *= choose(4) == 3 && K->size == 4 ? 1e19 : 1; /* squares beyond float's range are summed in double */
    const void *x = filled_vector(n, kind);
    double sum = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        sum += at(x, i) * at(x, i);
    const double found = K->sum_of_squares(n, x);
    agree_number("sum", found);
    if (isfinite(sum) ? !(fabs(found - sum) <= 80 * 0x1p-24 * sum + 1e-30) : found == found && found != sum)
        fail("%g and not %g", found, sum);
    K->probe_stream(n, 0.5, x, filled_vector(n, plain(1)));
}

static void functions(ptrdiff_t n, kind_of_numbers kind)
{
    static const char *const names[] = {"exp", "tanh", "erf", "exp2", "log"};
    const int function = (int)choose(5), limit = K->size == 8 ? 1024 : 128;
    kind.spread *= choose(2) ? 1 : 40;
    kind.odd &= function < 3;
    void *x = filled_vector(n, kind), *y = vector(n);
    target = names[function];
    for (ptrdiff_t i = 0; function > 2 && i < n; i++) /* 2^x of less than the limit, ln x of positive normal numbers */
        put(x, i, function == 3 ? fmin(at(x, i), limit - 1) : fmax(fabs(at(x, i)), 1e-30));
    K->apply(function, n, x, y);
    agree_vector("y", y, n);
    for (ptrdiff_t i = 0; i < n; i++) {
        const double v = at(x, i), wanted = function == 0   ? exp(fmin(v, K->size == 8 ? 709 : 88))
                                            : function == 1 ? tanh(v)
                                            : function == 2 ? erf(v)
                                            : function == 3 ? exp2(fmax(v, 2 - limit))
                                                            : log(v);
        if (v != v && at(y, i) == at(y, i))
            fail("f(NaN) is %g", at(y, i));
        if (function == 0 && v > (K->size == 8 ? 709 : 88)) /* beyond, as at the end */
            continue;
        near("y", 0, i, at(y, i), wanted, fabs(wanted), 10, function == 3 && K->half ? 2e-7 * wanted : 0);
    }
}

static void once(void)
{
    const int which = (int)choose(5);
    const ptrdiff_t n = size_upto(3000);
    const kind_of_numbers kind = any(2);
    switch (which) {
    case 0: sgd(n, kind); break;
    case 1: adamw(n, kind); break;
    case 2: average(n, kind); break;
    case 3: sum_of_squares(n, kind); break;
    default: functions(n, kind);
    }
}
