/* A team of threads inside one OpenMP region: they share out the tasks of a stage, and meet at a barrier after it.
 *
 * Every thread has a run of the tasks of its own, and when that is done helps the others with theirs. The same rows of
 * tokens so tend to stay with the same thread from stage to stage, where they may still be in its cache, and a thread
 * that is kept off its core holds nobody up.
 *
 * Why not OpenMP's own barrier: on a machine that is busy with other programs a thread is now and then kept off its
 * core, and the others wait. libgomp spins for milliseconds, which costs them their own share of the core. Here a
 * thread spins only for as long as a quiet barrier takes, then sleeps until the last one arrives.
 */
#ifndef CVIT_TEAM_H
#define CVIT_TEAM_H

#include <stdatomic.h>
#include <stddef.h>
#include <sched.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __SSE2__
#include <xmmintrin.h>
#endif
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* The floating-point mode of a pass: rounding to nearest, subnormal inputs and results taken as zero (they would slow a
 * kernel down up to a hundred times), no traps. It belongs to the thread; every thread enters it before its share of a
 * pass and leaves it afterwards, so that neither the caller's mode changes a result nor a pass the caller's mode. */
#if defined(__SSE2__)
typedef unsigned cvit_float_mode; /* MXCSR (Intel SDM vol. 1, 10.2.3) */
static inline cvit_float_mode cvit_float_enter(void)
{
    const cvit_float_mode before = _mm_getcsr();
    _mm_setcsr(0x9fc0);
    return before;
}
static inline void cvit_float_leave(cvit_float_mode before) { _mm_setcsr(before); }
#elif defined(__aarch64__)
typedef unsigned long long cvit_float_mode; /* FPCR: FZ is bit 24 (Arm ARM, C5.2.8) */
static inline cvit_float_mode cvit_float_enter(void)
{
    cvit_float_mode before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(1ull << 24) : "memory");
    return before;
}
static inline void cvit_float_leave(cvit_float_mode before)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory");
}
#else
typedef int cvit_float_mode;
static inline cvit_float_mode cvit_float_enter(void) { return 0; }
static inline void cvit_float_leave(cvit_float_mode before) { (void)before; }
#endif

/* x itself, from which a compiler knows nothing: arithmetic on the result stays after a cvit_float_enter before,
 * arithmetic that made x stays before a cvit_float_leave after. (Compilers move plain arithmetic past a change of mode,
 * but not past a call that they do not see into, such as a kernel's.) */
static inline double cvit_float_fence(double x)
{
    __asm__ volatile("" : "+m"(x));
    return x;
}

#define CVIT_SPINS 2000 /* of some 20 ns to 60 ns each */
#define CVIT_LANES 64   /* more threads than that share their runs of tasks */
#define CVIT_KINDS 8    /* of tasks in a stage, at most */

typedef struct {
    _Alignas(64) atomic_ptrdiff_t taken; /* how many tasks of a lane's run have been taken in this stage */
} cvit_lane;

typedef struct {
    atomic_int size;
    cvit_lane lanes[CVIT_LANES];
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int generation; /* barriers passed so far */
    _Alignas(64) atomic_int sleepers;
} cvit_team;

static inline void cvit_team_restart(cvit_team *team, int size)
{
    for (int i = 0; i < size && i < CVIT_LANES; i++)
        atomic_store_explicit(&team->lanes[i].taken, 0, memory_order_relaxed);
}

static inline void cvit_team_init(cvit_team *team, int size)
{
    atomic_init(&team->size, size);
    for (int i = 0; i < CVIT_LANES; i++)
        atomic_init(&team->lanes[i].taken, 0);
    atomic_init(&team->arrived, 0);
    atomic_init(&team->generation, 0);
    atomic_init(&team->sleepers, 0);
}

static inline int cvit_team_size(cvit_team *team) { return atomic_load_explicit(&team->size, memory_order_relaxed); }

/* Called first by every thread: OpenMP may have given fewer threads than asked for (OMP_THREAD_LIMIT, OMP_DYNAMIC, a
 * region inside a region), and nobody must wait for the others. All store the same number. */
static inline void cvit_team_join(cvit_team *team)
{
#ifdef _OPENMP
    atomic_store_explicit(&team->size, omp_get_num_threads(), memory_order_relaxed);
#else
    atomic_store_explicit(&team->size, 1, memory_order_relaxed);
#endif
}

/* A thread's way through a stage, whose tasks may be of several kinds: of each kind every thread has a run of its own.
 * A run's bounds take divisions of 64 bits, which last as long as a small task: they are worked out once for a run, not
 * for each task. */
typedef struct {
    cvit_team *team;
    int kinds;
    ptrdiff_t lanes, lane, left;                    /* runs, the one at hand, those not yet looked at beside it */
    ptrdiff_t tasks[CVIT_KINDS], first[CVIT_KINDS]; /* of each kind: in the stage; where the run at hand begins */
    ptrdiff_t until[CVIT_KINDS];                    /* tasks of this and earlier kinds in that run */
} cvit_turn;

static inline void cvit_turn_enter(cvit_turn *turn)
{
    const ptrdiff_t lane = turn->lane, lanes = turn->lanes;
    ptrdiff_t until = 0;
    for (int kind = 0; kind < turn->kinds; kind++) {
        turn->first[kind] = turn->tasks[kind] * lane / lanes;
        turn->until[kind] = until += turn->tasks[kind] * (lane + 1) / lanes - turn->first[kind];
    }
}

/* Begin a stage of so many `tasks` of each kind. */
static inline cvit_turn cvit_team_turn(cvit_team *team, int thread, int kinds, const ptrdiff_t *tasks)
{
    const ptrdiff_t size = cvit_team_size(team), lanes = size < CVIT_LANES ? size : CVIT_LANES;
    cvit_turn turn = {.team = team, .kinds = kinds, .lanes = lanes, .lane = thread % lanes, .left = lanes - 1};
    for (int kind = 0; kind < kinds; kind++)
        turn.tasks[kind] = tasks[kind];
    cvit_turn_enter(&turn);
    return turn;
}

/* The next task for this thread, by number within its kind; -1 when all are taken. */
static inline ptrdiff_t cvit_team_take(cvit_turn *turn, int *kind)
{
    for (;;) {
        atomic_ptrdiff_t *taken = &turn->team->lanes[turn->lane].taken;
        const ptrdiff_t all = turn->until[turn->kinds - 1];
        ptrdiff_t task = atomic_load_explicit(taken, memory_order_relaxed);
        if (task < all) {
            if (turn->lanes > 1)
                task = atomic_fetch_add_explicit(taken, 1, memory_order_relaxed);
            else
                atomic_store_explicit(taken, task + 1, memory_order_relaxed);
        }
        if (task < all) {
            int k = 0;
            while (task >= turn->until[k])
                k++;
            *kind = k;
            return turn->first[k] + task - (k ? turn->until[k - 1] : 0);
        }
        if (!turn->left--)
            return -1;
        turn->lane = turn->lane + 1 < turn->lanes ? turn->lane + 1 : 0;
        cvit_turn_enter(turn);
    }
}

static inline void cvit_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Wait until all threads of the team are here; then the next stage begins. */
static inline void cvit_team_sync(cvit_team *team)
{
    const int size = cvit_team_size(team);
    if (size == 1) {
        cvit_team_restart(team, size);
        return;
    }
    const int generation = atomic_load(&team->generation);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == size) {
        atomic_store(&team->arrived, 0);
        cvit_team_restart(team, size);
        atomic_store(&team->generation, generation + 1);
#ifdef __linux__
        if (atomic_load(&team->sleepers))
            syscall(SYS_futex, &team->generation, FUTEX_WAKE_PRIVATE, 1 << 30, NULL, NULL, 0);
#endif
        return;
    }
    for (int i = 0; i < CVIT_SPINS; i++) {
        if (atomic_load_explicit(&team->generation, memory_order_acquire) != generation)
            return;
        cvit_pause();
    }
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->generation) == generation) {
#ifdef __linux__
        syscall(SYS_futex, &team->generation, FUTEX_WAIT_PRIVATE, generation, NULL, NULL, 0);
#else
        sched_yield();
#endif
    }
    atomic_fetch_sub(&team->sleepers, 1);
}

/* A number that other threads read without a lock: how far a pass is, for those that are not of its team, and what was
 * chosen for the process. Who reads it sees all that was done before it was set: of a pass the barrier before orders
 * the others' writes ahead of this thread's release. */
static inline void cvit_publish(int *number, int value) { __atomic_store_n(number, value, __ATOMIC_RELEASE); }
static inline int cvit_published(const int *number) { return __atomic_load_n(number, __ATOMIC_ACQUIRE); }

static inline int cvit_omp_max_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static inline int cvit_has_openmp(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

#endif
