/* Four lines of four floats turned; GCC and Clang keep them in registers. */
#ifndef SLFAC_TURN_H
#define SLFAC_TURN_H

#include <stdint.h>
#include <string.h>

#ifdef __GNUC__
typedef float Four __attribute__((vector_size(16)));
#ifdef __clang__
#define MIX(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t Places __attribute__((vector_size(16)));
#define MIX(a, b, i, j, k, l) __builtin_shuffle(a, b, (Places){i, j, k, l})
#endif
static inline void turn_four(const float *const from[4], float *const to[4])
{
    Four a, b, c, d;
    memcpy(&a, from[0], 16);
    memcpy(&b, from[1], 16);
    memcpy(&c, from[2], 16);
    memcpy(&d, from[3], 16);
    Four ab = MIX(a, b, 0, 4, 1, 5), cd = MIX(c, d, 0, 4, 1, 5);
    Four ab2 = MIX(a, b, 2, 6, 3, 7), cd2 = MIX(c, d, 2, 6, 3, 7);
    a = MIX(ab, cd, 0, 1, 4, 5);
    b = MIX(ab, cd, 2, 3, 6, 7);
    c = MIX(ab2, cd2, 0, 1, 4, 5);
    d = MIX(ab2, cd2, 2, 3, 6, 7);
    memcpy(to[0], &a, 16);
    memcpy(to[1], &b, 16);
    memcpy(to[2], &c, 16);
    memcpy(to[3], &d, 16);
}
#else
static inline void turn_four(const float *const from[4], float *const to[4])
{
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            to[j][i] = from[i][j];
}
#endif

#endif
