/* Softmax cross-entropy of a row, against a label or a row of targets. */
#include "fuzz.h"

static void once(void)
{
    target = "cross_entropy";
    const ptrdiff_t n = size_upto(2000);
    const kind_of_numbers kind = any(choose(2) ? 10 : 300);
    cvit_cross_entropy call = {.n = n, .label = choose(n), .logits = filled_vector(n, kind)};
    call.weight = choose(2) ? 1 : 0.37;
    call.smoothing = choose(2) ? 0 : 0.1;
    call.dlogits = choose(4) ? vector(n) : NULL;
    if (choose(2)) {
        void *t = filled_vector(n, plain(1));
        for (ptrdiff_t c = 0; c < n; c++)
            put(t, c, fmax(at(t, c), 0));
        call.target = t;
    }
    double loss = K->cross_entropy(&call), sum = 0, top = -INFINITY, mass = 0, wanted = 0, size = 0, highest = 0;
    const double found = loss;
    agree_number("loss", loss);
    if (call.dlogits)
        agree_vector("dlogits", call.dlogits, n);
    int tame = 1;
    for (ptrdiff_t c = 0; c < n; c++) {
        const double z = at(call.logits, c);
        tame &= fabs(z) < 1e6;
        top = z > top ? z : top;
        if (z != z && found == found)
            fail("the loss is %g where logit %td is no number", found, c);
    }
    if (!tame)
        return;
    const double smoothing = real(call.smoothing), share = smoothing / (double)n;
    for (ptrdiff_t c = 0; c < n; c++)
        sum += exp(at(call.logits, c) - top);
    for (ptrdiff_t c = 0; c < n; c++) {
        const double z = at(call.logits, c) - top, hot = call.target ? at(call.target, c) : c == call.label;
        const double t = hot * (1 - smoothing) + share;
        wanted -= t * (z - log(sum));
        size += t * (fabs(z) + fabs(log(sum)) + 1);
        mass += t;
        highest = fmax(highest, fabs(z));
    }
    near("loss", 0, 0, found, wanted, size + 1, 2 * (double)n + 30, 0);
    for (ptrdiff_t c = 0; call.dlogits && c < n; c++) {
        const double z = at(call.logits, c) - top, hot = call.target ? at(call.target, c) : c == call.label;
        const double t = hot * (1 - smoothing) + share, p = exp(z) / sum;
        const double dz = call.weight * (p * mass - t);
        near("dlogits", 0, c, at(call.dlogits, c), dz, call.weight * (p * mass + t), 2 * (double)n + 30 + 2 * highest,
             0);
    }
}
