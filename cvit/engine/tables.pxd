from .building cimport Building

cdef class Tables(Building):
    cdef int tables_done               # learned rotary positions: of a frozen model's weights
    cdef object learned                # their offsets, block by block
