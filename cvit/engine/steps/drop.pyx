"""Dropout of single elements, and stochastic depth, which drops a residual branch of an image as a whole.

    forward     y = x * mask (+ a residual)      mask: 0 or 1 / keep for each element, csrc/kernels/drop.inc
    backward    dx = dy * mask; the residual's gradient is dy as it stands

No mask is kept: it is a function of the call's seed, the step's place in the program, the image's number and the
element's row and column in the image. Without a residual the rows are dropped in place, as is their gradient; a branch
is made where its sum with the residual goes.
"""

from ..kernels cimport Drop, dropping
from ..task cimport Pass, Slot, Step, Task, rows_from


cdef void drop_rows(const Task* t, const Step* step, const Slot* x, const Slot* add, const Slot* y) noexcept nogil:
    """The task's rows, image by image."""
    cdef const Pass* p = t.p
    cdef Py_ssize_t row = t.first, end = t.first + t.rows, image
    cdef Drop call = dropping(step.width, p.drop.seed, step.place)
    call.branch, call.path = step.branch, step.share * p.drop.path
    if step.elements:
        call.rate = p.drop.rate
    while row < end:
        image = row // p.T
        call.sample, call.row = p.drop.first + image, row - image * p.T
        call.rows = min(end - row, p.T - call.row)
        call.x, call.y = rows_from(t, x, row), rows_from(t, y, row)
        if add.ld:
            call.add = rows_from(t, add, row)
        t.K.drop(&call)
        row += call.rows


cdef void drop(const Task* t, const Step* step) noexcept nogil:
    drop_rows(t, step, &step.source, &step.add, &step.target)


cdef void drop_backward(const Task* t, const Step* step) noexcept nogil:
    cdef Slot no_residual = step.d_target
    no_residual.ld = 0
    drop_rows(t, step, &step.d_target, &no_residual, &step.d_source)


cdef void drop_again(const Task* t, const Step* step, const Slot* rows) noexcept nogil:
    """The forward on rows that hold its source again, in place."""
    drop_rows(t, step, rows, &step.add, rows)
