/* Arithmetic of sizes, for every driver's loops. */
#ifndef MINIFM_SIZES_H
#define MINIFM_SIZES_H

#include <stdint.h>

static inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
static inline int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }
static inline int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

#endif
