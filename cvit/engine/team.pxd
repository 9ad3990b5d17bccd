from .kernels cimport Kernels

cdef extern from "team.h" nogil:
    ctypedef struct Team "cvit_team":
        pass
    int size_of "cvit_team_size" (Team* team)
    enum:
        KINDS "CVIT_KINDS"
    ctypedef struct Turn "cvit_turn":
        pass
    Turn turn_of "cvit_team_turn" (Team* team, int thread, int kinds, const Py_ssize_t* tasks)
    Py_ssize_t take "cvit_team_take" (Turn* turn, int* kind)
    void sync "cvit_team_sync" (Team* team)
    void publish "cvit_publish" (int* number, int value)
    int published "cvit_published" (const int* number)

    ctypedef int FloatMode "cvit_float_mode"  # an unsigned integer of some width
    FloatMode float_enter "cvit_float_enter" ()
    void float_leave "cvit_float_leave" (FloatMode before)
    double float_fence "cvit_float_fence" (double x)

# The element types that csrc has tables for.
cdef enum Element:
    F32, F64, BF16, BF16_FAST, ELEMENTS

# What one thread of a team does: called once by each of them, with its number.
ctypedef void (*Work)(void* job, Team* team, int thread) noexcept nogil

cdef const Kernels* selected(int element) noexcept nogil
cdef const Kernels* kernels_of(precision, isa=*) except NULL
cdef int team_size(Py_ssize_t tasks) noexcept nogil
cdef void run_team(int size, Work work, void* job) noexcept nogil
