"""What csrc/cvit.h declares, as Cython sees it: operands, a struct for each kind of call, the table of kernels.

Fields and kernels are explained in csrc/cvit.h. A struct is never made by keywords (Cython leaves members that are not
named uninitialised): the constructors below set every member, and a caller then sets what differs.
"""

from libc.stdint cimport uint64_t

cdef extern from "cvit.h" nogil:
    ctypedef struct Matrix "cvit_matrix":
        void* at
        Py_ssize_t ld
        int half
    ctypedef struct PackedRows "cvit_rows":
        void* at
        Py_ssize_t rows
    ctypedef struct Panels "cvit_panels":
        void* at
        Py_ssize_t depth, row

    ctypedef struct Prefetch "cvit_prefetch":
        int c_is_cached
        Matrix next
    ctypedef struct Gemm "cvit_gemm":
        Py_ssize_t m, n, k
        PackedRows a
        Panels b
        Matrix c
        const void* bias
        Matrix add
        Prefetch hint
    ctypedef struct GemmColumns "cvit_gemm_columns":
        Py_ssize_t m, n, k
        const void* a
        Panels b
        Matrix c
        int accumulate
        void* column_sums
        Prefetch hint
    ctypedef struct PackRows "cvit_pack_rows":
        Py_ssize_t rows, k
        Matrix x
        double scale
        PackedRows a
        Panels b
    ctypedef struct PackColumns "cvit_pack_columns":
        Py_ssize_t k, m
        Matrix x
        const void* mean
        const void* rstd
        const void* scale
        const void* shift
        void* a
    ctypedef struct PackPanels "cvit_pack_panels":
        Py_ssize_t k, n
        Matrix x
        const void* factor
        Panels b

    ctypedef struct Norm "cvit_norm":
        Py_ssize_t rows, d
        int rms
        Matrix x
        const void* scale
        const void* shift
        double eps
        Matrix y
        PackedRows a
        void* mean
        void* rstd
    ctypedef struct NormBackward "cvit_norm_backward":
        Py_ssize_t rows, d
        int rms
        Matrix dy
        Matrix x
        const void* mean
        const void* rstd
        const void* scale
        Matrix residual
        Matrix dx
        void* dscale
        void* dshift

    enum:
        GELU_TANH "CVIT_GELU_TANH"
        GELU_ERF "CVIT_GELU_ERF"
        QUICK_GELU "CVIT_QUICK_GELU"
        SILU "CVIT_SILU"
        RELU "CVIT_RELU"
        TANH "CVIT_TANH"
    ctypedef struct Activation "cvit_activation":
        int kind
        Py_ssize_t rows, n
        Matrix x
        Matrix value
        Matrix y
        PackedRows a
    ctypedef struct ActivationBackward "cvit_activation_backward":
        int kind
        Py_ssize_t rows, n
        Matrix x
        Matrix value
        Matrix dy
        PackedRows a
        Panels b
        Matrix dvalue
        PackedRows a_value
        Panels b_value
    ctypedef struct Hidden "cvit_hidden":
        Gemm product
        Activation activation
        int keep
    ctypedef struct HiddenBackward "cvit_hidden_backward":
        Gemm product
        ActivationBackward activation
    ctypedef struct AddRows "cvit_add_rows":
        Py_ssize_t rows, n
        Matrix x
        double factor
        const void* columns
        Matrix add
        Matrix y
    ctypedef struct ColumnSums "cvit_column_sums":
        Py_ssize_t rows, n
        Matrix x
        int accumulate
        double scale
        void* sums
    ctypedef struct Unscale "cvit_unscale":
        Py_ssize_t rows, n
        Matrix w
        Matrix dw
        const void* factor
        void* sums
    ctypedef struct CrossEntropy "cvit_cross_entropy":
        Py_ssize_t n, label
        const void* target
        const void* logits
        double smoothing, weight
        void* dlogits

    ctypedef struct Attention "cvit_attention":
        Py_ssize_t tokens, dh, first, count
        Matrix q
        Matrix k
        Matrix v
        Matrix o
        void* lse
        void* scratch
    ctypedef struct AttentionBackward "cvit_attention_backward":
        Py_ssize_t tokens, dh, first, count
        Matrix q
        Matrix k
        Matrix v
        Matrix o
        Matrix d_o
        const void* lse
        Matrix dq
        Matrix dk
        Matrix dv
        void* scratch

    ctypedef struct Rotate "cvit_rotate":
        Py_ssize_t rows, heads, half
        Matrix x
        Matrix cosines
        Matrix sines
        int each_head, back
    ctypedef struct RotateFrequencies "cvit_rotate_frequencies":
        Py_ssize_t rows, heads, half
        Matrix y
        Matrix dy
        const void* coordinates
        void* sums
    ctypedef struct Drop "cvit_drop":
        Py_ssize_t rows, n
        Matrix x
        Matrix add
        Matrix y
        uint64_t seed, sample
        Py_ssize_t row
        int place, branch
        double path, rate
    ctypedef struct Attend "cvit_attend":
        Py_ssize_t tokens, dh
        const void* q
        Matrix k
        Matrix v
        void* o
        void* scratch
    ctypedef struct AttendBackward "cvit_attend_backward":
        Py_ssize_t tokens, dh
        const void* q
        const void* d_o
        Matrix k
        Matrix v
        void* dq
        Matrix dk
        Matrix dv
        void* scratch

    ctypedef struct Update "cvit_update":
        Py_ssize_t n
        void* w
        const void* g
        void* m
        void* v
        double lr, beta1, beta2, eps, decay, scale
        double c1, c2
        int nesterov

    ctypedef struct Kernels "cvit_kernels":
        const char* isa
        const char* element
        Py_ssize_t size, rows_size, panels_size
        int half
        const char* peak
        Py_ssize_t vl, mr, nr, kc, lda, rows_unit, depth_unit
        void (*gemm)(const Gemm*) noexcept nogil
        void (*gemm_columns)(const GemmColumns*) noexcept nogil
        void (*pack_rows)(const PackRows*) noexcept nogil
        void (*pack_both)(const PackRows*) noexcept nogil
        void (*pack_columns)(const PackColumns*) noexcept nogil
        void (*pack_panels)(const PackPanels*) noexcept nogil
        void (*pack_panels_transposed)(const PackPanels*) noexcept nogil
        void (*norm)(const Norm*) noexcept nogil
        void (*norm_backward)(const NormBackward*) noexcept nogil
        void (*activation)(const Activation*) noexcept nogil
        void (*activation_backward)(const ActivationBackward*) noexcept nogil
        void (*hidden)(const Hidden*) noexcept nogil
        void (*hidden_backward)(const HiddenBackward*) noexcept nogil
        void (*add_rows)(const AddRows*) noexcept nogil
        void (*column_sums)(const ColumnSums*) noexcept nogil
        void (*unscale)(const Unscale*) noexcept nogil
        double (*cross_entropy)(const CrossEntropy*) noexcept nogil
        Py_ssize_t (*attention_scratch)(Py_ssize_t tokens, Py_ssize_t dh, int backward) noexcept nogil
        void (*attention)(const Attention*) noexcept nogil
        void (*attention_backward)(const AttentionBackward*) noexcept nogil
        void (*rotate)(const Rotate*) noexcept nogil
        void (*rotate_frequencies)(const RotateFrequencies*) noexcept nogil
        void (*drop)(const Drop*) noexcept nogil
        Py_ssize_t (*attend_scratch)(Py_ssize_t tokens) noexcept nogil
        void (*attend)(const Attend*) noexcept nogil
        void (*attend_backward)(const AttendBackward*) noexcept nogil
        void (*sgd)(const Update*) noexcept nogil
        void (*adamw)(const Update*) noexcept nogil
        void (*average)(Py_ssize_t n, double rate, const void* x, void* average) noexcept nogil
        double (*sum_of_squares)(Py_ssize_t n, const void* x) noexcept nogil
        void (*apply)(int function, Py_ssize_t n, const void* x, void* y) noexcept nogil
        double (*probe_flops)(Py_ssize_t rounds) noexcept nogil
        void (*probe_stream)(Py_ssize_t n, double factor, const void* x, void* y) noexcept nogil
        void (*enter)() noexcept nogil
        void (*leave)() noexcept nogil

    ctypedef struct Table "cvit_table":
        const Kernels* kernels
        int supported

    const Table* cvit_tables(int* count)


# ---------------------------------------------------------------------------------------------------------- operands
cdef inline Matrix matrix(void* at, Py_ssize_t ld, int half=0) noexcept nogil:
    cdef Matrix x
    x.at, x.ld, x.half = at, ld, half
    return x


cdef inline Matrix none() noexcept nogil:
    """The operand that is left out."""
    return matrix(NULL, 0)


cdef inline PackedRows packed_rows(void* at, Py_ssize_t rows) noexcept nogil:
    cdef PackedRows a
    a.at, a.rows = at, rows
    return a


cdef inline Panels panels(void* at, Py_ssize_t depth, Py_ssize_t row=0) noexcept nogil:
    cdef Panels b
    b.at, b.depth, b.row = at, depth, row
    return b


# -------------------------------------------------------------------- calls: every member set, then those that differ
cdef inline Gemm product(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, PackedRows a, Panels b, Matrix c) noexcept nogil:
    cdef Gemm g
    g.m, g.n, g.k = m, n, k
    g.a, g.b, g.c = a, b, c
    g.bias = NULL
    g.add = none()
    g.hint.c_is_cached = 0
    g.hint.next = none()
    return g


cdef inline GemmColumns columns_product(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const void* a, Panels b,
                                        Matrix c) noexcept nogil:
    cdef GemmColumns g
    g.m, g.n, g.k = m, n, k
    g.a, g.b, g.c = a, b, c
    g.accumulate = 0
    g.column_sums = NULL
    g.hint.c_is_cached = 0
    g.hint.next = none()
    return g


cdef inline PackRows packing_rows(Py_ssize_t rows, Py_ssize_t k, Matrix x, void* a) noexcept nogil:
    cdef PackRows call
    call.rows, call.k, call.x, call.scale = rows, k, x, 1
    call.a = packed_rows(a, rows)
    call.b = panels(NULL, 0)
    return call


cdef inline PackColumns packing_columns(Py_ssize_t k, Py_ssize_t m, Matrix x, void* a) noexcept nogil:
    cdef PackColumns call
    call.k, call.m, call.x, call.a = k, m, x, a
    call.mean = call.rstd = call.scale = call.shift = NULL
    return call


cdef inline PackPanels packing_panels(Py_ssize_t k, Py_ssize_t n, Matrix x, Panels b) noexcept nogil:
    cdef PackPanels call
    call.k, call.n, call.x, call.b = k, n, x, b
    call.factor = NULL
    return call


cdef inline Norm normalisation(Py_ssize_t rows, Py_ssize_t d, Matrix x, double eps) noexcept nogil:
    cdef Norm call
    call.rows, call.d, call.x, call.eps, call.rms = rows, d, x, eps, 0
    call.scale = call.shift = NULL
    call.y = none()
    call.a = packed_rows(NULL, 0)
    call.mean = call.rstd = NULL
    return call


cdef inline NormBackward normalisation_backward(Py_ssize_t rows, Py_ssize_t d, Matrix dy, Matrix x,
                                                Matrix dx) noexcept nogil:
    cdef NormBackward call
    call.rows, call.d, call.dy, call.x, call.dx, call.rms = rows, d, dy, x, dx, 0
    call.mean = call.rstd = call.scale = NULL
    call.residual = none()
    call.dscale = call.dshift = NULL
    return call


cdef inline Activation activating(int kind, Py_ssize_t rows, Py_ssize_t n, Matrix x) noexcept nogil:
    cdef Activation call
    call.kind, call.rows, call.n, call.x = kind, rows, n, x
    call.value = call.y = none()
    call.a = packed_rows(NULL, 0)
    return call


cdef inline ActivationBackward activating_backward(int kind, Py_ssize_t rows, Py_ssize_t n, Matrix x,
                                                   Matrix dy) noexcept nogil:
    cdef ActivationBackward call
    call.kind, call.rows, call.n, call.x, call.dy = kind, rows, n, x, dy
    call.value = call.dvalue = none()
    call.a = call.a_value = packed_rows(NULL, 0)
    call.b = call.b_value = panels(NULL, 0)
    return call


cdef inline AddRows adding(Py_ssize_t rows, Py_ssize_t n, Matrix x, Matrix y) noexcept nogil:
    cdef AddRows call
    call.rows, call.n, call.x, call.y, call.factor = rows, n, x, y, 1
    call.columns = NULL
    call.add = none()
    return call


cdef inline Drop dropping(Py_ssize_t n, uint64_t seed, int place) noexcept nogil:
    """Without rows, which a caller sets."""
    cdef Drop call
    call.n, call.seed, call.place, call.branch = n, seed, place, place
    call.rows, call.row, call.sample, call.path, call.rate = 0, 0, 0, 0, 0
    call.x = call.add = call.y = none()
    return call


cdef inline ColumnSums summing(Py_ssize_t rows, Py_ssize_t n, Matrix x, void* sums) noexcept nogil:
    cdef ColumnSums call
    call.rows, call.n, call.x, call.sums = rows, n, x, sums
    call.accumulate, call.scale = 0, 1
    return call


cdef inline CrossEntropy crossing(Py_ssize_t n, double smoothing, double weight) noexcept nogil:
    cdef CrossEntropy call
    call.n, call.smoothing, call.weight, call.label = n, smoothing, weight, 0
    call.target = call.logits = NULL
    call.dlogits = NULL
    return call


cdef inline Py_ssize_t bytes_of(Py_ssize_t offset, Py_ssize_t size) noexcept nogil:
    """An offset in bytes; -1 stays, a weight that the model lacks."""
    return offset * size if offset >= 0 else -1


# -------------------------------------------------------------------------------------------------- sizes, in elements
cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline Py_ssize_t round_up(Py_ssize_t a, Py_ssize_t to) noexcept nogil:
    return ceil_div(a, to) * to


cdef inline Py_ssize_t panel_depth(const Kernels* K, Py_ssize_t k) noexcept nogil:
    """How deep panels of k rows are."""
    return round_up(k, K.depth_unit)


cdef inline Py_ssize_t panels_bytes(const Kernels* K, Py_ssize_t k, Py_ssize_t n) noexcept nogil:
    """Bytes of a (k, n) right operand, for any instruction set; and of n of its columns, a multiple of the panels'
    width."""
    return panel_depth(K, k) * round_up(n, 32) * K.panels_size


cdef inline Py_ssize_t rows_bytes(const Kernels* K, Py_ssize_t rows, Py_ssize_t k) noexcept nogil:
    """Bytes of `rows` packed rows of k columns."""
    return round_up(rows, K.rows_unit) * K.lda * ceil_div(k, K.kc) * K.rows_size


cdef inline Py_ssize_t hidden_bytes(const Kernels* K, Py_ssize_t rows) noexcept nogil:
    """Bytes of `rows` rows of one block of hidden columns, whose packed rows take their place."""
    return max(rows * K.lda * K.size, rows_bytes(K, rows, K.kc))


cdef inline Py_ssize_t columns_bytes(const Kernels* K, Py_ssize_t k, Py_ssize_t m) noexcept nogil:
    """Bytes of pack_columns' k rows of m columns: whole register tiles in whole vectors."""
    return panel_depth(K, k) * ceil_div(m, K.mr) * round_up(K.mr, K.vl) * K.rows_size
