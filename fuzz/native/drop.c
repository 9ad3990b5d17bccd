/* Dropout and stochastic depth: masks from Threefry, one word at a time (see csrc/kernels/drop.inc). */
#include "fuzz.h"

PLAIN uint64_t threefry(uint64_t key, uint64_t counter)
{
    static const int distance[8] = {13, 15, 26, 6, 17, 29, 16, 24};
    const uint32_t keys[3] = {(uint32_t)(key >> 32), (uint32_t)key, (uint32_t)(key >> 32) ^ (uint32_t)key ^ 0x1BD11BDA};
    uint32_t x = (uint32_t)(counter >> 32) + keys[0], y = (uint32_t)counter + keys[1];
    for (int round = 0; round < 20; round++) {
        x += y;
        y = (y << distance[round % 8] | y >> (32 - distance[round % 8])) ^ x;
        if (round % 4 == 3) {
            const int block = round / 4 + 1;
            x += keys[block % 3];
            y += keys[(block + 1) % 3] + (uint32_t)block;
        }
    }
    return (uint64_t)x << 32 | y;
}

static void once(void)
{
    target = "drop";
    const ptrdiff_t rows = size_upto(60), n = size_upto(rows > 10 ? 200 : 1000);
    const int half = choose(2) && K->half;
    const kind_of_numbers kind = any(3);
    cvit_drop call = {.rows = rows, .n = n, .x = filled(rows, n, half, kind)};
    call.add = !half && choose(2) ? filled(rows, n, 0, kind) : none();
    const int to = (int)choose(3); /* rows of its own, x, add */
    call.y = to == 1 ? call.x : to == 2 && call.add.at ? call.add : matrix(rows, n, half);
    call.seed = (uint64_t)draw() << 32 | draw(), call.sample = (uint64_t)choose(1 << 16);
    call.row = choose(1000), call.place = (int)choose(64), call.branch = choose(2) ? call.place : (int)choose(64);
    call.path = choose(2) ? 0 : 0.3, call.rate = choose(3) * 0.37;
    const cvit_matrix x = copied(call.x, rows, n), add = call.add.at ? copied(call.add, rows, n) : none();
    K->drop(&call);
    agree("y", call.y, rows, n);

    const uint64_t key = threefry(threefry(call.seed, (uint64_t)call.place), call.sample);
    const uint64_t branch = threefry(threefry(call.seed, (uint64_t)call.branch), call.sample);
    const int all =
        call.path > 0 && (double)(threefry(branch, 0xffffffff00000000) >> 32) < floor(call.path * 4294967296.0);
    const double factor = real(1 / ((1 - call.path) * (1 - call.rate)));
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            const uint64_t words = threefry(key, (uint64_t)(call.row + i) << 32 | (uint64_t)(j / 32 * 16 + j % 16));
            const uint32_t word = j % 32 < 16 ? (uint32_t)(words >> 32) : (uint32_t)words;
            const int gone = all || (double)word < floor(call.rate * 4294967296.0);
            const double value = gone ? 0 : in_matrix(x, i, j) * factor, more = add.at ? in_matrix(add, i, j) : 0;
            near("y", i, j, in_matrix(call.y, i, j), value + more, fabs(value) + fabs(more), 3,
                 half ? half_unit(value) : 0);
        }
}
