/* Every kernel of a table on numbers of its own at odd sizes: a line "kernel, case, checksum of all that it wrote" for
 * each. A table of bfloat16 gives the same lines on every machine and from every compiler (docs/bfloat16.md);
 * tests/test_bf16_machines.py compares them. As a library it takes a table's address, and as a program, with
 * -DTESTED=cvit_neon_bf16, that table:
 *
 *     cc -ffp-contract=off -DTESTED=cvit_avx2_bf16 -Icsrc -Icvit/engine tests/bf16/kernels.c avx2_bf16.o -lm
 *
 * What a kernel packs is read back through products with the identity, since each table packs in its own way.
 */
#include "numbers.h"
#include "products.h"

/* ------------------------------------------------------------------------------------------------------- row by row */
static void norms(ptrdiff_t rows, ptrdiff_t d)
{
    for (int variant = 0; variant < 8; variant++) { /* rms, scale, shift */
        const int rms = variant & 1;
        cvit_matrix x = matrix(numbers(rows * (d + 2), 3), d + 2), dy = matrix(numbers(rows * d, 1), d);
        cvit_matrix y = room(rows * d, d, 0), residual = matrix(numbers(rows * d, 1), d);
        float *scale = variant & 2 ? numbers(d, 1) : NULL, *shift = variant & 4 ? numbers(d, 1) : NULL;
        float *mean = floats(rows), *rstd = floats(rows), *dscale = numbers(d, 1), *dshift = numbers(d, 1);
        const cvit_rows a = new_rows(rows, d);
        cvit_norm call = {.rows = rows,
                          .d = d,
                          .rms = rms,
                          .x = x,
                          .scale = scale,
                          .shift = shift,
                          .eps = 1e-6,
                          .y = y,
                          .mean = mean,
                          .rstd = rstd};
        K->norm(&call);
        count_matrix(y, rows, d);
        count_floats(mean, rows);
        count_floats(rstd, rows);
        call.y.at = NULL, call.a = a;
        K->norm(&call);
        count_rows(a, rows, d);
        say("norm", rms ? ", rms" : "", rows, d, variant / 2);
        used = (size_t)((char *)(dshift + d) - arena) + 256; /* say() gave all away; these are still wanted */
        K->norm_backward(&(cvit_norm_backward){.rows = rows,
                                               .d = d,
                                               .rms = rms,
                                               .dy = dy,
                                               .x = x,
                                               .mean = mean,
                                               .rstd = rstd,
                                               .scale = scale,
                                               .dx = y,
                                               .residual = variant & 4 ? residual : (cvit_matrix){0},
                                               .dscale = scale ? dscale : NULL,
                                               .dshift = shift ? dshift : NULL});
        count_matrix(y, rows, d);
        count_floats(dscale, d);
        count_floats(dshift, d);
        say("norm_backward", rms ? ", rms" : "", rows, d, variant / 2);
    }
}

/* A copy of a matrix that a kernel overwrites. */
static cvit_matrix copy(cvit_matrix x, ptrdiff_t n)
{
    cvit_matrix to = room(n, x.ld, x.half);
    memcpy(to.at, x.at, (size_t)n * (x.half ? 2 : 4));
    return to;
}

static void activations(ptrdiff_t rows, ptrdiff_t n)
{
    for (int kind = 0; kind < CVIT_ACTIVATION_COUNT; kind++)
        for (int variant = 0; variant < 8; variant++) { /* half, gated, odd numbers */
            const int half = variant & 1, gated = variant >> 1 & 1, odd = variant >> 2;
            if (half > halves)
                continue;
            const cvit_matrix none = {0};
            float *plain = odd ? odd_numbers(rows * n, 12) : numbers(rows * n, 6);
            const cvit_matrix x = as_rows(plain, rows * n, n, half), dy = matrix(numbers(rows * n, 1), n);
            const cvit_matrix value = gated ? as_rows(numbers(rows * n, 2), rows * n, n, half) : none;
            cvit_activation call = {.kind = kind, .rows = rows, .n = n, .x = x, .value = value};
            for (int to = 0; to <= half; to++) {
                call.y = room(rows * n, n, to);
                K->activation(&call);
                count_matrix(call.y, rows, n);
            }
            if (!odd && n <= K->kc) {
                call.y.at = NULL, call.a = new_rows(rows, n);
                K->activation(&call);
                count_rows(call.a, rows, n);
            }
            for (int to = 0; to <= (!odd && n <= K->kc); to++) {
                cvit_activation_backward back = {.kind = kind,
                                                 .rows = rows,
                                                 .n = n,
                                                 .x = copy(x, rows * n),
                                                 .value = value,
                                                 .dy = copy(dy, rows * n),
                                                 .dvalue = gated ? room(rows * n, n, 0) : none};
                if (to) {
                    back.a = new_rows(rows, n), back.b = new_panels(rows, n);
                    if (gated)
                        back.a_value = new_rows(rows, n), back.b_value = new_panels(rows, n);
                }
                K->activation_backward(&back);
                count_matrix(back.x, rows, n);
                if (to) {
                    count_rows(back.a, rows, n);
                    count_panels(back.b, rows, n);
                } else {
                    count_matrix(back.dy, rows, n);
                }
                if (gated && to) {
                    count_rows(back.a_value, rows, n);
                    count_panels(back.b_value, rows, n);
                } else if (gated) {
                    count_matrix(back.dvalue, rows, n);
                }
            }
            static const char *const names[] = {"activation", "activation, half", "activation, gated",
                                                "activation, gated, half"};
            say(names[variant & 3], odd ? ", odd numbers" : "", kind, rows, n);
        }
}

static void hidden_rows(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k)
{
    for (int kind = 0; kind < CVIT_ACTIVATION_COUNT; kind++)
        for (int variant = 0; variant < 4; variant++) { /* half, gated */
            const int half = variant & 1, gated = variant >> 1;
            if (half > halves)
                continue;
            const cvit_matrix none = {0}, u = as_rows(numbers(m * n, 4), m * n, n, half);
            const cvit_rows a = new_rows(m, k), to = new_rows(m, n);
            const cvit_panels b = new_panels(k, n);
            K->pack_rows(&(cvit_pack_rows){.rows = m, .k = k, .x = matrix(numbers(m * k, 2), k), .scale = 1, .a = a});
            K->pack_panels(&(cvit_pack_panels){.k = k, .n = n, .x = matrix(numbers(k * n, 1), n), .b = b});
            cvit_gemm g = {.m = m, .n = n, .k = k, .a = a, .b = b, .c = room(m * n, n, half), .bias = numbers(n, 1)};
            cvit_activation f = {
                .kind = kind, .rows = m, .n = n, .x = gated ? u : g.c, .value = gated ? g.c : none, .a = to};
            K->hidden(&(cvit_hidden){.product = g, .activation = f, .keep = 1});
            count_matrix(g.c, m, n);
            count_rows(to, m, n);
            say("hidden", half ? ", half" : "", kind * 2 + gated, m, n);
        }
    for (int kind = 0; kind < CVIT_ACTIVATION_COUNT; kind++)
        for (int variant = 0; variant < 4; variant++) {
            const int half = variant & 1, gated = variant >> 1;
            if (half > halves)
                continue;
            const cvit_matrix u = as_rows(numbers(m * n, 4), m * n, n, half),
                              value = as_rows(numbers(m * n, 2), m * n, n, half);
            const cvit_rows a = new_rows(m, k), to = new_rows(m, n), to_value = new_rows(m, n);
            const cvit_panels b = new_panels(k, n), panel = new_panels(m, n), panel_value = new_panels(m, n);
            K->pack_rows(&(cvit_pack_rows){.rows = m, .k = k, .x = matrix(numbers(m * k, 2), k), .scale = 1, .a = a});
            K->pack_panels(&(cvit_pack_panels){.k = k, .n = n, .x = matrix(numbers(k * n, 1), n), .b = b});
            cvit_gemm g = {.m = m, .n = n, .k = k, .a = a, .b = b, .c = room(m * n, n, 0)};
            cvit_activation_backward f = {.kind = kind, .rows = m, .n = n, .x = u, .dy = g.c, .a = to, .b = panel};
            if (gated)
                f.value = value, f.a_value = to_value, f.b_value = panel_value;
            K->hidden_backward(&(cvit_hidden_backward){.product = g, .activation = f});
            count_matrix(u, m, n);
            count_rows(to, m, n);
            count_panels(panel, m, n);
            if (gated) {
                count_rows(to_value, m, n);
                count_panels(panel_value, m, n);
            }
            say("hidden_backward", half ? ", half" : "", kind * 2 + gated, m, n);
        }
}

static void sums(ptrdiff_t rows, ptrdiff_t n)
{
    cvit_matrix x = matrix(numbers(rows * (n + 1), 2), n + 1), add = matrix(numbers(rows * n, 1), n);
    cvit_matrix y = room(rows * n, n, 0);
    float *columns = numbers(n, 2), *total = numbers(n, 1);
    for (int variant = 0; variant < 4; variant++) {
        K->add_rows(&(cvit_add_rows){.rows = rows,
                                     .n = n,
                                     .x = x,
                                     .factor = 0.7,
                                     .columns = variant & 1 ? columns : NULL,
                                     .add = variant & 2 ? add : (cvit_matrix){0},
                                     .y = y});
        count_matrix(y, rows, n);
    }
    say("add_rows", "", rows, n, 0);
    x = matrix(numbers(rows * (n + 1), 2), n + 1), total = numbers(n, 1);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        K->column_sums(
            &(cvit_column_sums){.rows = rows, .n = n, .x = x, .accumulate = accumulate, .scale = 0.3, .sums = total});
        count_floats(total, n);
    }
    say("column_sums", "", rows, n, 0);
    x = matrix(numbers(rows * (n + 1), 2), n + 1), y = matrix(numbers(rows * n, 2), n);
    columns = numbers(n, 2), total = floats(n);
    K->unscale(&(cvit_unscale){.rows = rows, .n = n, .w = x, .dw = y, .factor = columns, .sums = total});
    count_matrix(y, rows, n);
    count_floats(total, n);
    say("unscale", "", rows, n, 0);
}

static void losses(ptrdiff_t n)
{
    for (int variant = 0; variant < 12; variant++) { /* targets, smoothing, odd numbers */
        float *target = numbers(n, 1), *d = floats(n), *z = variant < 8 ? numbers(n, 9) : odd_numbers(n, 9);
        for (ptrdiff_t i = 0; i < n; i++)
            target[i] = target[i] < 0 ? 0 : target[i];
        const cvit_cross_entropy call = {.n = n,
                                         .label = draw() % n,
                                         .target = variant & 1 ? target : NULL,
                                         .logits = z,
                                         .smoothing = variant & 2 ? 0.1 : 0,
                                         .weight = 0.7,
                                         .dlogits = d};
        count_double(K->cross_entropy(&call));
        count_floats(d, n);
        say("cross_entropy", variant < 8 ? "" : ", odd numbers", n, variant, 0);
    }
}

static void rotations(ptrdiff_t rows, ptrdiff_t heads, ptrdiff_t half)
{
    const ptrdiff_t n = heads * 2 * half;
    for (int variant = 0; variant < 4; variant++) {
        const ptrdiff_t ld = (variant & 1 ? heads : 1) * half;
        cvit_rotate call = {.rows = rows,
                            .heads = heads,
                            .half = half,
                            .x = matrix(numbers(rows * n, 2), n),
                            .cosines = matrix(numbers(rows * ld, 1), ld),
                            .sines = matrix(numbers(rows * ld, 1), ld),
                            .each_head = variant & 1,
                            .back = variant >> 1};
        K->rotate(&call);
        count_matrix(call.x, rows, n);
    }
    say("rotate", "", rows, heads, half);
    float *total = numbers(n, 1);
    K->rotate_frequencies(&(cvit_rotate_frequencies){.rows = rows,
                                                     .heads = heads,
                                                     .half = half,
                                                     .y = matrix(numbers(rows * n, 2), n),
                                                     .dy = matrix(numbers(rows * n, 2), n),
                                                     .coordinates = numbers(2 * rows, 3),
                                                     .sums = total});
    count_floats(total, n);
    say("rotate_frequencies", "", rows, heads, half);
}

static void drops(ptrdiff_t rows, ptrdiff_t n)
{
    for (int variant = 0; variant < 8; variant++) {
        const int half = variant & halves;
        const cvit_matrix x = as_rows(numbers(rows * n, 2), rows * n, n, half), y = room(rows * n, n, half);
        K->drop(&(cvit_drop){.rows = rows,
                             .n = n,
                             .x = x,
                             .y = y,
                             .seed = draw(),
                             .sample = 3,
                             .row = 5,
                             .place = 2,
                             .branch = 4,
                             .add = half ? (cvit_matrix){0} : matrix(numbers(rows * n, 1), n),
                             .path = variant & 2 ? 0.4 : 0,
                             .rate = variant & 4 ? 0.3 : 0});
        count_matrix(y, rows, n);
    }
    say("drop", "", rows, n, 0);
}

static void updates(ptrdiff_t n)
{
    for (int variant = 0; variant < 4; variant++) {
        float *w = numbers(n, 1), *g = numbers(n, 1), *m = numbers(n, 1), *v = numbers(n, 1);
        for (ptrdiff_t i = 0; i < n; i++)
            v[i] = v[i] < 0 ? -v[i] : v[i];
        cvit_update call = {.n = n,
                            .w = w,
                            .g = g,
                            .m = variant ? m : NULL,
                            .lr = 0.03,
                            .beta1 = 0.9,
                            .beta2 = 0.999,
                            .eps = 1e-8,
                            .decay = 0.05,
                            .scale = 0.8,
                            .c1 = 0.271,
                            .c2 = 0.002997,
                            .nesterov = variant & 1};
        K->sgd(&call);
        count_floats(w, n);
        count_floats(m, n);
        call.m = m, call.v = v;
        K->adamw(&call);
        count_floats(w, n);
        count_floats(m, n);
        count_floats(v, n);
        K->average(n, 0.01, w, g);
        count_floats(g, n);
        count_double(K->sum_of_squares(n, w));
        K->probe_stream(n / 16 * 16, 0.3, w, g);
        count_floats(g, n);
    }
    float *huge = numbers(n, 3e38f);
    count_double(K->sum_of_squares(n, huge));
    say("updates", "", n, 0, 0);
    for (int function = 0; function < 5; function++)
        for (int odd = 0; odd < 2; odd++) {
            float *x = odd && function < 4 ? odd_numbers(n, 90) : numbers(n, function == 3 ? 120 : 9), *y = floats(n);
            /* of 2^x less than 128, of ln x positive normal numbers */
            for (ptrdiff_t i = 0; function == 3 && i < n; i++)
                x[i] = x[i] > 127 ? 127 : x[i];
            for (ptrdiff_t i = 0; function == 4 && i < n; i++)
                x[i] = x[i] < 0 ? 1 - x[i] * x[i] * x[i] : x[i] + 1e-3f;
            K->apply(function, n, x, y);
            count_floats(y, n);
            say("apply", odd ? ", odd numbers" : "", function, n, 0);
        }
}

void checksums(const cvit_kernels *table, const char *path)
{
    static const ptrdiff_t sizes[] = {1, 7, 15, 16, 17, 31, 33, 48, 65, 100, 200, 401};
    K = table;
    out = path ? fopen(path, "w") : stdout;
    arena = aligned_alloc(64, ROOM);
    halves = K->half;
    state = 1;
    const cvit_float_mode before = cvit_float_enter();
    K->enter();
    for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++) {
        const ptrdiff_t n = sizes[i], m = sizes[(i * 5 + 2) % 9];
        products(m, sizes[(i + 4) % 11], n);
        norms(i % 5 + 1, n);
        activations(i % 3 + 1, n < 400 ? n : 130);
        sums(m, n);
        losses(n);
        rotations(i % 3 + 1, i % 4 + 1, n);
        drops(i % 3 + 1, n);
        updates(n);
        attentions(n, sizes[(i * 5 + 3) % 8], i % 2 ? 2 : 9);
    }
    norms(37, 16);
    attentions(33, 72, 2);
    /* Last: the numbers of all others stay as they were. */
    for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++)
        hidden_rows(sizes[(i * 5 + 2) % 9], sizes[i] < 400 ? sizes[i] : 130, sizes[(i + 4) % 11]);
    K->leave();
    cvit_float_leave(before);
    free(arena);
    if (path)
        fclose(out);
}

#ifdef TESTED
extern const cvit_kernels TESTED;
int main(void)
{
    checksums(&TESTED, NULL);
    return 0;
}
#endif
