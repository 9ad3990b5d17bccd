/* What csrc offers: one table of kernels for each instruction set and element type, all compiled from the same source.
 *
 * A kernel works on one tile or one run of rows, on one thread; it allocates nothing and knows nothing of models. A
 * call is a struct with named fields; Cython sees the same names in cvit/engine/kernels.pxd. Operands are `void *`:
 * which element they hold, the table knows. There are two kinds:
 *
 *   real     tokens, statistics, biases, gradients: what arithmetic is done in, `size` bytes each
 *   packed   the operands of a product, as the packers lay them out: `rows_size` bytes an element of packed rows and
 *            columns, `panels_size` one of panels
 *
 * Of the bfloat16 tables reals are floats, and what a product reads is rounded to bfloat16 as it is packed; rows that
 * products alone read may be kept in bfloat16, see `half`. docs/bfloat16.md defines their arithmetic, which is the same
 * to the bit in every table.
 *
 * Letters: m, n, k are a product's rows, columns and depth. `ld` is the distance between rows in elements, d… a
 * gradient. A pointer that may be NULL says so; strides, offsets and sizes count elements unless they say bytes.
 */
#ifndef CVIT_H
#define CVIT_H

#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------------------------------------------- operands */
/* rows of real elements; `at` NULL stands for none */
typedef struct {
    void *at;
    ptrdiff_t ld;
    int half; /* 1: elements of half the size, bfloat16; where a comment says that a kernel takes them, else 0 */
} cvit_matrix;

/* the left operand of a product: `rows` packed rows, in blocks of kc columns with row stride lda, or in tiles; see each
 * gemm.inc */
typedef struct {
    void *at;
    ptrdiff_t rows;
} cvit_rows;

/* the right operand: panels of nr columns that are `depth` rows deep, of which those from `row` on are meant */
typedef struct {
    void *at;
    ptrdiff_t depth, row;
} cvit_panels;

/* ------------------------------------------------------------------------------------------------------- products */
typedef struct {      /* hints: they change when memory is fetched and no result */
    int c_is_cached;  /* whether c and add lie in the cache: prefetching them costs shallow products 3 to 5 % */
    cvit_matrix next; /* what the caller reads after this product, fetched while it runs; at NULL: nothing */
} cvit_prefetch;

/* c (m, n) = a @ b[row : row + k] + bias + add; c may be half, without add */
typedef struct {
    ptrdiff_t m, n, k;
    cvit_rows a;
    cvit_panels b;
    cvit_matrix c;
    const void *bias;   /* (n), or NULL */
    cvit_matrix add;    /* (m, n), or none; may be c, to accumulate */
    cvit_prefetch hint; /* next has m rows of n */
} cvit_gemm;

/* c (m, n) = xᵀ @ b[row : row + k], or c += that, x (k, m) as pack_columns left it: a weight gradient */
typedef struct {
    ptrdiff_t m, n, k;
    const void *a;
    cvit_panels b;
    cvit_matrix c;
    int accumulate;
    void *column_sums;  /* (n), set or added the column sums of b's rows: a bias's gradient; or NULL */
    cvit_prefetch hint; /* next has k rows of m */
} cvit_gemm_columns;

/* x (rows, k), may be half, times `scale`, as packed rows; pack_both writes it also as rows [row, row + rows) of panels
 * b */
typedef struct {
    ptrdiff_t rows, k;
    cvit_matrix x;
    double scale; /* pack_rows alone */
    cvit_rows a;
    cvit_panels b;
} cvit_pack_rows;

/* x (k, m), may be half, as gemm_columns' left operand, with `mean` normalised on the way: (x - mean) rstd scale +
 * shift */
typedef struct {
    ptrdiff_t k, m;
    cvit_matrix x;
    const void *mean, *rstd;   /* (k), or NULL */
    const void *scale, *shift; /* (m), or NULL */
    void *a;
} cvit_pack_columns;

/* rows [row, row + k) of panels b, n columns, from x: (k, n), or for pack_panels_transposed (n, k) */
typedef struct {
    ptrdiff_t k, n;
    cvit_matrix x;
    const void *factor; /* multiplies x's columns, one for each of them; or NULL */
    cvit_panels b;
} cvit_pack_panels;

/* ------------------------------------------------------------------------------------------------- rows of tokens */
/* y = (x - mean) rstd scale + shift, rstd = 1 / sqrt(var + eps), row by row, to `y` or to packed rows `a`;
 * RMSNorm: mean 0, var the mean square */
typedef struct {
    ptrdiff_t rows, d;
    int rms;
    cvit_matrix x;
    const void *scale, *shift; /* (d), or NULL each */
    double eps;
    cvit_matrix y;     /* either this … */
    cvit_rows a;       /* … or this */
    void *mean, *rstd; /* (rows), kept for the backward; or NULL */
} cvit_norm;

/* dx = residual + norm'(dy); dscale += sum of dy n, dshift += sum of dy over the rows, n the normalised row */
typedef struct {
    ptrdiff_t rows, d;
    int rms;
    cvit_matrix dy; /* its ld may be 0: one row for all */
    cvit_matrix x;
    const void *mean, *rstd;
    const void *scale;     /* (d), or NULL */
    cvit_matrix residual;  /* (rows, d), or none */
    cvit_matrix dx;        /* may be dy, residual or x */
    void *dscale, *dshift; /* (d), or NULL each */
} cvit_norm_backward;

/* Every activation but tanh is x * gate(x). */
#define CVIT_ACTIVATIONS(A) A(GELU_TANH) A(GELU_ERF) A(QUICK_GELU) A(SILU) A(RELU) A(TANH)
#define CVIT_ENUMERATOR(name) CVIT_##name,
enum { CVIT_ACTIVATIONS(CVIT_ENUMERATOR) CVIT_ACTIVATION_COUNT };

/* y = f(x), or f(x) * value where that is given; to `y`, or to packed rows `a`, which hold one block of kc columns; x,
 * value and y may be half */
typedef struct {
    int kind; /* one of CVIT_ACTIVATIONS */
    ptrdiff_t rows, n;
    cvit_matrix x;
    cvit_matrix value; /* (rows, n) of a gated MLP, or none */
    cvit_matrix y;     /* may be x */
    cvit_rows a;       /* may begin where x does, unless that is half */
} cvit_activation;

/* From dy: dx = dy value f'(x), dvalue = dy f(x); and x becomes f(x) value, which the next weight gradient reads; x
 * and value may be half */
typedef struct {
    int kind;
    ptrdiff_t rows, n;
    cvit_matrix x;
    cvit_matrix value;   /* or none: 1 */
    cvit_matrix dy;      /* becomes dx, unless a is given */
    cvit_rows a;         /* dx as packed rows of one block; may begin where dy does; at NULL: none */
    cvit_panels b;       /* dx also as rows [row, row + rows) of panels; at NULL: none */
    cvit_matrix dvalue;  /* with `value` either this … */
    cvit_rows a_value;   /* … or this; */
    cvit_panels b_value; /* and also this, at NULL: none */
} cvit_activation_backward;

/* Hidden rows of an MLP: a product without addend, c = u, and at once their activation, to packed rows. c is the
 * activation's x; of a gated MLP, whose second product this is, its value, and then x has been made before. */
typedef struct {
    cvit_gemm product;
    cvit_activation activation;
    int keep; /* whether c is read afterwards; else it may be left as it is, or used for something else */
} cvit_hidden;

/* Their gradient: a product without addend, c = dy, and at once the activation's backward from it, whose dy is c; c is
 * lost */
typedef struct {
    cvit_gemm product;
    cvit_activation_backward activation;
} cvit_hidden_backward;

/* y (rows, n) = factor * x + add; x may have ld 0: one row for all */
typedef struct {
    ptrdiff_t rows, n;
    cvit_matrix x;
    double factor;
    const void *columns; /* (n), multiplies the columns; or NULL */
    cvit_matrix add;     /* or none; may be y */
    cvit_matrix y;
} cvit_add_rows;

/* sums (n) = or += scale * the column sums of x (rows, n), in one fixed order */
typedef struct {
    ptrdiff_t rows, n;
    cvit_matrix x;
    int accumulate;
    double scale;
    void *sums;
} cvit_column_sums;

/* from dw of W' = W factor: the factor's gradient, sums (n) = sum over rows of w dw; and dw *= factor */
typedef struct {
    ptrdiff_t rows, n;
    cvit_matrix w, dw;
    const void *factor; /* (n) */
    void *sums;         /* (n), assigned */
} cvit_unscale;

/* softmax cross-entropy of a row against (1 - smoothing) target + smoothing / n; returned */
typedef struct {
    ptrdiff_t n, label;
    const void *target; /* (n), none negative; NULL: onehot(label) */
    const void *logits; /* (n) */
    double smoothing, weight;
    void *dlogits; /* (n) = weight * the gradient, or NULL */
} cvit_cross_entropy;

/* ------------------------------------------------------------------------------------------------------ attention */
/* o = softmax(q kᵀ / sqrt(dh)) v for queries [first, first + count) of one head of `tokens` tokens; q, k, v may be
 * half, together, and o */
typedef struct {
    ptrdiff_t tokens, dh, first, count;
    cvit_matrix q, k, v; /* row 0 is token 0's; one ld for all three */
    cvit_matrix o;       /* row 0 is query `first`'s */
    void *lse;           /* (count) log-sum-exp of the scores, or NULL */
    void *scratch;       /* aligned to 64 bytes, attention_scratch(tokens, dh, 0) real elements */
} cvit_attention;

/* dk and dv of keys [first, first + count), and their part of dq, all assigned; every row 0 is token 0's; q, k, v, o as
 * in the forward */
typedef struct {
    ptrdiff_t tokens, dh, first, count;
    cvit_matrix q, k, v, o, d_o; /* one ld for q, k, v; one for o, d_o */
    const void *lse;
    cvit_matrix dq, dk, dv; /* dk and dv with one ld */
    void *scratch;          /* attention_scratch(tokens, dh, 1) */
} cvit_attention_backward;

/* rotary positions: the pairs (x[j], x[j + half]) of every head turned in place by each row's angles, see rotate.inc */
typedef struct {
    ptrdiff_t rows, heads, half; /* half a head's width */
    cvit_matrix x;
    cvit_matrix cosines, sines; /* (rows, half), or with each_head (rows, heads * half) */
    int each_head, back;
} cvit_rotate;

/* sums (2, heads * half) += the gradients of learned frequencies, from what `rotate` left and its gradient */
typedef struct {
    ptrdiff_t rows, heads, half;
    cvit_matrix y, dy;
    const void *coordinates; /* (rows, 2) */
    void *sums;
} cvit_rotate_frequencies;

/* y = x * factor + add: elements are dropped with probability `rate`, all rows together with `path`; see drop.inc; x
 * and y may be half, together. The
 * random bits are those of a seed, a place in the computation, a sample of the batch and a row and column of it. */
typedef struct {
    ptrdiff_t rows, n;
    cvit_matrix x;
    cvit_matrix add; /* or none */
    cvit_matrix y;   /* may be x or add */
    uint64_t seed, sample;
    ptrdiff_t row;     /* of the sample: the first of these */
    int place, branch; /* whose bits decide on the elements, and on all rows together */
    double path, rate; /* in [0, 1) */
} cvit_drop;

/* attention of one query over all keys: o (dh) */
typedef struct {
    ptrdiff_t tokens, dh;
    const void *q; /* (dh) */
    cvit_matrix k, v;
    void *o;
    void *scratch; /* attend_scratch(tokens) real elements, aligned to 64 bytes */
} cvit_attend;

/* its backward: dq (dh), dk, dv, all assigned */
typedef struct {
    ptrdiff_t tokens, dh;
    const void *q, *d_o; /* (dh) */
    cvit_matrix k, v;
    void *dq;
    cvit_matrix dk, dv;
    void *scratch; /* as attend's */
} cvit_attend_backward;

/* --------------------------------------------------------------------------------------------------------- update */
/* one run of the flat weight tensor under one weight decay; formulas in update.inc */
typedef struct {
    ptrdiff_t n;
    void *w;
    const void *g;
    void *m, *v;                                /* SGD: the velocity or NULL, and NULL; AdamW: both moments */
    double lr, beta1, beta2, eps, decay, scale; /* beta1: SGD's momentum; scale multiplies the gradient first */
    double c1, c2;                              /* AdamW: 1 - beta1^t, 1 - beta2^t */
    int nesterov;
} cvit_update;

/* `enter` and `leave` stand around the calls of a thread: the state that its kernels need, AMX's tiles, is there in
 * between. In the other tables they do nothing.
 *
 * The kernels: result, name, arguments. This list makes the table's members and fills them, by name. */
#define CVIT_KERNELS(K)                                                             \
    K(void, gemm, (const cvit_gemm *))                                              \
    K(void, gemm_columns, (const cvit_gemm_columns *))                              \
    K(void, pack_rows, (const cvit_pack_rows *))                                    \
    K(void, pack_both, (const cvit_pack_rows *))                                    \
    K(void, pack_columns, (const cvit_pack_columns *))                              \
    K(void, pack_panels, (const cvit_pack_panels *))                                \
    K(void, pack_panels_transposed, (const cvit_pack_panels *))                     \
    K(void, norm, (const cvit_norm *))                                              \
    K(void, norm_backward, (const cvit_norm_backward *))                            \
    K(void, activation, (const cvit_activation *))                                  \
    K(void, activation_backward, (const cvit_activation_backward *))                \
    K(void, hidden, (const cvit_hidden *))                                          \
    K(void, hidden_backward, (const cvit_hidden_backward *))                        \
    K(void, add_rows, (const cvit_add_rows *))                                      \
    K(void, column_sums, (const cvit_column_sums *))                                \
    K(void, unscale, (const cvit_unscale *))                                        \
    K(double, cross_entropy, (const cvit_cross_entropy *))                          \
    K(ptrdiff_t, attention_scratch, (ptrdiff_t tokens, ptrdiff_t dh, int backward)) \
    K(void, attention, (const cvit_attention *))                                    \
    K(void, attention_backward, (const cvit_attention_backward *))                  \
    K(void, rotate, (const cvit_rotate *))                                          \
    K(void, rotate_frequencies, (const cvit_rotate_frequencies *))                  \
    K(void, drop, (const cvit_drop *))                                              \
    K(ptrdiff_t, attend_scratch, (ptrdiff_t tokens))                                \
    K(void, attend, (const cvit_attend *))                                          \
    K(void, attend_backward, (const cvit_attend_backward *))                        \
    K(void, sgd, (const cvit_update *))                                             \
    K(void, adamw, (const cvit_update *))                                           \
    K(void, average, (ptrdiff_t n, double rate, const void *x, void *average))      \
    K(double, sum_of_squares, (ptrdiff_t n, const void *x))                         \
    K(void, apply, (int function, ptrdiff_t n, const void *x, void *y))             \
    K(double, probe_flops, (ptrdiff_t rounds))                                      \
    K(void, probe_stream, (ptrdiff_t n, double factor, const void *x, void *y))     \
    K(void, enter, (void))                                                          \
    K(void, leave, (void))

#define CVIT_MEMBER(result, name, arguments) result(*name) arguments;
typedef struct {
    const char *isa;       /* "portable", "avx2", "avx512", "amx", "neon" */
    const char *element;   /* "f32", "f64", "bf16", "bf16-fast" */
    ptrdiff_t size;        /* bytes of a real, */
    ptrdiff_t rows_size;   /* of an element of packed rows and columns, */
    ptrdiff_t panels_size; /* and of panels */
    int half;              /* whether rows that products alone read may be kept in half the size */
    const char *peak;      /* what the products are made of and probe_flops counts: "float32 FMA", "tdpbf16ps", … */
    ptrdiff_t vl;          /* lanes of a vector of real elements */
    ptrdiff_t mr, nr;      /* rows and columns of a register tile */
    ptrdiff_t kc, lda;     /* columns of a block of packed rows, and their row stride */
    ptrdiff_t rows_unit;   /* packed rows have room for a multiple of this, */
    ptrdiff_t depth_unit;  /* panels are a multiple of this deep, zero beyond their rows: the packer of the last one
                            * sees to it. Products begin at multiples of it, packers at even rows */
    CVIT_KERNELS(CVIT_MEMBER)
} cvit_kernels;
#undef CVIT_MEMBER

/* The tables of this build, each instruction set's after the plainer ones', `*count` of them. */
typedef struct {
    const cvit_kernels *kernels;
    int supported; /* whether this CPU and operating system run them */
} cvit_table;

const cvit_table *cvit_tables(int *count);

#endif
