"""One pre-norm transformer block, forward and backward: three stages each.

    qkv     rows     [q k v] = norm1(x) @ W_qkv + b
    heads   heads    o = softmax(q kᵀ / sqrt(dh)) v
    mlp     rows     mid = x + o @ W_o + b_o;   u = norm2(mid) @ W_1 + b_1;   y = mid + gelu(u) @ W_2 + b_2

and back, from dy (what each formula means is derived in docs/backward.md):

    mlp     rows     dg = dy @ W_2ᵀ,  du = dg gelu'(u),  dmid = dy + norm2'(du @ W_1ᵀ),  do = dmid @ W_oᵀ
    heads   heads    dq, dk, dv from do
    qkv     rows     dx = dmid + norm1'(dq @ W_qᵀ + dk @ W_kᵀ + dv @ W_vᵀ)

The weights' gradients follow in _weights.pyx. Forward keeps x, q, k, v, o, lse, mid, u and each row's mean and rstd; the normalised
rows are made anew where they are needed. A task of a rows stage is a block of token rows, cut by shapes alone: for its rows
everything from one stage to the next happens in one thread's cache, the hidden rows KC columns at a time. What comes from memory,
products ask for while they run: the last arguments of `gemm` say whether its results are near, and what is read after it. A task of
a heads stage is one head of one image, or a part of its queries, or a few small heads. Where images are short, a task takes a few of
them through all three stages, and what lies between is still near.
"""

from libc.string cimport memset
from .kernels cimport (
    attention_backward, attention_forward, block_depth, gelu, gelu_backward, gemm, layernorm, layernorm_backward, pack_both, pack_rows,
    packed_stride, real,
)
from .state cimport (
    KEEP_LSE, KEEP_MID, KEEP_O, KEEP_QKV, KEEP_STATS, KEEP_U, KEEP_X, Pass, block_start, ceil_div, cut, kept, pack_room, panel_size,
    part, split, unit_start,
)


cdef inline real* weight(real* kind, Pass* p, Py_ssize_t layer, Py_ssize_t offset) noexcept nogil:
    """A weight of block `layer`, NULL if the configuration lacks it."""
    return part(kind, p.weights, -1 if offset < 0 else p.w.blocks + layer * p.w.block_stride + offset)


cdef inline real* packed_qkv(real* kind, Pass* p, Py_ssize_t layer) noexcept nogil:
    return part(kind, p.packed, p.at.pack_qkv + pack_room(p, layer))


cdef inline real* packed_mlp(real* kind, Pass* p, Py_ssize_t layer) noexcept nogil:
    return part(kind, p.packed, p.at.pack_mlp + pack_room(p, layer))


# Where rows lie between the stages of a block: (R, 3 D) of q, k, v or their gradients, and (R, D) of the heads' outputs or theirs. A task
# that takes its rows, from `first` on, through all stages keeps them to itself. The forward's are kept for a backward.
cdef inline real* wide_at(real* s, Pass* p, Py_ssize_t row, Py_ssize_t first) noexcept nogil:
    return s + p.own + (row - first) * 3 * p.D if p.together else <real*> p.between + row * 3 * p.D


cdef inline real* narrow_at(real* s, Pass* p, Py_ssize_t row, Py_ssize_t first) noexcept nogil:
    return s + p.own + (3 * p.block_rows + row - first) * p.D if p.together else <real*> p.between + (3 * p.R + row) * p.D


cdef inline real* qkv_at(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t row, Py_ssize_t first) noexcept nogil:
    return kept(s, p, KEEP_QKV, layer) + row * 3 * p.D if p.training else wide_at(s, p, row, first)


cdef inline real* o_at(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t row, Py_ssize_t first) noexcept nogil:
    return kept(s, p, KEEP_O, layer) + row * p.D if p.training else narrow_at(s, p, row, first)


cdef Py_ssize_t block_scratch(real* kind, Pass* p) noexcept nogil:
    """Scratch of the rows stages: packed rows of width D, one block of hidden rows, and (rows, D)."""
    cdef Py_ssize_t rows = p.block_rows, lda = packed_stride(&p.kernels, kind)
    return rows * (lda * (ceil_div(p.D, block_depth(&p.kernels, kind)) + 1) + p.D)


cdef void norm_backward(real* s, Pass* p, Py_ssize_t task, bint second, real* dn, real* x, real* mean, real* scale, real* dx) noexcept nogil:
    """dx (rows, D) += what dn (rows, D) becomes behind the first or second norm of x: the rows of a block of token rows.

    The gradients of its scale and shift are sums over all rows. Each unit of rows has a part of its own, whatever blocks the threads
    take: the bits do not depend on their number.
    """
    cdef Py_ssize_t D = p.D, first = block_start(p, task), unit, row, rows
    cdef real* sums
    for unit in range(cut(p.units, p.row_blocks, task), cut(p.units, p.row_blocks, task + 1)):
        row = unit_start(p, unit) - first
        rows = unit_start(p, unit + 1) - first - row
        sums = part(s, p.arena, p.at.partial) + (4 * unit + 2 * second) * D
        memset(sums, 0, 2 * D * sizeof(real))
        layernorm_backward(&p.kernels, rows, D, dn + row * D, D, x + row * D, D, mean + row, mean + row + p.R, scale, dx + row * D, D,
                           dx + row * D, D, sums if scale != NULL else <real*> NULL, sums + D)


# ---------------------------------------------------------------------------------------------------- rows -> q, k, v
cdef void qkv_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t D = p.D, first = block_start(p, task), m = block_start(p, task + 1) - first
    cdef Py_ssize_t lda = packed_stride(&p.kernels, s), j
    cdef real* x = kept(s, p, KEEP_X, layer) + first * D
    cdef real* qkv = qkv_at(s, p, layer, first, first)
    cdef real* mean = NULL
    cdef real* rstd = NULL
    cdef int near = p.together and not p.training  # what the backward reads goes to memory
    cdef Py_ssize_t[3] bias = [p.w.block.q_b, p.w.block.k_b, p.w.block.v_b]
    if p.training:
        mean = kept(s, p, KEEP_STATS, layer) + first
        rstd = mean + p.R
    layernorm(&p.kernels, m, D, x, D, weight(s, p, layer, p.w.block.norm1_w), weight(s, p, layer, p.w.block.norm1_b),
              <real> p.eps, s, lda, m * lda, mean, rstd)
    for j in range(3):  # the last one asks for the next task's rows
        gemm(&p.kernels, m, D, D, s, packed_qkv(s, p, layer) + j * panel_size(D, D), D, 0, qkv + j * D, 3 * D,
             weight(s, p, layer, bias[j]), <real*> NULL, 0, near,
             x + m * D if j == 2 and not p.together else <real*> NULL, D)


cdef void qkv_backward_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t D = p.D, first = block_start(p, task), m = block_start(p, task + 1) - first
    cdef Py_ssize_t lda = packed_stride(&p.kernels, s), i, j, c
    cdef real* dn = s + m * lda * ceil_div(D, block_depth(&p.kernels, s))
    cdef real* dqkv = wide_at(s, p, first, first)
    cdef real* x = kept(s, p, KEEP_X, layer) + first * D
    cdef real* dx = part(s, p.arena, p.at.dx) + first * D  # dmid until the end
    cdef real* mean = kept(s, p, KEEP_STATS, layer) + first
    cdef real* scale = weight(s, p, layer, p.w.block.norm1_w)
    cdef real* more
    cdef real* soon
    for j in range(p.key_parts - 1):
        more = part(s, p.arena, p.at.dq_parts) + (j * p.R + first) * D
        for i in range(m):
            for c in range(D):
                dqkv[i * 3 * D + c] += more[i * D + c]
    for j in range(3):
        if p.together:  # dqkv is near; the next task begins with dy
            soon = x if j == 0 else dx + m * D if j == 1 else <real*> NULL
        else:
            soon = dqkv + (j + 1) * D if j < 2 else x
        pack_both(&p.kernels, m, D, dqkv + j * D, 3 * D, s, part(s, p.arena, p.at.dqkv_panels) + j * panel_size(p.R, D), p.R, first)
        gemm(&p.kernels, m, D, D, s, packed_qkv(s, p, layer) + j * panel_size(D, D), D, 0, dn, D, <real*> NULL,
             dn if j else <real*> NULL, D, True, soon, D if p.together or j == 2 else 3 * D)
    norm_backward(s, p, task, 0, dn, x, mean, scale, dx)


# ---------------------------------------------------------------------------------------------------- heads: attention
cdef void heads_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t pieces = p.N * p.H * p.query_parts, tasks = p.head_tasks, piece
    for piece in range(cut(pieces, tasks, task), cut(pieces, tasks, task + 1)):
        head(s, p, layer, piece, 0)


cdef void head(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t piece, Py_ssize_t block_row) noexcept nogil:
    cdef Py_ssize_t D = p.D, T = p.T, dh = p.dh, parts = p.query_parts, which = 0, h
    cdef Py_ssize_t n = split(piece if parts == 1 else split(piece, parts, &which), p.H, &h)
    cdef Py_ssize_t first = cut(T, parts, which), count = cut(T, parts, which + 1) - first
    cdef real* q = qkv_at(s, p, layer, n * T, block_row) + h * dh
    cdef real* o = o_at(s, p, layer, n * T + first, block_row) + h * dh
    cdef real* lse = NULL
    if p.training:
        lse = kept(s, p, KEEP_LSE, layer) + (n * p.H + h) * T + first
    attention_forward(&p.kernels, T, dh, first, count, q, q + D, q + 2 * D, 3 * D, o, D, lse, s)


cdef void heads_backward_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t pieces = p.N * p.H * p.key_parts, tasks = p.head_backward_tasks, piece
    for piece in range(cut(pieces, tasks, task), cut(pieces, tasks, task + 1)):
        head_backward(s, p, layer, piece, 0)


cdef void head_backward(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t piece, Py_ssize_t block_row) noexcept nogil:
    cdef Py_ssize_t D = p.D, T = p.T, dh = p.dh, ldq = 3 * D, parts = p.key_parts, which = 0, h
    cdef Py_ssize_t n = split(piece if parts == 1 else split(piece, parts, &which), p.H, &h)
    cdef Py_ssize_t first = cut(T, parts, which), count = cut(T, parts, which + 1) - first
    cdef real* q = kept(s, p, KEEP_QKV, layer) + n * T * 3 * D + h * dh
    cdef real* dq = wide_at(s, p, n * T, block_row) + h * dh
    cdef real* o = kept(s, p, KEEP_O, layer) + n * T * D + h * dh
    cdef real* d_o = narrow_at(s, p, n * T, block_row) + h * dh
    cdef real* lse = kept(s, p, KEEP_LSE, layer) + (n * p.H + h) * T
    cdef real* dk = dq + D
    if which:  # dq is summed up over the parts by the next stage
        dq = part(s, p.arena, p.at.dq_parts) + ((which - 1) * p.R + n * T) * D + h * dh
        ldq = D
    attention_backward(&p.kernels, T, dh, first, count, q, q + D, q + 2 * D, 3 * D, o, d_o, D, lse, dq, ldq, dk, dk + D, s)


# ------------------------------------------------------------------------------- rows -> projection, residual, MLP
cdef void mlp_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task, bint whole) noexcept nogil:
    """Without `whole` only what the backward needs of it, mid and u, when a checkpointed block is computed again."""
    cdef Py_ssize_t D = p.D, F = p.F, first = block_start(p, task), m = block_start(p, task + 1) - first
    cdef Py_ssize_t lda = packed_stride(&p.kernels, s), kc = block_depth(&p.kernels, s), f, width, ldu
    cdef real* g = s + m * lda * ceil_div(D, kc)  # a block of hidden rows, packed
    cdef real* x = kept(s, p, KEEP_X, layer) + first * D
    cdef real* y = kept(s, p, KEEP_X, layer + 1) + first * D
    cdef real* mid = kept(s, p, KEEP_MID, layer) + first * D
    cdef real* o = o_at(s, p, layer, first, first)
    cdef real* w_o = packed_mlp(s, p, layer)
    cdef real* w_1 = w_o + panel_size(D, D)
    cdef real* w_2 = w_1 + panel_size(D, F)
    cdef real* b_1 = weight(s, p, layer, p.w.block.fc1_b)
    cdef real* u = g
    cdef int near = p.together and not p.training
    cdef real* mean = NULL
    cdef real* rstd = NULL
    ldu = lda
    if p.training:
        mean = kept(s, p, KEEP_STATS, layer) + 2 * p.R + first
        rstd = mean + p.R
        ldu = F
    pack_rows(&p.kernels, m, D, o, D, <real> 1, s)
    gemm(&p.kernels, m, D, D, s, w_o, D, 0, mid, D, weight(s, p, layer, p.w.block.o_b), x, D, near, <real*> NULL, 0)
    layernorm(&p.kernels, m, D, mid, D, weight(s, p, layer, p.w.block.norm2_w), weight(s, p, layer, p.w.block.norm2_b),
              <real> p.eps, s, lda, m * lda, mean, rstd)
    for f from 0 <= f < F by kc:
        width = min(kc, F - f)
        if p.training:
            u = kept(s, p, KEEP_U, layer) + first * F + f
        gemm(&p.kernels, m, width, D, s, w_1 + f * D, D, 0, u, ldu, b_1 + f if b_1 != NULL else <real*> NULL,
             <real*> NULL, 0, u == g, <real*> NULL, 0)
        if whole:
            gelu(&p.kernels, p.gelu, m, width, u, ldu, g, lda)
            gemm(&p.kernels, m, D, width, g, w_2, F, f, y, D,
                 weight(s, p, layer, p.w.block.fc2_b) if f == 0 else <real*> NULL, y if f else mid, D, False,
                 (x if p.together else o) + m * D if f + kc >= F else <real*> NULL, D)


cdef void mlp_backward_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t D = p.D, F = p.F, first = block_start(p, task), m = block_start(p, task + 1) - first
    cdef Py_ssize_t lda = packed_stride(&p.kernels, s), kc = block_depth(&p.kernels, s), f, width
    cdef real* dg = s + m * lda * ceil_div(D, kc)
    cdef real* dn = dg + m * lda
    cdef real* dy = part(s, p.arena, p.at.dx) + first * D  # becomes dmid
    cdef real* mid = kept(s, p, KEEP_MID, layer) + first * D
    cdef real* mean = kept(s, p, KEEP_STATS, layer) + 2 * p.R + first
    cdef real* scale = weight(s, p, layer, p.w.block.norm2_w)
    cdef real* w_o = packed_mlp(s, p, layer)
    cdef real* w_1 = w_o + panel_size(D, D)
    cdef real* w_2 = w_1 + panel_size(F, D)
    pack_both(&p.kernels, m, D, dy, D, s, part(s, p.arena, p.at.dy_panels), p.R, first)
    for f from 0 <= f < F by kc:
        width = min(kc, F - f)
        gemm(&p.kernels, m, width, D, s, w_2 + f * D, D, 0, dg, lda, <real*> NULL, <real*> NULL, 0, True,
             kept(s, p, KEEP_U, layer) + first * F + f, F)
        gelu_backward(&p.kernels, p.gelu, m, width, kept(s, p, KEEP_U, layer) + first * F + f, F,
                      dg, lda, part(s, p.arena, p.at.du_panels) + f * p.R, p.R, first)
        gemm(&p.kernels, m, D, width, dg, w_1, F, f, dn, D, <real*> NULL, dn if f else <real*> NULL, D, True,
             mid if f + kc >= F else <real*> NULL, D)
    norm_backward(s, p, task, 1, dn, mid, mean, scale, dy)
    pack_both(&p.kernels, m, D, dy, D, s, part(s, p.arena, p.at.dmid_panels), p.R, first)
    gemm(&p.kernels, m, D, D, s, w_o, D, 0, narrow_at(s, p, first, first), D, <real*> NULL, <real*> NULL, 0, p.together,
         kept(s, p, KEEP_QKV, layer) + first * 3 * D if p.together else dy + m * D, 3 * D if p.together else D)


# ------------------------------------------------------------------------------------------- short images: a whole block
cdef void block_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t first = block_start(p, task), piece
    qkv_task(s, p, layer, task)
    for piece in range(first // p.T * p.H, block_start(p, task + 1) // p.T * p.H):
        head(s, p, layer, piece, first)
    mlp_task(s, p, layer, task, True)


cdef void block_backward_task(real* s, Pass* p, Py_ssize_t layer, Py_ssize_t task) noexcept nogil:
    cdef Py_ssize_t first = block_start(p, task), piece
    mlp_backward_task(s, p, layer, task)
    for piece in range(first // p.T * p.H, block_start(p, task + 1) // p.T * p.H):
        head_backward(s, p, layer, piece, first)
    qkv_backward_task(s, p, layer, task)
