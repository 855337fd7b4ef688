/* Memory for large arrays that stays with the process from one training step to the next.
 *
 * A step frees its activations and the next one asks for the same sizes again. malloc gives blocks
 * of that size back to the system, whose zeroed pages then cost more than many kernels. Here they
 * are kept, 64-byte aligned, on huge pages where the system has them. NumPy comes here through the
 * table of functions at the end, as NEP 49 ("Data allocation strategies") describes it, so NumPy's
 * own results and the lifetimes of views are included. Small blocks go to malloc.
 *
 * How: two-level segregated fit (Masmano et al. 2004, "TLSF: a new dynamic memory allocator for
 * real-time systems"). Regions are mapped from the system and cut into blocks; a free block
 * merges with free neighbours, so that gradients can lie where activations lay; free blocks hang
 * in lists by size, eight classes for each power of two, found through a bitmap.
 *
 * How much: what is in use and what was touched and is idle, together, stay below 5/4 of the most
 * that was in use at once (since memory was last released), plus 64 MB. Where a request would pass that, or finds no memory,
 * idle blocks are given back first. minifm_release_memory gives back all of them.
 */
#include "minifm.h"
#include "threads.h"

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define SLACK ((size_t)64 << 20)         /* idle bytes that are always allowed */
#define GROWTH ((size_t)32 << 20)        /* the least and ... */
#define GROWTH_MOST ((size_t)1 << 30)    /* ... the most that is mapped ahead of need */

enum {
    HEADER = 64,             /* bytes of a Block; also the alignment of what is given out */
#if defined(__SANITIZE_ADDRESS__)
    LEAST_BITS = 46,         /* none is pooled: the sanitizer watches the bounds of malloc's */
#else
    LEAST_BITS = 15,         /* blocks of 32 KB and more are pooled */
#endif
    UNIT = 4096,             /* sizes of blocks: all begin at one place of a page, and a kernel's
                                loads cannot look like its stores of a moment ago (4 KB aliasing) */
    LOOKS = 32,              /* blocks of a class that are looked at, however many there are */
    SUBCLASS_BITS = 3,
    CLASSES = (48 - LEAST_BITS) << SUBCLASS_BITS,
    WORDS = (CLASSES + 63) / 64,
};
static const size_t LEAST = (size_t)1 << LEAST_BITS, MOST = (size_t)1 << 47;

/* The header of a block; its bytes follow. */
typedef struct Block {
    size_t size;             /* header included; 0 ends a region */
    size_t touched;          /* bytes of it, from its beginning, that were ever written; the others
                                are zero and have cost no memory yet */
    struct Block *before;    /* the block that ends where this one begins; NULL: a region's first */
    struct Block *next, *previous;       /* free: neighbours in the list of its class */
    size_t free, unused;
    struct Block *self;      /* right before the bytes, where NULL marks a block of malloc's */
} Block;

typedef struct Region {
    struct Region *next, *previous;
    size_t bytes;
} Region;

_Static_assert(sizeof(Block) == HEADER && sizeof(Region) <= HEADER, "headers keep the alignment");

static struct {
    pthread_mutex_t lock;
    Region *regions;
    Block *lists[CLASSES];
    uint64_t filled[WORDS];              /* which lists have blocks */
    size_t mapped;
    minifm_pool_state state;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

static size_t larger(size_t x, size_t y) { return x > y ? x : y; }
static size_t smaller(size_t x, size_t y) { return x < y ? x : y; }
static size_t round_up(size_t x, size_t unit) { return (x + unit - 1) / unit * unit; }

/* -- lists of free blocks -------------------------------------------------------------------------- */

static int class_of(size_t size)
{
    int power = 63 - __builtin_clzll(size);
    int sub = (int)(size >> (power - SUBCLASS_BITS)) & ((1 << SUBCLASS_BITS) - 1);
    return ((power - LEAST_BITS) << SUBCLASS_BITS) + sub;
}

/* The first class from `class` on whose list has a block, or CLASSES. */
static int filled_from(int class)
{
    for (int word = class / 64; word < WORDS; word++) {
        uint64_t bits = pool.filled[word];
        if (word == class / 64)
            bits &= ~(uint64_t)0 << (class % 64);
        if (bits)
            return 64 * word + __builtin_ctzll(bits);
    }
    return CLASSES;
}

static void enter_list(Block *b)
{
    int class = class_of(b->size);
    b->free = 1;
    b->previous = NULL;
    b->next = pool.lists[class];
    if (b->next)
        b->next->previous = b;
    pool.lists[class] = b;
    pool.filled[class / 64] |= (uint64_t)1 << (class % 64);
    pool.state.idle += (int64_t)b->touched;
}

static void leave_list(Block *b)
{
    int class = class_of(b->size);
    b->free = 0;
    if (b->next)
        b->next->previous = b->previous;
    if (b->previous)
        b->previous->next = b->next;
    else if (!(pool.lists[class] = b->next))
        pool.filled[class / 64] &= ~((uint64_t)1 << (class % 64));
    pool.state.idle -= (int64_t)b->touched;
}

/* A free block of the smallest class that has one of `size` bytes, `touched` of them touched. */
static Block *find(size_t size, size_t touched)
{
    for (int c = filled_from(class_of(size)); c < CLASSES; c = filled_from(c + 1)) {
        Block *b = pool.lists[c];
        for (int looks = LOOKS; b && looks; b = b->next, looks--)
            if (b->size >= size && b->touched >= touched)
                return b;
    }
    return NULL;
}

/* -- cutting and merging ------------------------------------------------------------------------------- */

static Block *after(const Block *b) { return (Block *)((char *)b + b->size); }

/* Make the bytes of b from `size` on a free block, if they are enough for one. */
static void split(Block *b, size_t size)
{
    if (b->size - size < LEAST)
        return;
    Block *rest = (Block *)((char *)b + size);
    *rest = (Block){.size = b->size - size, .before = b, .self = rest,
                    .touched = b->touched > size + HEADER ? b->touched - size : HEADER};
    after(b)->before = rest;
    b->size = size;
    b->touched = smaller(b->touched, size);
    enter_list(rest);
}

/* b takes over the block that follows it; both are in no list. */
static void absorb(Block *b, Block *follower)
{
    after(follower)->before = b;
    if (b->touched == b->size || follower->touched > HEADER)
        b->touched = b->size + follower->touched;
    else
        memset(follower, 0, HEADER);     /* all beyond b->touched stays zero */
    b->size += follower->size;
}

/* Merge b, in no list, with its free neighbours. */
static Block *merged(Block *b)
{
    Block *follower = after(b), *leader = b->before;
    if (follower->free) {
        leave_list(follower);
        absorb(b, follower);
    }
    if (leader && leader->free) {
        leave_list(leader);
        absorb(leader, b);
        b = leader;
    }
    return b;
}

/* -- the system ------------------------------------------------------------------------------------------- */

/* `bytes`, a multiple of HUGE_PAGE, aligned to it; NULL if there are none. */
static void *map(size_t bytes)
{
    char *raw = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1,
                     0);
    if (raw == MAP_FAILED)
        return NULL;
    char *begin = (char *)round_up((size_t)raw, HUGE_PAGE);
    if (begin > raw)
        munmap(raw, (size_t)(begin - raw));
    munmap(begin + bytes, (size_t)(raw + HUGE_PAGE - begin));
#ifdef MADV_HUGEPAGE
    madvise(begin, bytes, MADV_HUGEPAGE);
#endif
    return begin;
}

/* A new region as one free block of at least `size`; NULL if there is no memory. */
static Block *grow(size_t size)
{
    size_t least = round_up(size + 2 * HEADER, HUGE_PAGE);
    size_t bytes = larger(least, smaller(larger(GROWTH, pool.mapped / 2), GROWTH_MOST));
    bytes = round_up(bytes, HUGE_PAGE);
    Region *r = map(bytes);
    if (!r && bytes > least)
        r = map(bytes = least);
    if (!r)
        return NULL;
    Block *first = (Block *)((char *)r + HEADER);
    *r = (Region){.next = pool.regions, .bytes = bytes};
    if (r->next)
        r->next->previous = r;
    pool.regions = r;
    pool.mapped += bytes;
    *first = (Block){.size = bytes - 2 * HEADER, .touched = HEADER, .self = first};
    *after(first) = (Block){.before = first};
    enter_list(first);
    return first;
}

/* Give the touched pages of a free block back; what is left of it reads as zero. */
static void purge(Block *b)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *bytes = (char *)b + HEADER, *touched = (char *)b + b->touched;
    char *begin = (char *)round_up((size_t)bytes, page);
    char *end = (char *)((size_t)touched / page * page);
    if (end > begin) {
#ifdef __linux__
        int failed = madvise(begin, (size_t)(end - begin), MADV_DONTNEED);
#else /* elsewhere it may leave the bytes as they are; a new mapping never does */
        int failed = mmap(begin, (size_t)(end - begin), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANON | MAP_FIXED, -1, 0) == MAP_FAILED;
#endif
        if (failed)
            return;
        memset(bytes, 0, (size_t)(begin - bytes));
        memset(end, 0, (size_t)(touched - end));
    } else {
        memset(bytes, 0, (size_t)(touched - bytes));
    }
    pool.state.idle -= (int64_t)(b->touched - HEADER);
    b->touched = HEADER;
}

/* Unmap every region that is one free block. */
static void unmap_free_regions(void)
{
    for (Region *r = pool.regions, *next; r; r = next) {
        Block *first = (Block *)((char *)r + HEADER);
        next = r->next;
        if (!first->free || first->size != r->bytes - 2 * HEADER)
            continue;
        leave_list(first);
        if (r->next)
            r->next->previous = r->previous;
        *(r->previous ? &r->previous->next : &pool.regions) = r->next;
        pool.mapped -= r->bytes;
        munmap(r, r->bytes);
    }
}

/* Give idle blocks back, the largest first, until no more than `allowed` idle bytes are left. */
static void give_back(size_t allowed)
{
    for (int c = CLASSES - 1; c >= 0; c--)
        for (Block *b = pool.lists[c]; b; b = b->next) {
            if ((size_t)pool.state.idle <= allowed)
                return;
            purge(b);
        }
}

/* -- taking and returning ------------------------------------------------------------------------------------ */

static Block *take(size_t size)
{
    minifm_pool_state *s = &pool.state;
    Block *b = find(size, size);
    int resident = b != NULL;
    if (!b)
        b = find(size, 0);
    if (!b)
        b = grow(size);
    if (!b) { /* the last resort: idle regions, which may be too small for this one */
        unmap_free_regions();
        give_back(0);
        b = grow(size);
    }
    if (!b)
        return NULL;
    resident ? s->hits++ : s->misses++;
    leave_list(b);
    split(b, size);
    s->used += (int64_t)b->size;
    if (s->used > s->peak)
        s->peak = s->used;
    int64_t limit = s->peak + s->peak / 4 + (int64_t)SLACK;
    if (!resident && s->used + s->idle > limit)
        give_back((size_t)(limit - s->used));
    return b;
}

/* Bytes of the block for a request, header included. */
static size_t block_size(size_t bytes) { return round_up(bytes + HEADER, UNIT); }

static void *pooled(size_t bytes, int zero)
{
    size_t size = block_size(bytes);
    pthread_mutex_lock(&pool.lock);
    Block *b = take(size);
    size_t dirty = b ? smaller(b->touched, size) - HEADER : 0;
    if (b)
        b->touched = larger(b->touched, size);
    pthread_mutex_unlock(&pool.lock);
    if (!b)
        return NULL;
    void *result = (char *)b + HEADER;
    return zero ? memset(result, 0, dirty), result : result;
}

static void give(Block *b)
{
    pthread_mutex_lock(&pool.lock);
    pool.state.used -= (int64_t)b->size;
    enter_list(merged(b));
    pthread_mutex_unlock(&pool.lock);
}

/* -- NumPy's handler ------------------------------------------------------------------------------------------ */

/* What stands before the bytes of malloc's blocks. The sizes that NumPy passes to `release` are not
 * relied on: those of empty arrays vary. */
typedef struct {
    size_t bytes;
    Block *self;             /* NULL, where a pooled block points to itself */
} Small;

static void *small(Small *s, size_t bytes)
{
    if (!s)
        return NULL;
    *s = (Small){bytes, NULL};
    return s + 1;
}

static Small *small_of(void *p) { return (Small *)p - 1; }
static Block *block_of(void *p) { return small_of(p)->self; }

static void *allocate(void *context, size_t bytes)
{
    if (bytes < LEAST)
        return small(malloc(sizeof(Small) + bytes), bytes);
    return bytes < MOST ? pooled(bytes, 0) : NULL;
}

static void *allocate_zeros(void *context, size_t count, size_t each)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, each, &bytes))
        return NULL;
    if (bytes < LEAST)
        return small(calloc(1, sizeof(Small) + bytes), bytes);
    return bytes < MOST ? pooled(bytes, 1) : NULL;
}

static void release(void *context, void *p, size_t bytes)
{
    if (!p)
        return;
    if (block_of(p))
        give(block_of(p));
    else
        free(small_of(p));
}

static void *reallocate(void *context, void *p, size_t bytes)
{
    if (!p)
        return allocate(context, bytes);
    Block *b = block_of(p);
    if (!b && bytes < LEAST)
        return small(realloc(small_of(p), sizeof(Small) + bytes), bytes);
    size_t old = b ? b->size - HEADER : small_of(p)->bytes;
    if (b && bytes <= old && bytes >= old / 2)
        return p;
    void *result = allocate(context, bytes);
    if (result) {
        memcpy(result, p, smaller(old, bytes));
        release(context, p, 0);
    }
    return result;
}

/* PyDataMem_Handler of numpy/ndarraytypes.h, version 1. */
static struct {
    char name[127];
    uint8_t version;
    struct {
        void *context;
        void *(*malloc)(void *context, size_t bytes);
        void *(*calloc)(void *context, size_t count, size_t each);
        void *(*realloc)(void *context, void *p, size_t bytes);
        void (*free)(void *context, void *p, size_t bytes);
    } allocator;
} handler = {"minifm_pool", 1, {NULL, allocate, allocate_zeros, reallocate, release}};

static void before_fork(void) { pthread_mutex_lock(&pool.lock); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&pool.lock); }
static void after_fork_in_child(void) { pthread_mutex_init(&pool.lock, NULL); }
static void watch_forks(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

void *minifm_pool_handler(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    return &handler;
}

const char *minifm_pool_capsule_name(void) { return "mem_handler"; }

minifm_pool_state minifm_pool_statistics(void)
{
    pthread_mutex_lock(&pool.lock);
    minifm_pool_state state = pool.state;
    pthread_mutex_unlock(&pool.lock);
    return state;
}

int64_t minifm_release_memory(void)
{
    const int64_t scratch_bytes = release_scratch();
    pthread_mutex_lock(&pool.lock);
    int64_t before = pool.state.idle;
    unmap_free_regions();
    give_back(0);
    pool.state.peak = pool.state.used;
    int64_t released = before - pool.state.idle;
    pthread_mutex_unlock(&pool.lock);
    return released + scratch_bytes;
}
