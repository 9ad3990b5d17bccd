/* What OpenMP's fork, join and barrier order, told to ThreadSanitizer.
 *
 * libgomp is not built with ThreadSanitizer, which therefore does not see that a team starts after its region was
 * called, that the call returns after the team is done, and that nobody leaves a barrier before all have come.
 * Preloaded before libgomp, these wrappers say so, and nothing else: an order that cvit's own code forgets is still a
 * race. See `make tsan`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

void __tsan_acquire(void *address);
void __tsan_release(void *address);

typedef struct {
    void (*body)(void *);
    void *data;
    char fork, join, barrier; /* their addresses stand for the three events */
} region;

static _Thread_local region *current;

static void member(void *argument)
{
    region *here = argument, *outer = current;
    __tsan_acquire(&here->fork);
    current = here;
    here->body(here->data);
    current = outer;
    __tsan_release(&here->join);
}

void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags)
{
    void (*real)(void (*)(void *), void *, unsigned, unsigned) = dlsym(RTLD_NEXT, "GOMP_parallel");
    region here = {body, data, 0, 0, 0};
    __tsan_release(&here.fork);
    real(member, &here, threads, flags);
    __tsan_acquire(&here.join);
}

void GOMP_barrier(void)
{
    void (*real)(void) = dlsym(RTLD_NEXT, "GOMP_barrier");
    if (current)
        __tsan_release(&current->barrier);
    real();
    if (current)
        __tsan_acquire(&current->barrier);
}
