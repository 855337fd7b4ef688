/* What the drivers and the micro-kernels of packed weights share. */
#ifndef MINIFM_PACKED_H
#define MINIFM_PACKED_H

#include <stdint.h>

enum {
    GROUP = 32,             /* of k that share a scale: part of every result, and of the files */
    COLS = 16,              /* columns side by side: a cache line of floats, or of quads */
    MAX_PANEL_ROWS = 8,     /* rows of x that meet a panel at once, at most */
};

/* Rows of x rounded to integers: codes [m, groups, 32], scales and sums of codes [m, groups]. */
typedef struct {
    int8_t *codes;
    float *scales;
    int32_t *sums;
    int64_t groups;
} Rounded;

#endif
