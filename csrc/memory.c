/* How the process's allocator treats the large arrays that NumPy asks it for.
 *
 * A training step frees its activations and the next step asks for the same sizes again. By
 * default glibc maps such blocks afresh each time and gives them back at once, and the kernel
 * must zero every page: that costs more than many kernels here. Told not to map and not to trim,
 * malloc keeps the pages and hands them out again, to NumPy's own results as well. The price is
 * that the process keeps its peak of memory until it ends. Elsewhere than glibc: nothing to do.
 */
#include "minifm.h"

#include <stdlib.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

void minifm_keep_memory(void)
{
#if defined(__GLIBC__)
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, -1);
    mallopt(M_TOP_PAD, 64 << 20);
#endif
}
