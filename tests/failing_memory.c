/* Stands before the C library, to show what happens where there is no memory, or no thread.
 * tests/test_native_limits.py preloads it and sets its two variables around a call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>

int failing_from;   /* 0: never; n: the n-th allocation from now on fails, and all after it */
int failures;       /* how many have failed */
int no_threads;

/* Only those of the extension: the C library has its own ways when it finds none. */
static int fails(void *caller)
{
    Dl_info place;
    if (!failing_from || !dladdr(caller, &place) || !strstr(place.dli_fname, "_csrc"))
        return 0;
    if (failing_from > 1)
        return failing_from--, 0;
    failures++;
    return 1;
}

#define FAILS fails(__builtin_return_address(0))

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

void *malloc(size_t bytes) { return FAILS ? NULL : __libc_malloc(bytes); }
void *calloc(size_t n, size_t each) { return FAILS ? NULL : __libc_calloc(n, each); }
void *realloc(void *old, size_t bytes) { return FAILS ? NULL : __libc_realloc(old, bytes); }
void *aligned_alloc(size_t alignment, size_t bytes)
{
    return FAILS ? NULL : __libc_memalign(alignment, bytes);
}
int posix_memalign(void **block, size_t alignment, size_t bytes)
{
    void *made = FAILS ? NULL : __libc_memalign(alignment, bytes);
    *block = made ? made : *block;
    return made ? 0 : ENOMEM;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                   void *argument)
{
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) =
        (int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))
            dlsym(RTLD_NEXT, "pthread_create");
    return no_threads ? EAGAIN : create(thread, attributes, run, argument);
}
