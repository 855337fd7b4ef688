/* Every kernel of an instruction set, written once: an isa_*.c defines the vocabulary below in its
 * processor's vectors and includes this file.
 *
 *   vf a vector of VL floats, vm a mask of lanes        vset vload vstore, _part for n < VL lanes
 *   vadd vsub vmul vdiv vsqrt vabs vcopysign vround     vfma(x, y, z) = x y + z,  vfnma = z - x y
 *   vmax(x, y) = x > y ? x : y, vmin likewise: y where either is NaN
 *   vscale(x, n) = x 2^n      vless vless_equal vequal vnan, vselect(m, x, y) = m ? x : y
 *   vany(m), vsum, vlargest over lanes      vtrue(p): which of VL bytes are not 0
 *   vrest(x, y, p) = x y - p, exactly, p being the rounded product
 *   vsplit(x, &e): m of sqrt(1/2) ... sqrt(2) and integral e with x = m 2^e, x no less than 2^-126
 *   vexponent(x): the float whose sign and exponent are the lowest 9 bits of x, its fraction 0
 *   transpose_square(x): VL vectors of VL lanes, turned about their diagonal
 *   MR, NR, PR: rows and columns of a tile, rows of a packed product; CHAINS: see isa_ceiling.h
 */
#include "minifm.h"

#include <math.h>
#include <string.h>

/* A loop of constant length, unrolled: its variables are registers. */
#define UNROLL _Pragma("GCC unroll 16")

/* The next vector of a row with `left` numbers to go; missing lanes hold `fill`. */
INLINE vf vget(const float *p, int64_t left, float fill)
{
    return left >= VL ? vload(p) : vload_part(p, left, fill);
}

/* The same, and ask for what lies `ahead` numbers further on. A row that takes several passes
 * leaves the memory idle in all but the first; rows follow one another, so the others ask for the
 * next row, where both are so short that the first-level cache holds them. */
INLINE vf vget_ahead(const float *p, int64_t left, float fill, int64_t ahead)
{
    __builtin_prefetch(p + ahead);
    return vget(p, left, fill);
}

enum { SHORT_ROW = 2048 };
INLINE int64_t next_row(int64_t n) { return n <= SHORT_ROW ? n : 0; }

INLINE void vput(float *p, vf x, int64_t left)
{
    if (left >= VL)
        vstore(p, x);
    else
        vstore_part(p, x, left);
}

/* for each vector of a row of n, with `left` numbers to go at i */
#define EACH_VECTOR for (int64_t i = 0, left = n; i < n; i += VL, left -= VL)

/* `result` = `start` carried through a row by t = `next`, an expression in t, i and left. Four
 * carry at once, because each would wait for its own last step; `join` then makes them one. */
#define CARRY(result, start, join, next)                              \
    {                                                                 \
        vf part[4] = {start, start, start, start};                    \
        int64_t i = 0, left = n;                                      \
        while (left >= 4 * VL) {                                      \
            CARRY_ON(0, next) CARRY_ON(1, next) CARRY_ON(2, next)     \
            CARRY_ON(3, next)                                         \
        }                                                             \
        while (left > 0)                                              \
            CARRY_ON(0, next)                                         \
        result = join(join(part[0], part[1]), join(part[2], part[3])); \
    }
#define CARRY_ON(k, next)     \
    {                         \
        vf t = part[k];       \
        part[k] = next;       \
        i += VL, left -= VL;  \
    }

#include "isa_functions.h" /* exp, sin, erf and their kin, of a vector */
#include "isa_rows.h"      /* elementwise, reductions, softmax, norms, AdamW: along a row */
#include "isa_tile.h"      /* the tile of a matrix product, and the packing that feeds it */
#include "isa_stream.h"    /* few rows times a large matrix */
#include "isa_attention.h" /* attention: the online softmax; few queries */
#include "isa_packed.h"    /* few rows times weights in low precision */
#include "isa_words.h"     /* words of the stream of noise */
#include "isa_ceiling.h"   /* multiply-adds that touch no memory */

/* The entries of the table of isa.h. */
#define KERNELS                                                                             \
    ROW_KERNELS, TILE_KERNELS, STREAM_KERNELS, ATTENTION_KERNELS, PACKED_KERNELS,           \
    WORD_KERNELS, CEILING_KERNELS
