/* Arithmetic of sizes, for every driver's loops. */
#ifndef MINIFM_SIZES_H
#define MINIFM_SIZES_H

#include <stdint.h>

static inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
static inline int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }
static inline int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

/* Whether all of ids[n] are rows of a table of `rows`. */
static inline int all_inside(const int64_t *ids, int64_t n, int64_t rows)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= rows)
            return 0;
    return 1;
}

/* An array [outer, n, inner] in strips of its columns, each [n, width]: where strip number i begins
 * in it, and in an array [outer, inner]. The tasks of what goes through the middle dimension. */
enum { STRIP = 1024 };
typedef struct { int64_t in, out, width; } Strip;

static inline int64_t strips(int64_t outer, int64_t inner) { return outer * ceil_div(inner, STRIP); }
static inline Strip strip_of(int64_t i, int64_t n, int64_t inner)
{
    const int64_t each = ceil_div(inner, STRIP), block = i / each, column = i % each * STRIP;
    return (Strip){block * n * inner + column, block * inner + column,
                   smaller(STRIP, inner - column)};
}

#endif
