from .cutting cimport Cutting
from .task cimport Section, Slot

cdef class Places(Cutting):
    cdef readonly object arena, packed, owner
    cdef object placed, scratch, stage_rows, memory, schedules, tables
    cdef readonly Py_ssize_t lent
    cdef Py_ssize_t own, stage_bytes, stage_own, pack_blocks, pack_stride, pack_rooms
    cdef dict stage_slots, outside_slots, gradients
    cdef object fixed                # of every Linear outside the blocks: where its packed matrices lie
    cdef object kept                 # for each block: name -> (place, at, own, ld, half)
    cdef object in_scratch           # for each group of sections: name -> (place, at, own, ld, half)
    cdef object relative             # of every Linear in blocks
    cdef int packs_all, cut_threads  # the threads that tasks are cut for, 0 at first

    cdef int _half(self, group, name) except -1
    cdef void _place_panels(self, Section* section, Py_ssize_t layer) noexcept
    cdef Slot _slot(self, group, layer, name, Py_ssize_t column=*)
    cdef Slot _gradient(self, group, name, Py_ssize_t column=*, Py_ssize_t layer=*)

cdef lines(size)
cdef Slot slot_of(tuple place, Py_ssize_t offset=*) noexcept
