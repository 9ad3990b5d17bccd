"""The plan of a pass, and the calls that run it.

`Plan` is one plan: a program, a batch size, a mode and an element type. It owns an arena for activations and gradients
of activations, packed weights and a piece of scratch for each thread, and allocates nothing after its first call with
so many threads. Weights and the flat gradient belong to the caller. Where everything lies is decided in places.pyx, the
steps are made in building.pyx, and the passes themselves are in stages.pyx.
"""

import numpy as np

from .building cimport address
from .hints cimport derive_hints, derive_section_hints
from .kernels cimport Kernels, ceil_div
from .stages cimport Job, Schedule, work
from .tables cimport Tables
from .task cimport Pass
from .team cimport kernels_of, published, run_team, team_size
from .memory import allocate
from .cutting import LEAST_ROWS, MOST_HEAD_TASKS
from .slots import outline_of
from .team import get_isa, in_own_mode

# Of a pass for each of its threads: with less to do, waiting for each other takes longer than it saves.
THREAD_FLOPS = 1.2e7

cdef enum:
    LINE_MASK = 63


def widened(rows):
    """bfloat16 numbers, given as bytes, as float32: their upper halves."""
    return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


cdef class Progress:
    """How far a backward is: called, it tells how many blocks' gradients are final, counted from the last block.

    For other threads, while the pass runs, which does not hold the GIL; one for each pass. What is final is not written
    again, though the gradient of earlier blocks still holds activations.
    """

    cdef int finished

    def __call__(self):
        return published(&self.finished)


cdef class Plan(Tables):
    """One plan for (program, batch, dtype, mode). See `cvit.model.ViT`, which makes and keeps these.

    mode: "train" for run_training, "infer" for the forward programs, "tokens" for all tokens and the outputs of blocks.
    With `checkpoint` training keeps only the blocks' inputs. With `frozen` the plan keeps all weights packed; `owner`
    may be another frozen plan of the same model, whose packed weights are shared. `dry` plans are not for running.
    With `staged` no task takes whole blocks, so that what lies between their stages can be looked at.
    `fused=False` runs the steps as the program has them, `hints=False` without prefetching: to the same bits, both.
    `precision` is "f32", "f64" or "bf16", None the dtype's own. `kernels` is the address of a cvit_kernels to use in
    place of the table of `isa`, the instruction set's name, None: the one in use.
    """

    cdef bint staged
    cdef readonly object precision
    cdef public object most_stages  # that a pass runs: tests look at what is there behind each; None: all

    def __init__(self, program, Py_ssize_t batch, dtype, mode, bint frozen=False, owner=None, bint checkpoint=False,
                 bint dry=False, bint fused=True, bint hints=True, size_t kernels=0, bint staged=False, precision=None,
                 isa=None):
        cdef Pass* p = &self.p
        self.program, self.batch, self.mode, self.owner = program, batch, mode, owner
        self.dtype = np.dtype(dtype)
        self.isa = isa or get_isa()
        self.precision = precision or ("f32" if self.dtype == np.float32 else "f64")
        p.K = <const Kernels*> kernels if kernels else kernels_of(self.precision, self.isa)
        assert p.K.size == self.dtype.itemsize
        self.outline = outline_of(program, fused)
        self.memory, self.schedules = [], {}
        p.training, p.frozen, p.checkpoint, p.hints = mode == "train", frozen, checkpoint, hints
        self.packs_all, self.staged = frozen, staged
        self._read_program()
        self._cut_tasks()
        self._place_kept()
        self._place_outside()
        self._place_gradients()
        self._place_scratch()
        self._place_packed()
        self._place_tables()
        self._build()
        self._build_ends()
        self.scratch = self.stage_rows = self.packed = np.empty(0, np.uint8)
        if owner is not None:
            self.packed = owner.packed
        if not dry:
            self.arena = allocate(self.placed["end"], np.uint8)

    # --------------------------------------------------------------------------------------- tasks for so many threads
    cdef _cut_for(self, int threads):
        """The rest, for so many threads: blocks of token rows, with or without all of a block's stages, parts of heads,
        and tiles of weight gradients; then the schedules of stages."""
        cdef Pass* p = &self.p
        cdef Py_ssize_t i
        if threads == self.cut_threads:
            return
        p.query_parts = self._query_parts(threads)
        p.head_tasks = min(p.N * self.heads * p.query_parts, MOST_HEAD_TASKS)
        p.token_rows.blocks = self._blocks(threads, max(4, threads))
        # What a thread's scratch has room for:
        assert ceil_div(p.token_rows.units, p.token_rows.blocks) <= self.block_units
        rounds = ceil_div(p.token_rows.blocks, threads)
        # Whole blocks where few threads wait at the end.
        p.whole_blocks = (
            p.token_rows.unit_rows > 0 and not p.checkpoint and not self.staged
            and 8 * rounds * threads <= 9 * p.token_rows.blocks
        )
        p.private_at = self.own
        p.scratch_stride = self.own + (self.stage_own if p.whole_blocks else 0)
        self.pack_rooms = max(1, min(p.L, p.L if self.packs_all else 1 + p.whole_blocks))
        # So often a panel of dy is used while it is in the first-level cache.
        p.tile_rows = min(LEAST_ROWS, 8 * LEAST_ROWS // threads)
        areas = [
            sum(part.k * part.n * len(part.matrices) for products in block.products for part in products)
            for block in self.outline.blocks[:1]
        ]
        p.tile_area = max(areas, default=0) // max(32, 2 * threads)
        for i in range(p.L):
            self._place_panels(&p.blocks[i].before, i)
            self._place_panels(&p.blocks[i].after, i)
            derive_hints(p, &p.blocks[i], p.hints)
        derive_section_hints(p, &p.before, p.hints)
        derive_section_hints(p, &p.after, p.hints)
        derive_section_hints(p, &p.end, p.hints)
        self.schedules.clear()
        self.cut_threads = threads

    # --------------------------------------------------------------------------------------------------------- calls
    def _packed_size(self):
        return self.pack_blocks + (self.pack_rooms * self.pack_stride if self.p.L else 0)

    def _stage_size(self):
        return 0 if self.p.whole_blocks or not self.p.L else self.stage_bytes

    @property
    def buffers(self):
        """The bytes of every buffer, as a call with the threads there are now needs them."""
        self._cut_for(self.threads())
        arena = {title: size for title, size in self.placed.items() if title != "end"}
        return arena | {
            "between the stages of a block": self._stage_size(), "packed weights": self._packed_size(),
            "scratch of a thread": self.p.scratch_stride,
        } | ({"rotary positions": self.tables.nbytes} if self.tables.size else {})  # fmt: skip

    cpdef int threads(self):
        """Threads that a call uses now: no more than its widest stage has tasks, and no more than its work is worth."""
        cdef Pass* p = &self.p
        cdef double flops = 3 * self.flops if p.training else self.flops
        cdef Py_ssize_t worth = 1 + int(flops / THREAD_FLOPS)
        widest = max(p.token_rows.units, p.N * self.heads * self._most_query_parts(), p.image_groups, 4)
        return team_size(min(worth, widest))

    cdef Schedule _schedule(self, kind):
        """The stages of one kind of pass, made at its first call with so many threads."""
        cdef Schedule schedule = self.schedules.get(kind)
        if schedule is None:
            schedule = Schedule()
            schedule.p = &self.p
            if kind == "embed":
                schedule.embed()
            elif kind == "freeze":
                schedule.freeze()
            elif kind == "pool":
                schedule.pool()
            elif isinstance(kind, tuple):  # blocks [first, last)
                if not self.p.frozen:
                    schedule.pack_block(kind[0])
                schedule.blocks(kind[0], kind[1])
            elif kind == "tokens":
                schedule.embed()
                schedule.blocks(0, <int> self.p.L)
                schedule.pool()
            else:
                schedule.forward()
                if kind == "training":
                    schedule.backward()
            self.schedules[kind] = schedule
        return schedule

    def _run(self, kind, weights):
        """Run a kind of pass on the team. Arrays were checked by the caller: C-contiguous, of self.dtype."""
        cdef Job job
        cdef int size = self.threads()
        cdef Schedule schedule
        self._cut_for(size)
        if self.scratch.size < size * self.p.scratch_stride:
            self.scratch = allocate(size * self.p.scratch_stride, np.uint8)
        if self.stage_rows.size < self._stage_size():
            self.stage_rows = allocate(self._stage_size(), np.uint8)
        if self.packed.size < self._packed_size():
            self.packed = allocate(self._packed_size(), np.uint8)
        self.p.weights = <char*> address(weights)
        self.p.arena = <char*> address(self.arena)
        self.p.stage_rows = <char*> address(self.stage_rows)
        self.p.packed = <char*> address(self.packed)
        self.p.scratch = <char*> address(self.scratch)
        self.p.tables = <char*> address(self.tables)
        if self.p.tables_of_weights and not (self.p.frozen and self.tables_done):
            in_own_mode(self._fill_learned_tables, weights)
        schedule = self._schedule(kind)
        job.p, job.stages, job.count = &self.p, schedule.stages, schedule.count
        if self.most_stages is not None:
            job.count = min(schedule.count, self.most_stages)
        with nogil:
            run_team(size, work, &job)

    def _view(self, Py_ssize_t offset, *shape):
        count = self.dtype.itemsize
        for length in shape:
            count *= length
        return self.arena[offset : offset + count].view(self.dtype).reshape(shape)

    def freeze(self, weights):
        """Pack all weights into this plan's own room."""
        self.p.frozen, self.tables_done = 0, False  # count the packing tasks
        try:
            self._run("freeze", weights)
        finally:
            self.p.frozen = 1
            self.schedules.clear()

    def forward(self, weights, images):
        """Run the forward; returns views of the logits and of the features, see `logits` and `features`."""
        self.p.images = <char*> address(images)
        self._run("forward", weights)
        return self.logits(), self.features()

    def logits(self):
        """A view of the logits of the last pass: (N, classes), or (N, T, classes) where every token has its own."""
        return self._view(self.p.logits, *self._leading(), self.p.classes)

    def features(self):
        """A view of what the head saw: (N, width), or (N, T, width)."""
        return self._view(self.p.features.at, *self._leading(), self.p.features.ld)

    def _leading(self):
        if self.p.pool.each:
            return (self.p.N, self.p.pool.count[0])
        return (self.p.N,)

    def tokens(self, weights, images):
        """Run the blocks of a plan for "tokens"; returns a view of all tokens (N, T, D) after the final norm."""
        self.p.images = <char*> address(images)
        self._run("tokens", weights)
        return self.features()

    def _block_by_block(self, weights, images, layers):
        """Run the embedding and the blocks up to each of `layers`, which increase, and yield its number behind it."""
        done = 0
        self.p.images = <char*> address(images)
        self._run("embed", weights)
        for layer in layers:
            self._run((done, layer + 1), weights)
            done = layer + 1
            yield layer

    def layers(self, weights, images, layers, bint norm):
        """Run a plan for "tokens"; yields a view of the tokens (N, T, D) behind each of these blocks, which increase,
        valid until the next one; with `norm` after the final norm."""
        for _ in self._block_by_block(weights, images, layers):
            if norm:
                self._run("pool", weights)
            yield self.features() if norm else self._view(self.p.last_x.at, self.p.N, self.p.T, self.p.D)

    def queries_keys(self, weights, images, layers):
        """Run a plan made with `staged`; yields of each of these blocks, which increase, what its heads read: q, k and
        v (N, T, 3 · width), as reals, valid until the next one."""
        for layer in self._block_by_block(weights, images, layers):
            _, at, _, width, half = self.stage_slots[self.program.blocks[layer].heads.source]
            rows = self.stage_rows[at : at + self.p.R * width * (self.p.K.size >> half)]
            rows = widened(rows) if half else rows.view(self.dtype)
            yield rows.reshape(self.p.N, self.p.T, width)

    @property
    def given(self):
        """A view (N, T, D) of the tokens that the passes of a program with `given` begin with: to be written first."""
        return self._view(self.p.first_x.at, self.p.N, self.p.T, self.p.D)

    @property
    def trained(self):
        """The first weight that has a gradient."""
        return self.p.trained // self.p.K.size

    def embed(self, weights, images):
        """Run the embedding; returns a view of the tokens (N, T, D)."""
        self.p.images = <char*> address(images)
        self._run("embed", weights)
        return self._view(self.p.first_x.at, self.p.N, self.p.T, self.p.D)

    def blocks(self, weights, tokens):
        """Run the blocks on tokens (N, T, D); returns a view of their output (N, T, D)."""
        view = self._view(self.p.last_x.at, self.p.N, self.p.T, self.p.D)
        view[...] = tokens
        self._run((0, self.p.L), weights)
        return view

    def run_training(self, weights, images, labels, double smoothing, grad, sample_weight=None, drop=(0, 0, 0, 0),
                     Progress progress=None):
        """Forward and backward; fills grad and returns the loss: the mean, or the sum with the images' weights.

        labels: int64, one for each pooled row, or of the plan's dtype (rows, classes), the targets. sample_weight: (N,)
        float64. Where tokens are `given`, images are not read, and of grad only what lies from `trained` on is touched.
        Steps that drop do so with `drop` = (rate of the last block's branches, rate of elements, seed, number of the
        first image). `progress` counts the blocks whose part of grad is final.
        """
        if not self.p.given:
            self.p.images = <char*> address(images)
        self.p.labels, self.p.targets = NULL, NULL
        if labels.dtype == self.dtype:
            self.p.targets = <char*> address(labels)
        else:
            self.p.labels = <const long long*> address(labels)
        self.p.sample_weight = NULL
        if sample_weight is not None:
            self.p.sample_weight = <const double*> address(sample_weight)
        self.p.smoothing = smoothing
        self.p.drop.path, self.p.drop.rate, self.p.drop.seed, self.p.drop.first = drop
        self.p.grad = <char*> address(grad)
        self.p.lent = <char*> (<size_t> (self.p.grad + self.p.trained) + LINE_MASK & ~<size_t> LINE_MASK)
        self.p.finished = &progress.finished if progress is not None else NULL
        self._run("training", weights)
        return self._loss()

    cdef double _loss(self):
        """The rows' losses, added in order; a row of weight 0 does not count, even where its loss is infinite."""
        cdef Py_ssize_t row, per_image = self.p.pool.rows // self.p.N
        cdef double weight, loss = 0
        cdef const double* losses = <double*> (self.p.arena + self.p.losses)
        if self.p.sample_weight == NULL:
            for row in range(self.p.pool.rows):
                loss += losses[row]
            return loss / self.p.pool.rows
        for row in range(self.p.pool.rows):
            weight = self.p.sample_weight[row // per_image]
            if weight > 0:
                loss += weight * losses[row]
        return loss / per_image

    # ------------------------------------------------------------------------------------------ what others look at
    @property
    def idle(self):
        """Whether passes only go through their stages, take every task and do none.

        `cvit bench --overhead` times that.
        """
        return bool(self.p.idle)

    @idle.setter
    def idle(self, bint value):
        self.p.idle = value

    @property
    def whole_blocks(self):
        """Whether a task takes a few short images through a whole block, as tasks are cut for the threads that a call
        uses now."""
        self._cut_for(self.threads())
        return bool(self.p.whole_blocks)

    def stages(self, kind=None):
        """The stages of a pass ("forward", "training", …): of each the kinds of its tasks, as (name, block or -1,
        tasks)."""
        self._cut_for(self.threads())
        return self._schedule(kind or ("training" if self.p.training else "forward")).listing()
