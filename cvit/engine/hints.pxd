from .task cimport Block, Pass

cdef void derive_hints(const Pass* p, Block* block, bint wanted) noexcept
