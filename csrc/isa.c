/* Which instruction sets this binary holds, which of them the machine runs, and which is used. */
#include "isa.h"
#include "minifm.h"

#include <stddef.h>
#include <string.h>

/* Best first. The portable one is always there and always last. */
static const Kernels *const table[] = {
#if HAVE_AVX512BF16
    &kernels_avx512bf16,
#endif
#if defined(__x86_64__)
    &kernels_avx512,
    &kernels_avx2,
#elif defined(__aarch64__)
    &kernels_neon,
#endif
    &kernels_portable,
};

enum { TABLE_LENGTH = sizeof table / sizeof *table };

const Kernels *kernels = &kernels_portable;

const char *minifm_supported_isa(int i)
{
    for (int j = 0; j < TABLE_LENGTH; j++)
        if (table[j]->supported() && i-- == 0)
            return table[j]->name;
    return NULL;
}

int minifm_select_isa(const char *name)
{
    for (int j = 0; j < TABLE_LENGTH; j++)
        if (strcmp(table[j]->name, name) == 0 && table[j]->supported()) {
            kernels = table[j];
            return 0;
        }
    return -1;
}

const char *minifm_compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "an unknown C compiler";
#endif
}
