"""The kernel tables of csrc/cvit.h, and one inline function for each kernel that picks the table of its element type.

What each kernel computes stands beside its definition in csrc; the names and the order of arguments are the same.
"""

ctypedef fused real:
    float
    double

cdef extern from "cvit.h" nogil:
    ctypedef struct cvit_f32:
        Py_ssize_t mr, nr, kc, lda
        void (*gemm)(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, float* a, float* b, Py_ssize_t depth, Py_ssize_t k0,
            float* c, Py_ssize_t ldc, float* bias, float* r, Py_ssize_t ldr, int near, float* soon, Py_ssize_t ld_soon) noexcept nogil
        void (*gemm_columns)(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, float* a, float* b, Py_ssize_t depth,
            Py_ssize_t k0, float* c, Py_ssize_t ldc, int accumulate, float* sums, float* soon, Py_ssize_t ld_soon) noexcept nogil
        void (*pack_rows)(Py_ssize_t rows, Py_ssize_t k, float* x, Py_ssize_t ld, float scale,
            float* a) noexcept nogil
        void (*pack_both)(Py_ssize_t rows, Py_ssize_t k, float* x, Py_ssize_t ld, float* a, float* b, Py_ssize_t depth,
            Py_ssize_t k0) noexcept nogil
        void (*pack_columns)(Py_ssize_t k, Py_ssize_t m, float* x, Py_ssize_t ld, float* mean, float* rstd,
            float* scale, float* shift, float* a) noexcept nogil
        void (*pack_panels)(Py_ssize_t k, Py_ssize_t n, float* x, Py_ssize_t ld, float* b, Py_ssize_t depth,
            Py_ssize_t k0) noexcept nogil
        void (*pack_panels_transposed)(Py_ssize_t k, Py_ssize_t n, float* x, Py_ssize_t ld, float* b,
            Py_ssize_t depth, Py_ssize_t k0) noexcept nogil
        void (*layernorm)(Py_ssize_t rows, Py_ssize_t d, float* x, Py_ssize_t ldx, float* scale, float* shift,
            float eps, float* y, Py_ssize_t ldy, Py_ssize_t block, float* mean, float* rstd) noexcept nogil
        void (*layernorm_backward)(Py_ssize_t rows, Py_ssize_t d, float* dy, Py_ssize_t lddy, float* x,
            Py_ssize_t ldx, float* mean, float* rstd, float* scale, float* residual, Py_ssize_t ldr, float* dx,
            Py_ssize_t lddx, float* dscale, float* dshift) noexcept nogil
        void (*gelu)(int kind, Py_ssize_t rows, Py_ssize_t n, float* x, Py_ssize_t ldx, float* y,
            Py_ssize_t ldy) noexcept nogil
        void (*gelu_backward)(int kind, Py_ssize_t rows, Py_ssize_t n, float* x, Py_ssize_t ldx, float* dy,
            Py_ssize_t lddy, float* b, Py_ssize_t depth, Py_ssize_t k0) noexcept nogil
        float (*cross_entropy)(Py_ssize_t n, float* logits, Py_ssize_t label, float smoothing, float weight,
            float* dlogits) noexcept nogil
        void (*column_sums)(Py_ssize_t rows, Py_ssize_t n, float* x, Py_ssize_t ld, int accumulate, float scale,
            float* sums) noexcept nogil
        void (*apply)(int function, Py_ssize_t n, float* x, float* y) noexcept nogil
        Py_ssize_t (*attention_scratch)(Py_ssize_t tokens, Py_ssize_t dh, int backward) noexcept nogil
        void (*attention_forward)(Py_ssize_t tokens, Py_ssize_t dh, Py_ssize_t first, Py_ssize_t count, float* q,
            float* k, float* v, Py_ssize_t ld, float* o, Py_ssize_t ldo, float* lse, float* scratch) noexcept nogil
        void (*attention_backward)(Py_ssize_t tokens, Py_ssize_t dh, Py_ssize_t first, Py_ssize_t count, float* q, float* k,
            float* v, Py_ssize_t ld, float* o, float* d_o, Py_ssize_t ldo, float* lse, float* dq, Py_ssize_t lddq,
            float* dk, float* dv, float* scratch) noexcept nogil
        void (*sgd)(Py_ssize_t n, float* w, float* g, float* u, float lr, float momentum, int nesterov, float decay,
            float scale) noexcept nogil
        void (*adamw)(Py_ssize_t n, float* w, float* g, float* m, float* v, float lr, float b1, float a1, float b2, float a2, float eps,
            float decay, float c1, float c2, float scale) noexcept nogil
        double (*sum_of_squares)(Py_ssize_t n, float* x) noexcept nogil
        float (*probe_flops)(Py_ssize_t rounds) noexcept nogil
        void (*probe_stream)(Py_ssize_t n, float factor, float* x, float* y) noexcept nogil

    ctypedef struct cvit_f64:
        Py_ssize_t mr, nr, kc, lda
        void (*gemm)(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, double* a, double* b, Py_ssize_t depth,
            Py_ssize_t k0, double* c, Py_ssize_t ldc, double* bias, double* r, Py_ssize_t ldr, int near, double* soon,
            Py_ssize_t ld_soon) noexcept nogil
        void (*gemm_columns)(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, double* a, double* b, Py_ssize_t depth,
            Py_ssize_t k0, double* c, Py_ssize_t ldc, int accumulate, double* sums, double* soon, Py_ssize_t ld_soon) noexcept nogil
        void (*pack_rows)(Py_ssize_t rows, Py_ssize_t k, double* x, Py_ssize_t ld, double scale,
            double* a) noexcept nogil
        void (*pack_both)(Py_ssize_t rows, Py_ssize_t k, double* x, Py_ssize_t ld, double* a, double* b, Py_ssize_t depth,
            Py_ssize_t k0) noexcept nogil
        void (*pack_columns)(Py_ssize_t k, Py_ssize_t m, double* x, Py_ssize_t ld, double* mean, double* rstd,
            double* scale, double* shift, double* a) noexcept nogil
        void (*pack_panels)(Py_ssize_t k, Py_ssize_t n, double* x, Py_ssize_t ld, double* b, Py_ssize_t depth,
            Py_ssize_t k0) noexcept nogil
        void (*pack_panels_transposed)(Py_ssize_t k, Py_ssize_t n, double* x, Py_ssize_t ld, double* b,
            Py_ssize_t depth, Py_ssize_t k0) noexcept nogil
        void (*layernorm)(Py_ssize_t rows, Py_ssize_t d, double* x, Py_ssize_t ldx, double* scale, double* shift,
            double eps, double* y, Py_ssize_t ldy, Py_ssize_t block, double* mean, double* rstd) noexcept nogil
        void (*layernorm_backward)(Py_ssize_t rows, Py_ssize_t d, double* dy, Py_ssize_t lddy, double* x,
            Py_ssize_t ldx, double* mean, double* rstd, double* scale, double* residual, Py_ssize_t ldr, double* dx,
            Py_ssize_t lddx, double* dscale, double* dshift) noexcept nogil
        void (*gelu)(int kind, Py_ssize_t rows, Py_ssize_t n, double* x, Py_ssize_t ldx, double* y,
            Py_ssize_t ldy) noexcept nogil
        void (*gelu_backward)(int kind, Py_ssize_t rows, Py_ssize_t n, double* x, Py_ssize_t ldx, double* dy,
            Py_ssize_t lddy, double* b, Py_ssize_t depth, Py_ssize_t k0) noexcept nogil
        double (*cross_entropy)(Py_ssize_t n, double* logits, Py_ssize_t label, double smoothing, double weight,
            double* dlogits) noexcept nogil
        void (*column_sums)(Py_ssize_t rows, Py_ssize_t n, double* x, Py_ssize_t ld, int accumulate, double scale,
            double* sums) noexcept nogil
        void (*apply)(int function, Py_ssize_t n, double* x, double* y) noexcept nogil
        Py_ssize_t (*attention_scratch)(Py_ssize_t tokens, Py_ssize_t dh, int backward) noexcept nogil
        void (*attention_forward)(Py_ssize_t tokens, Py_ssize_t dh, Py_ssize_t first, Py_ssize_t count, double* q,
            double* k, double* v, Py_ssize_t ld, double* o, Py_ssize_t ldo, double* lse, double* scratch) noexcept nogil
        void (*attention_backward)(Py_ssize_t tokens, Py_ssize_t dh, Py_ssize_t first, Py_ssize_t count, double* q, double* k,
            double* v, Py_ssize_t ld, double* o, double* d_o, Py_ssize_t ldo, double* lse, double* dq, Py_ssize_t lddq,
            double* dk, double* dv, double* scratch) noexcept nogil
        void (*sgd)(Py_ssize_t n, double* w, double* g, double* u, double lr, double momentum, int nesterov,
            double decay, double scale) noexcept nogil
        void (*adamw)(Py_ssize_t n, double* w, double* g, double* m, double* v, double lr, double b1, double a1, double b2, double a2,
            double eps, double decay, double c1, double c2, double scale) noexcept nogil
        double (*sum_of_squares)(Py_ssize_t n, double* x) noexcept nogil
        double (*probe_flops)(Py_ssize_t rounds) noexcept nogil
        void (*probe_stream)(Py_ssize_t n, double factor, double* x, double* y) noexcept nogil

    ctypedef struct cvit_table:
        const char* name
        int supported
        cvit_f32* f32
        cvit_f64* f64

    const cvit_table* cvit_tables(int* count)


cdef enum:
    GELU_TANH = 0
    GELU_ERF = 1

# One instruction set, both element types: what every function below takes first.
ctypedef struct Kernels:
    cvit_f32* f32
    cvit_f64* f64


cdef inline Py_ssize_t tile_rows(Kernels* K, real* kind) noexcept nogil:
    """MR, the rows of a tile. `kind` is any pointer of the element type, here and below."""
    if real is float:
        return K.f32.mr
    else:
        return K.f64.mr


cdef inline Py_ssize_t panel_columns(Kernels* K, real* kind) noexcept nogil:
    """NR, the columns of a packed panel."""
    if real is float:
        return K.f32.nr
    else:
        return K.f64.nr


cdef inline Py_ssize_t column_room(Kernels* K, real* kind, Py_ssize_t m) noexcept nogil:
    """Columns of room that pack_columns needs for m columns: whole panels of whole vectors (a panel of B is two vectors wide)."""
    cdef Py_ssize_t mr = tile_rows(K, kind), vl = panel_columns(K, kind) // 2
    return ((m + mr - 1) // mr) * ((mr + vl - 1) // vl * vl)


cdef inline Py_ssize_t block_depth(Kernels* K, real* kind) noexcept nogil:
    """KC, the columns of one block of packed rows."""
    if real is float:
        return K.f32.kc
    else:
        return K.f64.kc


cdef inline Py_ssize_t packed_stride(Kernels* K, real* kind) noexcept nogil:
    """LDA, the row stride of packed rows."""
    if real is float:
        return K.f32.lda
    else:
        return K.f64.lda


cdef inline void gemm(
    Kernels* K, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, real* a, real* b, Py_ssize_t depth, Py_ssize_t k0,
    real* c, Py_ssize_t ldc, real* bias, real* r, Py_ssize_t ldr, int near, real* soon, Py_ssize_t ld_soon) noexcept nogil:
    if real is float:
        K.f32.gemm(m, n, k, a, b, depth, k0, c, ldc, bias, r, ldr, near, soon, ld_soon)
    else:
        K.f64.gemm(m, n, k, a, b, depth, k0, c, ldc, bias, r, ldr, near, soon, ld_soon)


cdef inline void gemm_columns(
    Kernels* K, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, real* a, real* b, Py_ssize_t depth, Py_ssize_t k0, real* c,
    Py_ssize_t ldc, int accumulate, real* sums, real* soon, Py_ssize_t ld_soon) noexcept nogil:
    if real is float:
        K.f32.gemm_columns(m, n, k, a, b, depth, k0, c, ldc, accumulate, sums, soon, ld_soon)
    else:
        K.f64.gemm_columns(m, n, k, a, b, depth, k0, c, ldc, accumulate, sums, soon, ld_soon)


cdef inline void pack_rows(
    Kernels* K, Py_ssize_t rows, Py_ssize_t k, real* x, Py_ssize_t ld, real scale, real* a) noexcept nogil:
    if real is float:
        K.f32.pack_rows(rows, k, x, ld, scale, a)
    else:
        K.f64.pack_rows(rows, k, x, ld, scale, a)


cdef inline void pack_both(
    Kernels* K, Py_ssize_t rows, Py_ssize_t k, real* x, Py_ssize_t ld, real* a, real* b, Py_ssize_t depth,
    Py_ssize_t k0) noexcept nogil:
    if real is float:
        K.f32.pack_both(rows, k, x, ld, a, b, depth, k0)
    else:
        K.f64.pack_both(rows, k, x, ld, a, b, depth, k0)


cdef inline void pack_columns(
    Kernels* K, Py_ssize_t k, Py_ssize_t m, real* x, Py_ssize_t ld, real* mean, real* rstd, real* scale,
    real* shift, real* a) noexcept nogil:
    if real is float:
        K.f32.pack_columns(k, m, x, ld, mean, rstd, scale, shift, a)
    else:
        K.f64.pack_columns(k, m, x, ld, mean, rstd, scale, shift, a)


cdef inline void pack_panels(
    Kernels* K, Py_ssize_t k, Py_ssize_t n, real* x, Py_ssize_t ld, real* b, Py_ssize_t depth, Py_ssize_t k0) noexcept nogil:
    if real is float:
        K.f32.pack_panels(k, n, x, ld, b, depth, k0)
    else:
        K.f64.pack_panels(k, n, x, ld, b, depth, k0)


cdef inline void pack_panels_transposed(
    Kernels* K, Py_ssize_t k, Py_ssize_t n, real* x, Py_ssize_t ld, real* b, Py_ssize_t depth,
    Py_ssize_t k0) noexcept nogil:
    if real is float:
        K.f32.pack_panels_transposed(k, n, x, ld, b, depth, k0)
    else:
        K.f64.pack_panels_transposed(k, n, x, ld, b, depth, k0)


cdef inline void layernorm(
    Kernels* K, Py_ssize_t rows, Py_ssize_t d, real* x, Py_ssize_t ldx, real* scale, real* shift, real eps, real* y,
    Py_ssize_t ldy, Py_ssize_t block, real* mean, real* rstd) noexcept nogil:
    if real is float:
        K.f32.layernorm(rows, d, x, ldx, scale, shift, eps, y, ldy, block, mean, rstd)
    else:
        K.f64.layernorm(rows, d, x, ldx, scale, shift, eps, y, ldy, block, mean, rstd)


cdef inline void layernorm_backward(
    Kernels* K, Py_ssize_t rows, Py_ssize_t d, real* dy, Py_ssize_t lddy, real* x, Py_ssize_t ldx, real* mean,
    real* rstd, real* scale, real* residual, Py_ssize_t ldr, real* dx, Py_ssize_t lddx, real* dscale,
    real* dshift) noexcept nogil:
    if real is float:
        K.f32.layernorm_backward(rows, d, dy, lddy, x, ldx, mean, rstd, scale, residual, ldr, dx, lddx, dscale, dshift)
    else:
        K.f64.layernorm_backward(rows, d, dy, lddy, x, ldx, mean, rstd, scale, residual, ldr, dx, lddx, dscale, dshift)


cdef inline void gelu(
    Kernels* K, int kind, Py_ssize_t rows, Py_ssize_t n, real* x, Py_ssize_t ldx, real* y,
    Py_ssize_t ldy) noexcept nogil:
    if real is float:
        K.f32.gelu(kind, rows, n, x, ldx, y, ldy)
    else:
        K.f64.gelu(kind, rows, n, x, ldx, y, ldy)


cdef inline void gelu_backward(
    Kernels* K, int kind, Py_ssize_t rows, Py_ssize_t n, real* x, Py_ssize_t ldx, real* dy, Py_ssize_t lddy,
    real* b, Py_ssize_t depth, Py_ssize_t k0) noexcept nogil:
    if real is float:
        K.f32.gelu_backward(kind, rows, n, x, ldx, dy, lddy, b, depth, k0)
    else:
        K.f64.gelu_backward(kind, rows, n, x, ldx, dy, lddy, b, depth, k0)


cdef inline real cross_entropy(
    Kernels* K, Py_ssize_t n, real* logits, Py_ssize_t label, real smoothing, real weight,
    real* dlogits) noexcept nogil:
    if real is float:
        return K.f32.cross_entropy(n, logits, label, smoothing, weight, dlogits)
    else:
        return K.f64.cross_entropy(n, logits, label, smoothing, weight, dlogits)


cdef inline void column_sums(
    Kernels* K, Py_ssize_t rows, Py_ssize_t n, real* x, Py_ssize_t ld, int accumulate, real scale,
    real* sums) noexcept nogil:
    if real is float:
        K.f32.column_sums(rows, n, x, ld, accumulate, scale, sums)
    else:
        K.f64.column_sums(rows, n, x, ld, accumulate, scale, sums)


cdef inline void apply(Kernels* K, int function, Py_ssize_t n, real* x, real* y) noexcept nogil:
    if real is float:
        K.f32.apply(function, n, x, y)
    else:
        K.f64.apply(function, n, x, y)


cdef inline Py_ssize_t attention_scratch(
    Kernels* K, Py_ssize_t tokens, Py_ssize_t dh, int backward, real* kind) noexcept nogil:
    if real is float:
        return K.f32.attention_scratch(tokens, dh, backward)
    else:
        return K.f64.attention_scratch(tokens, dh, backward)


cdef inline void attention_forward(
    Kernels* K, Py_ssize_t tokens, Py_ssize_t dh, Py_ssize_t first, Py_ssize_t count, real* q, real* k, real* v,
    Py_ssize_t ld, real* o, Py_ssize_t ldo, real* lse, real* scratch) noexcept nogil:
    if real is float:
        K.f32.attention_forward(tokens, dh, first, count, q, k, v, ld, o, ldo, lse, scratch)
    else:
        K.f64.attention_forward(tokens, dh, first, count, q, k, v, ld, o, ldo, lse, scratch)


cdef inline void attention_backward(
    Kernels* K, Py_ssize_t tokens, Py_ssize_t dh, Py_ssize_t first, Py_ssize_t count, real* q, real* k, real* v, Py_ssize_t ld,
    real* o, real* d_o, Py_ssize_t ldo, real* lse, real* dq, Py_ssize_t lddq, real* dk, real* dv, real* scratch) noexcept nogil:
    if real is float:
        K.f32.attention_backward(tokens, dh, first, count, q, k, v, ld, o, d_o, ldo, lse, dq, lddq, dk, dv, scratch)
    else:
        K.f64.attention_backward(tokens, dh, first, count, q, k, v, ld, o, d_o, ldo, lse, dq, lddq, dk, dv, scratch)


cdef inline void sgd(
    Kernels* K, Py_ssize_t n, real* w, real* g, real* u, real lr, real momentum, int nesterov, real decay,
    real scale) noexcept nogil:
    if real is float:
        K.f32.sgd(n, w, g, u, lr, momentum, nesterov, decay, scale)
    else:
        K.f64.sgd(n, w, g, u, lr, momentum, nesterov, decay, scale)


cdef inline void adamw(
    Kernels* K, Py_ssize_t n, real* w, real* g, real* m, real* v, real lr, real b1, real a1, real b2, real a2, real eps, real decay,
    real c1, real c2, real scale) noexcept nogil:
    if real is float:
        K.f32.adamw(n, w, g, m, v, lr, b1, a1, b2, a2, eps, decay, c1, c2, scale)
    else:
        K.f64.adamw(n, w, g, m, v, lr, b1, a1, b2, a2, eps, decay, c1, c2, scale)


cdef inline double sum_of_squares(Kernels* K, Py_ssize_t n, real* x) noexcept nogil:
    if real is float:
        return K.f32.sum_of_squares(n, x)
    else:
        return K.f64.sum_of_squares(n, x)


cdef inline real probe_flops(Kernels* K, Py_ssize_t rounds, real* kind) noexcept nogil:
    if real is float:
        return K.f32.probe_flops(rounds)
    else:
        return K.f64.probe_flops(rounds)


cdef inline void probe_stream(Kernels* K, Py_ssize_t n, real factor, real* x, real* y) noexcept nogil:
    if real is float:
        K.f32.probe_stream(n, factor, x, y)
    else:
        K.f64.probe_stream(n, factor, x, y)
