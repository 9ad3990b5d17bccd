"""Prefetch hints, derived from the program: what each product of a task fetches while it runs.

A core waits for a dozen lines of memory at most; behind a product they cost next to nothing. So what a task will read
from memory is fetched by a product before it: as late as possible, each product fetching one thing, in the order of the
reads. What the task has read or written already is in the cache, and so is all of its thread's scratch. After the last
step come the rows that the thread's next task begins with. A product whose results' rows are in the cache is told so,
and does not prefetch them. No result depends on a hint.
"""

from libc.string cimport memset
from .task cimport (
    ACTIVATION, DROP, HEAD_NORM, HIDDEN, HINTS, LINEAR, NORM, ROTATE, SCRATCH, STAGE, Block, Hint, Pass, Section, Slot,
    Step,
)

cdef enum:
    MOST = 128   # events of a task

cdef enum Kind:
    READ
    WRITE
    PRODUCT

ctypedef struct Event:
    Kind kind
    Slot slot
    Hint* hint           # of a product: what it is to fetch
    int next_task

ctypedef struct Events:
    const Pass* p
    int count
    Event[MOST] list


cdef inline bint is_private(const Pass* p, const Slot* slot) noexcept:
    return slot.place == SCRATCH or slot.place == STAGE and p.whole_blocks


cdef bint in_cache(const Events* events, const Slot* slot) noexcept:
    """Whether the task has touched these rows already."""
    cdef int i
    cdef const Slot* other
    if is_private(events.p, slot):
        return True
    for i in range(events.count):
        other = &events.list[i].slot
        if events.list[i].kind != PRODUCT and other.place == slot.place and other.at == slot.at:
            return True
    return False


cdef void event(Events* events, Kind kind, const Slot* slot, Hint* hint, Py_ssize_t column=0) noexcept:
    cdef Event* e
    if events.count == MOST:  # hints may be left out
        return
    e = &events.list[events.count]
    e.kind, e.hint, e.next_task = kind, hint, 0
    if slot != NULL:
        e.slot = slot[0]
        e.slot.at += column * (events.p.K.size >> slot.half)
        if kind == READ and in_cache(events, &e.slot):
            return
    events.count += 1


cdef void forward_events(Events* events, Step* step) noexcept:
    cdef int i
    if step.role == ROTATE:  # in place
        return
    if step.role == DROP and step.add.ld:
        event(events, READ, &step.add, NULL)
    if not step.source_is_packed or step.role == NORM:
        event(events, READ, &step.source, NULL)
    if step.role == LINEAR or step.role == HIDDEN:
        step.target_is_cached = in_cache(events, &step.target)
        for i in range(step.linear.count if step.role == LINEAR else 1):
            event(events, PRODUCT, NULL, &step.forward_hints[i])
    event(events, WRITE, &step.target, NULL)


cdef void backward_events(const Pass* p, Events* events, Step* step) noexcept:
    cdef int i
    if step.role == ROTATE:
        return
    if step.role == NORM or step.role == HEAD_NORM:
        event(events, READ, &step.source, NULL)
    elif step.role == LINEAR or step.role == HIDDEN:
        step.d_source_is_cached = in_cache(events, &step.d_source)
        for i in range(step.linear.count if step.role == LINEAR else 1):
            event(events, READ, &step.d_target, NULL, step.linear.column[i] if step.role == LINEAR else 0)
            event(events, PRODUCT, NULL, &step.backward_hints[i])
    elif step.role == ACTIVATION:
        event(events, READ, &step.source, NULL)
    elif step.role == DROP:
        event(events, READ, &step.d_target, NULL)
    event(events, WRITE, &step.d_source, NULL)


cdef void assign(Events* events) noexcept:
    """Each read to the latest product before it that is before those of all later reads; the first read's rows of the
    next task come last."""
    cdef int i, reader, product
    cdef Hint* hint
    for i in range(events.count):
        if events.list[i].kind == READ:
            break
    else:
        return
    if events.count < MOST:
        events.list[events.count] = events.list[i]
        events.list[events.count].next_task = 1
        events.count += 1
    product = events.count
    for reader in range(events.count - 1, -1, -1):
        if events.list[reader].kind != READ:
            continue
        for i in range(min(reader, product) - 1, -1, -1):
            if events.list[i].kind == PRODUCT:
                hint = events.list[i].hint
                hint.given, hint.slot, hint.next_task = 1, events.list[reader].slot, events.list[reader].next_task
                product = i
                break


cdef void clear(Section* section) noexcept:
    cdef int i
    for i in range(section.count):
        memset(section.steps[i].forward_hints, 0, HINTS * sizeof(Hint))
        memset(section.steps[i].backward_hints, 0, HINTS * sizeof(Hint))
        section.steps[i].target_is_cached = section.steps[i].d_source_is_cached = 1


cdef void section_forward(Events* events, Section* section) noexcept:
    cdef int i
    for i in range(section.count):
        if section.steps[i].forward != NULL:
            forward_events(events, &section.steps[i])


cdef void section_backward(const Pass* p, Events* events, Section* section) noexcept:
    cdef int i
    for i in range(section.count - 1, -1, -1):
        if section.steps[i].backward != NULL:
            backward_events(p, events, &section.steps[i])


cdef void derive_section_hints(const Pass* p, Section* section, bint wanted) noexcept:
    """The hints of a section that is a stage of its own."""
    cdef Events events
    events.p = p
    clear(section)
    if not wanted:
        return
    events.count = 0
    section_forward(&events, section)
    assign(&events)
    if not p.training:
        return
    events.count = 0
    section_backward(p, &events, section)
    assign(&events)


cdef void derive_hints(const Pass* p, Block* block, bint wanted) noexcept:
    """The hints of one block's steps, as tasks are cut now. Not wanted, they are all left out."""
    cdef Events events
    events.p = p
    clear(&block.before)
    clear(&block.after)
    if not wanted:
        return
    events.count = 0
    section_forward(&events, &block.before)
    if p.whole_blocks:
        event(&events, READ, &block.heads.qkv, NULL)
        event(&events, WRITE, &block.heads.o, NULL)
    else:
        assign(&events)
        events.count = 0
    section_forward(&events, &block.after)
    assign(&events)
    if not p.training:
        return
    events.count = 0
    section_backward(p, &events, &block.after)
    if p.whole_blocks:
        event(&events, READ, &block.heads.qkv, NULL)
        event(&events, WRITE, &block.heads.d_qkv, NULL)
    else:
        assign(&events)
        events.count = 0
    section_backward(p, &events, &block.before)
    assign(&events)
