/* AMX's tile instructions on a CPU or a system without them: each of them is an invalid one there, the signal's handler
 * decodes it and does on memory what the Intel SDM says. So the table runs as it is compiled for the real machine, its
 * assembly, operands and tile configuration included; csrc/kernels/amx/tiles.h's own emulation stands in their place.
 *
 *     int trap_tiles(void)       from here on invalid instructions are looked at; 0 where the CPU lacks AVX512_BF16,
 *                                which the table needs besides
 *     void untrap_tiles(void)    no longer
 *     trapped, configured, released: how many tile instructions there were, and how many of those two
 *
 * The process ends where the real instruction would fault: tiles that are not configured, shapes that do not fit, bits
 * of the configuration that must be zero. On a machine with AMX nothing is trapped.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef union {
    uint8_t bytes[16][64];
    uint16_t halves[16][32];
    float floats[16][16];
} tile;
static _Thread_local struct {
    int palette, rows[8], bytes[8];
    tile tile[8];
} state;
int trapped, configured, released;

static void count(int *times) { __atomic_add_fetch(times, 1, __ATOMIC_SEQ_CST); }

static void fault(const char *why)
{
    fprintf(stderr, "tile instruction: %s\n", why);
    abort();
}

static void expect(int holds, const char *why)
{
    if (!holds)
        fault(why);
}

/* LDTILECFG (SDM vol. 2A): byte 0 the palette, 1 the row to start at, 16 to 47 bytes of a row, 48 to 63 rows. */
static void configure(const uint8_t *at)
{
    memset(&state, 0, sizeof state);
    expect(at[0] <= 1, "palette");
    if (!at[0])
        return;
    for (int i = 1; i < 16; i++)
        expect(!at[i], "a start row, or reserved bytes that are not zero");
    for (int i = 0; i < 16; i++) {
        const int bytes = at[16 + 2 * i] | at[17 + 2 * i] << 8, rows = at[48 + i];
        expect(i < 8 ? bytes <= 64 && rows <= 16 && !bytes == !rows : !bytes && !rows, "shape of a tile");
        if (i < 8)
            state.bytes[i] = bytes, state.rows[i] = rows;
    }
    state.palette = 1;
}

static void valid(int number) { expect(number < 8 && state.palette && state.rows[number], "no such tile"); }

/* TILELOADD, TILELOADDT1, TILESTORED: rows `stride` bytes apart. */
static void load(int number, const uint8_t *at, int64_t stride)
{
    valid(number);
    memset(&state.tile[number], 0, sizeof(tile));
    for (int row = 0; row < state.rows[number]; row++)
        memcpy(state.tile[number].bytes[row], at + row * stride, (size_t)state.bytes[number]);
}
static void store(int number, uint8_t *at, int64_t stride)
{
    valid(number);
    for (int row = 0; row < state.rows[number]; row++)
        memcpy(at + row * stride, state.tile[number].bytes[row], (size_t)state.bytes[number]);
}

/* TDPBF16PS: multiply-adds to nearest, subnormals zero, as operands and as results, whatever MXCSR says. */
static float widened(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static float chained(float a, float b, float c)
{
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}
static void multiply(int c, int a, int b)
{
    valid(a), valid(b), valid(c);
    expect(a != b && a != c && b != c, "one tile twice");
    expect(state.rows[a] == state.rows[c] && state.bytes[b] == state.bytes[c], "shapes of a product");
    expect(state.bytes[a] == 4 * state.rows[b] && state.bytes[a] % 4 == 0, "depth of a product");
    _mm_setcsr(0x9fc0); /* the handler's own; the kernel puts the interrupted code's back */
    for (int row = 0; row < state.rows[c]; row++) {
        volatile float *sums = state.tile[c].floats[row];
        for (int column = 0; column < state.bytes[c] / 4; column++) {
            volatile float even = 0, odd = 0;
            for (int pair = 0; pair < state.bytes[a] / 4; pair++) {
                const uint16_t *left = state.tile[a].halves[row] + 2 * pair;
                const uint16_t *right = state.tile[b].halves[pair] + 2 * column;
                even = chained(widened(left[0]), widened(right[0]), even);
                odd = chained(widened(left[1]), widened(right[1]), odd);
            }
            volatile float both = even + odd;
            sums[column] = sums[column] + both;
        }
    }
}

/* -------------------------------------------------------------------------------------------------------- decoding */
static const int GENERAL[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
enum { NONE, OF_66, OF_F3, OF_F2 }; /* VEX.pp */

static void handle(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)registers[REG_RIP];
    /* A VEX prefix of three bytes: map 0F38, W 0, 128 bits. Inverted: R, X, B and vvvv. */
    if (at[0] != 0xc4 || (at[1] & 31) != 2 || at[2] & 0x84)
        fault("none");
    const int R = !(at[1] & 0x80) * 8, X = !(at[1] & 0x40) * 8, B = !(at[1] & 0x20) * 8;
    const int vvvv = ~at[2] >> 3 & 15, prefix = at[2] & 3, opcode = at[3], modrm = at[4];
    const int mod = modrm >> 6, reg = (modrm >> 3 & 7) + R, rm = modrm & 7;
    int length = 5;
    uint8_t *address = NULL;
    int64_t stride = 0;
    if (mod != 3) { /* SDM vol. 2A, tables 2-2 and 2-3; a tile's index is its stride */
        int64_t base = 0, displacement = 0;
        int bytes = mod == 1 ? 1 : mod == 2 ? 4 : 0, relative = 0;
        if (rm == 4) {
            const int sib = at[length++], index = (sib >> 3 & 7) + X;
            if (index != 4)
                stride = registers[GENERAL[index]] * ((int64_t)1 << (sib >> 6));
            if ((sib & 7) == 5 && mod == 0)
                bytes = 4;
            else
                base = registers[GENERAL[(sib & 7) + B]];
        } else if (rm == 5 && mod == 0) {
            bytes = 4;
            relative = 1;
        } else {
            base = registers[GENERAL[rm + B]];
        }
        if (bytes == 1) {
            displacement = (int8_t)at[length];
        } else if (bytes == 4) {
            int32_t four;
            memcpy(&four, at + length, 4);
            displacement = four;
        }
        length += bytes;
        if (relative)
            base = (int64_t)(at + length);
        address = (uint8_t *)(base + displacement);
    }
    if (opcode == 0x49 && prefix == NONE && mod != 3 && reg == 0)
        configure(address + stride), count(&configured);
    else if (opcode == 0x49 && prefix == NONE && modrm == 0xc0)
        memset(&state, 0, sizeof state), count(&released);
    else if (opcode == 0x49 && prefix == OF_F2 && mod == 3 && rm == 0)
        valid(reg), memset(&state.tile[reg], 0, sizeof(tile));
    else if (opcode == 0x4b && mod != 3 && rm == 4 && (prefix == OF_F2 || prefix == OF_66))
        load(reg, address, stride);
    else if (opcode == 0x4b && mod != 3 && rm == 4 && prefix == OF_F3)
        store(reg, address, stride);
    else if (opcode == 0x5c && mod == 3 && prefix == OF_F3)
        multiply(reg, rm + B, vvvv);
    else
        fault("another one");
    registers[REG_RIP] += length;
    count(&trapped);
}

static sigjmp_buf invalid;
static void jump(int signal) { siglongjmp(invalid, signal); }

/* Whether vcvtne2ps2bf16 is an instruction: some systems hide it, but cannot forbid it. */
static int converts(void)
{
    struct sigaction action = {.sa_handler = jump}, before;
    volatile int done = 0;
    sigaction(SIGILL, &action, &before);
    if (!sigsetjmp(invalid, 1)) {
        __asm__ volatile("vcvtne2ps2bf16 %%zmm0, %%zmm0, %%zmm0" : : : "xmm0");
        done = 1;
    }
    sigaction(SIGILL, &before, NULL);
    return done;
}

static struct sigaction untrapped;
int trap_tiles(void)
{
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER};
    return converts() && !sigaction(SIGILL, &action, &untrapped);
}
void untrap_tiles(void) { sigaction(SIGILL, &untrapped, NULL); }
