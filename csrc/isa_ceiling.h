/* The ceiling of arithmetic: CHAINS vectors that stay in registers, each multiplied and added to in
 * every round (ceilings.c).
 */

INLINE int64_t multiply_adds(float *result, int64_t rounds, const int bf16)
{
    vf chain[CHAINS], factor = vset(0.5f), term = vset(result[0] + 1);
    const vf x = cells_along(vset(1), vset(1)), y = cells_along(term, vset(1));
    UNROLL for (int i = 0; i < CHAINS; i++)
        chain[i] = vset((float)i);
    for (int64_t r = 0; r < rounds; r++)
        UNROLL for (int i = 0; i < CHAINS; i++)
            chain[i] = bf16 ? vdot_cells(x, y, chain[i]) : vfma(chain[i], factor, term);
    vf sum = vset(0);
    UNROLL for (int i = 0; i < CHAINS; i++)
        sum = vadd(sum, chain[i]);
    *result = vsum(sum);
    return 2 * (bf16 ? TOGETHER : 1) * rounds * CHAINS * VL;
}

static TARGET int64_t multiply_add(float *result, int64_t rounds)
{
    return multiply_adds(result, rounds, 0);
}

/* Where the processor multiplies no bf16 there is no such ceiling. */
static TARGET int64_t multiply_add_bf16(float *result, int64_t rounds)
{
    return TOGETHER == 1 ? 0 : multiply_adds(result, rounds, 1);
}

#define CEILING_KERNELS .multiply_add = multiply_add, .multiply_add_bf16 = multiply_add_bf16
