/* Of kernels.c: packers with the products that read what they packed, and attention. */

/* ----------------------------------------------------------------------------------------------------- products */
static void products(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k)
{
    for (int half = 0; half <= halves; half++) {
        const cvit_matrix x = as_rows(numbers(m * (k + 3), 2), m * (k + 3), k + 3, half);
        const cvit_rows a = new_rows(m, k);
        const cvit_panels b = new_panels(k, n);
        float *bias = numbers(n, 1), *factor = numbers(n, 2);
        cvit_matrix c = room(m * (n + 1), n + 1, 0), add = matrix(numbers(m * n, 3), n);
        K->pack_rows(&(cvit_pack_rows){.rows = m, .k = k, .x = x, .scale = 0.3, .a = a});
        K->pack_panels(
            &(cvit_pack_panels){.k = k, .n = n, .x = matrix(numbers(k * n, 1), n), .factor = factor, .b = b});
        cvit_gemm g = {.m = m, .n = n, .k = k, .a = a, .b = b, .c = c};
        K->gemm(&g);
        count_matrix(c, m, n);
        g.bias = bias, g.add = add;
        K->gemm(&g);
        count_matrix(c, m, n);
        g.add = g.c;
        K->gemm(&g);
        count_matrix(c, m, n);
        g.add.at = NULL, g.c = room(m * n, n, half);
        K->gemm(&g);
        count_matrix(g.c, m, n);
        say("gemm", half ? ", half" : "", m, n, k);
    }
    for (int half = 0; half <= halves; half++) { /* the depth is k rows of tokens */
        const cvit_matrix x = as_rows(numbers(k * m, 2), k * m, m, half);
        float *mean = numbers(k, 1), *rstd = numbers(k, 2), *scale = numbers(m, 1), *shift = numbers(m, 1);
        float *sums = numbers(n, 1), *factor = numbers(k, 1);
        void *a = fresh(up(k, 64) * up(m, 64) * 4 * 2);
        const cvit_panels b = new_panels(k, n);
        cvit_matrix c = matrix(numbers(m * n, 1), n);
        K->pack_panels_transposed(
            &(cvit_pack_panels){.k = k, .n = n, .x = matrix(numbers(k * n, 1), k), .factor = factor, .b = b});
        for (int variant = 0; variant < 3; variant++) {
            cvit_pack_columns pack = {.k = k, .m = m, .x = x, .a = a};
            if (variant)
                pack.mean = mean, pack.rstd = rstd, pack.scale = scale, pack.shift = variant > 1 ? shift : NULL;
            K->pack_columns(&pack);
            K->gemm_columns(&(cvit_gemm_columns){
                .m = m, .n = n, .k = k, .a = a, .b = b, .c = c, .accumulate = variant, .column_sums = sums});
            count_matrix(c, m, n);
            count_floats(sums, n);
        }
        say("gemm_columns", half ? ", half" : "", m, n, k);
    }
    for (int half = 0; half <= halves; half++) {
        const cvit_matrix x = as_rows(numbers(m * n, 2), m * n, n, half);
        const cvit_rows a = new_rows(m, n);
        const cvit_panels b = new_panels(m, n);
        K->pack_both(&(cvit_pack_rows){.rows = m, .k = n, .x = x, .scale = 1, .a = a, .b = b});
        count_rows(a, m, n);
        count_panels(b, m, n);
        say("pack_both", half ? ", half" : "", m, n, 0);
    }
}

/* ------------------------------------------------------------------------------------------------------ attention */
static void attentions(ptrdiff_t tokens, ptrdiff_t dh, float spread)
{
    const ptrdiff_t n = tokens * dh, ld = dh + 5, all = tokens * ld;
    for (int half = 0; half <= halves; half++) {
        const cvit_matrix q = as_rows(numbers(all, spread), all, ld, half),
                          k = as_rows(numbers(all, spread), all, ld, half);
        const cvit_matrix v = as_rows(numbers(all, 2), all, ld, half), d_o = matrix(numbers(n, 1), dh);
        const cvit_matrix o = room(n, dh, half), dq = room(all, ld, 0), dk = room(all, ld, 0), dv = room(all, ld, 0);
        float *lse = floats(tokens), *scratch = floats(K->attention_scratch(tokens, dh, 0) + 16);
        K->attention(&(cvit_attention){.tokens = tokens,
                                       .dh = dh,
                                       .first = 0,
                                       .count = tokens,
                                       .q = q,
                                       .k = k,
                                       .v = v,
                                       .o = o,
                                       .lse = lse,
                                       .scratch = scratch});
        count_matrix(o, tokens, dh);
        count_floats(lse, tokens);
        scratch = floats(K->attention_scratch(tokens, dh, 1) + 16);
        K->attention_backward(&(cvit_attention_backward){.tokens = tokens,
                                                         .dh = dh,
                                                         .first = 0,
                                                         .count = tokens,
                                                         .q = q,
                                                         .k = k,
                                                         .v = v,
                                                         .o = o,
                                                         .d_o = d_o,
                                                         .lse = lse,
                                                         .dq = dq,
                                                         .dk = dk,
                                                         .dv = dv,
                                                         .scratch = scratch});
        count_matrix(dq, tokens, dh);
        count_matrix(dk, tokens, dh);
        count_matrix(dv, tokens, dh);
        say("attention", half ? ", half" : "", tokens, dh, (ptrdiff_t)spread);
    }
    float *q = numbers(dh, spread), *d_o = numbers(dh, 1), *o = floats(dh), *dq = floats(dh);
    const cvit_matrix k = matrix(numbers(all, spread), ld), v = matrix(numbers(all, 2), ld);
    const cvit_matrix dk = room(n, dh, 0), dv = room(n, dh, 0);
    float *scratch = floats(K->attend_scratch(tokens));
    K->attend(&(cvit_attend){.tokens = tokens, .dh = dh, .q = q, .k = k, .v = v, .o = o, .scratch = scratch});
    count_floats(o, dh);
    K->attend_backward(&(cvit_attend_backward){.tokens = tokens,
                                               .dh = dh,
                                               .q = q,
                                               .d_o = d_o,
                                               .k = k,
                                               .v = v,
                                               .dq = dq,
                                               .dk = dk,
                                               .dv = dv,
                                               .scratch = scratch});
    count_floats(dq, dh);
    count_matrix(dk, tokens, dh);
    count_matrix(dv, tokens, dh);
    say("attend", "", tokens, dh, (ptrdiff_t)spread);
}
