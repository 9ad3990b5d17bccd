from .kernels cimport Kernels
from .task cimport Pass, Section, Slot

cdef class Places:
    cdef Pass p
    cdef readonly object program, dtype, isa, mode, arena, packed, owner
    cdef object placed, scratch, stage_rows, memory, fused, schedules, tables
    cdef readonly Py_ssize_t batch, lent
    cdef Py_ssize_t block_units, own, stage_width, pack_blocks, pack_stride, pack_rooms
    cdef dict stage_slots, outside, outside_slots, gradients
    cdef object fixed                # of every Linear outside the blocks: where its packed matrices lie
    cdef object kept                 # for each block: name -> (place, at, own, ld)
    cdef object in_scratch           # for each group of sections: name -> (place, at, own, ld)
    cdef object relative             # of every Linear in blocks
    cdef int packs_all, cut_threads  # the threads that tasks are cut for, 0 at first
    cdef double flops
    cdef Py_ssize_t pool_stats       # norm statistics of the pooling

    cdef _cut_tasks(self)
    cdef Py_ssize_t _heads(self)
    cdef Py_ssize_t _blocks(self, int threads, int share)
    cdef Py_ssize_t _most_query_parts(self)
    cdef void _place_panels(self, Section* section, Py_ssize_t layer) noexcept
    cdef Slot _slot(self, group, layer, name, Py_ssize_t column=*)
    cdef Slot _gradient(self, group, name, Py_ssize_t column=*)

cdef lines(size)
cdef Slot slot_of(tuple place, Py_ssize_t offset=*) noexcept
