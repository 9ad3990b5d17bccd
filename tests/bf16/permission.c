/* csrc/dispatch.c where the system call that asks for tiles is answered by a test. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>

static long answer;
static int asked;
static long answered(long number, int option, int state)
{
    asked += number == SYS_arch_prctl && option == 0x1023 && state == 18;
    return answer;
}
#define syscall answered
#define CVIT_HAS_AMX
#include "../../csrc/dispatch.c"

#define TABLE(set, type) const cvit_kernels cvit_##set##_##type = {.isa = #set, .element = #type}
TABLE(portable, f32);
TABLE(portable, f64);
TABLE(portable, bf16);
TABLE(avx2, f32);
TABLE(avx2, f64);
TABLE(avx2, bf16);
TABLE(avx512, f32);
TABLE(avx512, f64);
TABLE(avx512, bf16);
TABLE(amx, bf16);

int amx_with(unsigned xcr0, unsigned leaf_7_edx, unsigned subleaf_1_eax, long permission)
{
    answer = permission;
    return amx_supported(xcr0, leaf_7_edx, subleaf_1_eax);
}
int times_asked(void) { return asked; }
