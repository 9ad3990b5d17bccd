/* A team of threads inside one OpenMP region: they take tasks from one counter, and meet at a barrier after each stage.
 *
 * Why not OpenMP's own barrier: on a machine that is busy with other programs a thread is now and then kept off its core, and
 * the others wait. libgomp spins for milliseconds, which costs them their own share of the core. Here a thread spins only for
 * as long as a quiet barrier takes, then sleeps until the last one arrives.
 */
#ifndef CVIT_TEAM_H
#define CVIT_TEAM_H

#include <stdatomic.h>
#include <stddef.h>
#include <sched.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define CVIT_SPINS 2000 /* of some 20 ns to 60 ns each */

typedef struct {
    atomic_int size;
    _Alignas(64) atomic_ptrdiff_t next; /* the first task of the stage that nobody has taken */
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int generation; /* barriers passed so far */
    _Alignas(64) atomic_int sleepers;
} cvit_team;

static inline void cvit_team_init(cvit_team *team, int size)
{
    atomic_init(&team->size, size);
    atomic_init(&team->next, 0);
    atomic_init(&team->arrived, 0);
    atomic_init(&team->generation, 0);
    atomic_init(&team->sleepers, 0);
}

static inline int cvit_team_size(cvit_team *team) { return atomic_load_explicit(&team->size, memory_order_relaxed); }

/* Called first by every thread: OpenMP may have given fewer threads than asked for (OMP_THREAD_LIMIT, OMP_DYNAMIC, a region inside
 * a region), and nobody must wait for the others. All store the same number. */
static inline void cvit_team_join(cvit_team *team)
{
#ifdef _OPENMP
    atomic_store_explicit(&team->size, omp_get_num_threads(), memory_order_relaxed);
#else
    atomic_store_explicit(&team->size, 1, memory_order_relaxed);
#endif
}

/* The next task of this stage: 0, 1, 2, … over all threads. */
static inline ptrdiff_t cvit_team_take(cvit_team *team)
{
    return atomic_fetch_add_explicit(&team->next, 1, memory_order_relaxed);
}

static inline void cvit_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Wait until all threads of the team are here; the next stage's tasks then start at 0. */
static inline void cvit_team_sync(cvit_team *team)
{
    const int size = cvit_team_size(team);
    if (size == 1) {
        atomic_store_explicit(&team->next, 0, memory_order_relaxed);
        return;
    }
    const int generation = atomic_load(&team->generation);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == size) {
        atomic_store(&team->arrived, 0);
        atomic_store(&team->next, 0);
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
