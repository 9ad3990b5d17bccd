
#include "cvit.h"
extern const cvit_kernels cvit_portable_f32, cvit_avx2_f32, cvit_avx512_f32, cvit_portable_f64, cvit_avx2_f64, cvit_avx512_f64;
static cvit_table tables[] = {{&cvit_portable_f32,1},{&cvit_portable_f64,1},{&cvit_avx2_f32,1},{&cvit_avx2_f64,1},{&cvit_avx512_f32,1},{&cvit_avx512_f64,1}};
const cvit_table *cvit_tables(int *count){*count=6;return tables;}
