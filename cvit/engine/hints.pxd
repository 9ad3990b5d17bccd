from .task cimport Block, Pass, Section

cdef void derive_hints(const Pass* p, Block* block, bint wanted) noexcept
cdef void derive_section_hints(const Pass* p, Section* section, bint wanted) noexcept
