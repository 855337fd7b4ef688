/* What all products share: the block of their sums, and the step at an edge. */
#ifndef MINIFM_GEMM_H
#define MINIFM_GEMM_H

#include "isa.h"

#include <stdint.h>

enum {
    KC = 384,               /* the law's block of cells: part of every result, not to be tuned */
    MAX_TILE_ROWS = 12,
    MAX_TILE_COLS = 32,
    MAX_TILE = MAX_TILE_ROWS * MAX_TILE_COLS,
    ATTENTION_KEYS = 96,    /* of a block in attention.c: part of every result, too */
};

/* c[rows, width] = a b, or += : rows <= MR, width <= NR (more is taken as NR), and b has NR
 * columns that can be read. A narrow tile goes by way of a full one. */
void one_tile(Tile *tile, float *c, const float *a, const float *b, int64_t ldc, int64_t depth,
              int64_t a_row, int64_t a_k, int64_t b_k, int64_t rows, int64_t width,
              int accumulate);

#endif
