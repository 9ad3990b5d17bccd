/* AMX's tile instructions by name (Intel SDM vol. 1, chapter 18): 8 tiles of 16 rows of 64 bytes, numbered by literals.
 *
 *     tile_multiply(c, a, b)   c (16 x 16 floats) += a (16 rows of 16 pairs) @ b (16 pairs of rows, 16 columns):
 *                              for each sum a chain of fused multiply-adds from zero over the even ones of a pair, one
 *                              over the odd ones, then c + (even + odd); subnormals are zero
 *
 * Written as assembly that names memory: GCC 12's own _tile_loadconfig and _tile_loadd do not, and stores that they
 * depend on may be left out. With CVIT_AMX_EMULATED they are plain C on an array, to the same bits, for tests on
 * machines without AMX. tile_load_once is for what is not read again soon: it does not stay in the first-level cache.
 */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16]; /* of a row of each tile */
    uint8_t rows[16];
} tile_config;

static const tile_config WHOLE_TILES = {
    .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

#ifndef CVIT_AMX_EMULATED

INLINE void tile_configure(const tile_config *config) { __asm__ volatile("ldtilecfg %0" : : "m"(*config) : "memory"); }
INLINE void tile_release(void) { __asm__ volatile("tilerelease" : : : "memory"); }
#define tile_zero(tile) __asm__ volatile("tilezero %%tmm" #tile : : : "memory")
#define TILE_ROWS(at, stride) "r"((const void *)(at)), "r"((ptrdiff_t)(stride))
#define tile_load(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : TILE_ROWS(from, stride) : "memory")
#define tile_load_once(tile, from, stride) \
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile : : TILE_ROWS(from, stride) : "memory")
#define tile_store(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : TILE_ROWS(to, stride) : "memory")
#define tile_multiply(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")

#else

#include <stdlib.h>

typedef union {
    float sums[16][16];
    uint32_t pairs[16][16];
} tile_rows;
static _Thread_local struct {
    tile_config config; /* palette 0: there are no tiles */
    tile_rows tile[8];
} tiles;

/* How often tiles were configured and released, and whether this thread has any: tests look at them. */
int cvit_emulated_configured, cvit_emulated_released;
int cvit_emulated_tiles(void) { return tiles.config.palette; }

INLINE void tile_configure(const tile_config *config)
{
    memset(&tiles, 0, sizeof tiles);
    tiles.config = *config;
    __atomic_add_fetch(&cvit_emulated_configured, 1, __ATOMIC_SEQ_CST);
}
INLINE void tile_release(void)
{
    memset(&tiles, 0, sizeof tiles);
    __atomic_add_fetch(&cvit_emulated_released, 1, __ATOMIC_SEQ_CST);
}
/* An instruction on tiles that nobody configured is an invalid one. */
INLINE tile_rows *configured(int tile)
{
    if (!tiles.config.palette)
        abort();
    return &tiles.tile[tile];
}
INLINE void tile_zero(int tile) { memset(configured(tile), 0, sizeof(tile_rows)); }
NOINLINE void tile_load(int tile, const void *from, ptrdiff_t stride)
{
    tile_zero(tile);
    for (int row = 0; row < tiles.config.rows[tile]; row++)
        memcpy(tiles.tile[tile].sums[row], (const char *)from + row * stride, tiles.config.bytes[tile]);
}
INLINE void tile_load_once(int tile, const void *from, ptrdiff_t stride) { tile_load(tile, from, stride); }
NOINLINE void tile_store(int tile, void *to, ptrdiff_t stride)
{
    const tile_rows *rows = configured(tile);
    for (int row = 0; row < tiles.config.rows[tile]; row++)
        memcpy((char *)to + row * stride, rows->sums[row], tiles.config.bytes[tile]);
}
NOINLINE void tile_multiply(int c, int a, int b)
{
    tile_rows *sums = configured(c);
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(0x9fc0); /* whatever the caller's: to nearest, without subnormals */
    __asm__ volatile("" : : : "memory");
    for (int row = 0; row < tiles.config.rows[c]; row++) {
        vec even = {0}, odd = {0}, sum;
        for (int p = 0; p < tiles.config.bytes[a] / 4; p++) {
            const uint32_t pair = tiles.tile[a].pairs[row][p];
            uvec pairs;
            memcpy(&pairs, tiles.tile[b].pairs[p], sizeof pairs);
            even = fused((vec)((uvec){0} + (pair << 16)), (vec)(pairs << 16), even);
            odd = fused((vec)((uvec){0} + (pair & 0xffff0000u)), (vec)(pairs & 0xffff0000u), odd);
        }
        memcpy(&sum, sums->sums[row], sizeof sum);
        sum += even + odd;
        memcpy(sums->sums[row], &sum, tiles.config.bytes[c]);
    }
    __asm__ volatile("" : : : "memory");
    _mm_setcsr(mode);
}

#endif

/* This thread's tiles: all of them whole. */
static void enter(void) { tile_configure(&WHOLE_TILES); }
static void leave(void) { tile_release(); }
