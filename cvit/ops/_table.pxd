"""The table of an array's type, for _kernels.pyx and _heads.pyx."""

from ..engine.kernels cimport Kernels
from ..engine.team cimport F32, F64, selected

ctypedef fused real:
    float
    double


cdef inline const Kernels* table_of(real* x) noexcept nogil:
    return selected(F32 if real is float else F64)
