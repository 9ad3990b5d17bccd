/* The kernels as tables of functions: one table for each instruction set and element type, all from the same source.
 *
 * A kernel works on one tile or one run of rows, on one thread; it allocates nothing and knows nothing of models.
 * m, n, k are a product's rows, columns and depth, `ld…` is the distance between rows in elements, d… a gradient.
 */
#ifndef CVIT_H
#define CVIT_H

#include <stddef.h>

typedef struct {
#define real float
#include "table.inc"
#undef real
} cvit_f32;

typedef struct {
#define real double
#include "table.inc"
#undef real
} cvit_f64;

typedef struct {
    const char *name; /* "portable", "avx2", "avx512", "neon" */
    int supported;    /* whether this CPU and operating system run it; set by cvit_tables() */
    const cvit_f32 *f32;
    const cvit_f64 *f64;
} cvit_table;

/* The tables of this build from the plainest to the best, `*count` of them. */
const cvit_table *cvit_tables(int *count);

#endif
