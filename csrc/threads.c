/* A small team of pthreads: one region at a time, dynamic tickets, a barrier that spins, then sleeps.
 *
 * Why not OpenMP: its runtimes hang in a child after fork, Apple's compiler lacks it, and a thread
 * sanitizer cannot tell its barriers from a race. Here a child simply starts threads of its own.
 */
#define _GNU_SOURCE /* sched_getcpu, pthread_setaffinity_np */
#include "threads.h"
#include "minifm.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20 }; /* bytes; fewer pages, fewer misses of their table */

enum {
    SPINS = 2000,           /* some 20 to 90 microseconds: about the distance between two kernels */
    SPINS_OF_A_TURN = 64,   /* then another thread may have the core: perhaps the one waited for */
};

/* A gate opens again and again; a waiter passes once its generation has changed. */
typedef struct {
    atomic_uint generation;
    pthread_mutex_t lock;
    pthread_cond_t opened;
} Gate;

static struct {
    pthread_mutex_t callers;          /* held from team_enter to team_leave */
    Gate start, finish, barrier;
    Task task;                        /* what the current region runs; NULL tells workers to end */
    void *context;
    int active;                       /* threads taking part in the current region */
    atomic_int finished, arrived;
    _Alignas(CACHE_LINE) atomic_llong ticket;
    atomic_int threads;               /* as set by the user; includes the caller */
    int started;                      /* workers that exist: threads 1 ... started */
    int callers_core;                 /* which they keep off; -1: not yet */
#ifdef __linux__
    cpu_set_t cores;                  /* where whoever started them may run */
#endif
    pthread_t workers[MAX_THREADS];
    unsigned seen_at_birth[MAX_THREADS]; /* the start gate's generation when each was made */
    void *scratch[SCRATCH_SLOTS];
    size_t scratch_bytes[SCRATCH_SLOTS];
} team = {.callers = PTHREAD_MUTEX_INITIALIZER, .threads = 1, .callers_core = -1};

static pthread_once_t prepared = PTHREAD_ONCE_INIT;

/* -- gates ---------------------------------------------------------------------------------- */

static void gate_init(Gate *gate)
{
    atomic_store(&gate->generation, 0);
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->opened, NULL);
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void gate_wait(Gate *gate, unsigned seen)
{
    for (int i = 1; i <= SPINS; i++) {
        if (atomic_load_explicit(&gate->generation, memory_order_acquire) != seen)
            return;
        relax();
        if (i % SPINS_OF_A_TURN == 0)
            sched_yield();
    }
    pthread_mutex_lock(&gate->lock);
    while (atomic_load_explicit(&gate->generation, memory_order_acquire) == seen)
        pthread_cond_wait(&gate->opened, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

static void gate_open(Gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    atomic_fetch_add_explicit(&gate->generation, 1, memory_order_release);
    pthread_cond_broadcast(&gate->opened);
    pthread_mutex_unlock(&gate->lock);
}

/* -- workers -------------------------------------------------------------------------------- */

static void *worker(void *argument)
{
    unsigned *seen_at_birth = argument;
    const int number = (int)(seen_at_birth - team.seen_at_birth);
    for (unsigned seen = *seen_at_birth;; seen++) {
        gate_wait(&team.start, seen);
        if (!team.task)
            return NULL;
        if (number < team.active)
            team.task(team.context, number, team.active);
        if (atomic_fetch_add(&team.finished, 1) + 1 == team.started)
            gate_open(&team.finish);
    }
}

static void stop_workers(void)
{
    if (!team.started)
        return;
    team.task = NULL;
    gate_open(&team.start);
    for (int i = 1; i <= team.started; i++)
        pthread_join(team.workers[i], NULL);
    team.started = 0;
}

/* A system that wakes a worker may put it on the core of the caller, who is busy, and leave it there
 * for a long time while another core idles: two threads then do the work of one. So workers may
 * run on any core but the caller's, wherever the cores suffice for all. */
static void keep_off_callers_core(void)
{
#ifdef __linux__
    const int here = sched_getcpu();
    if (here < 0 || here == team.callers_core || CPU_COUNT(&team.cores) < team.threads)
        return;
    cpu_set_t others = team.cores;
    CPU_CLR(here, &others);
    for (int i = 1; i <= team.started; i++)
        pthread_setaffinity_np(team.workers[i], sizeof others, &others);
    team.callers_core = here;
#endif
}

static void start_workers(void)
{
    team.callers_core = -1;
#ifdef __linux__
    if (sched_getaffinity(0, sizeof team.cores, &team.cores))
        CPU_ZERO(&team.cores);
#endif
    while (team.started + 1 < team.threads) {
        const int next = team.started + 1;
        team.seen_at_birth[next] = atomic_load(&team.start.generation);
        if (pthread_create(&team.workers[next], NULL, worker, &team.seen_at_birth[next]))
            break; /* the system gives no more threads: those there are do the work */
        team.started++;
    }
    if (team.started + 1 < team.threads)
        team.threads = team.started + 1;
}

/* -- fork: the child has none of the workers, and locks in an unknown state ------------------- */

static void init_gates(void)
{
    gate_init(&team.start);
    gate_init(&team.finish);
    gate_init(&team.barrier);
}

static void before_fork(void) { pthread_mutex_lock(&team.callers); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&team.callers); }

static void after_fork_in_child(void)
{
    pthread_mutex_init(&team.callers, NULL);
    init_gates();
    team.started = 0;
    team.callers_core = -1;
}

static void prepare(void)
{
    init_gates();
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* -- the interface ---------------------------------------------------------------------------- */

void team_enter(void)
{
    pthread_once(&prepared, prepare);
    pthread_mutex_lock(&team.callers);
}

void team_leave(void) { pthread_mutex_unlock(&team.callers); }

int team_threads(void) { return team.threads; }

/* Below this, waking the others costs more than they bring. */
int threads_for(double multiply_adds) { return multiply_adds < 4e5 ? 1 : team.threads; }

void team_run(Task task, void *context, int threads)
{
    if (threads != 1 && team.started + 1 < team.threads)
        start_workers();
    team.active = threads > 0 && threads < team.threads ? threads : team.threads;
    atomic_store(&team.ticket, 0);
    if (team.active == 1) {
        task(context, 0, 1);
        return;
    }
    keep_off_callers_core();
    team.task = task;
    team.context = context;
    atomic_store(&team.finished, 0);
    unsigned seen = atomic_load(&team.finish.generation);
    gate_open(&team.start);
    task(context, 0, team.active);
    gate_wait(&team.finish, seen);
}

int64_t team_ticket(void) { return atomic_fetch_add_explicit(&team.ticket, 1, memory_order_relaxed); }

void team_barrier(int threads)
{
    if (threads == 1) {
        atomic_store(&team.ticket, 0);
        return;
    }
    unsigned seen = atomic_load(&team.barrier.generation);
    if (atomic_fetch_add(&team.arrived, 1) + 1 == threads) {
        atomic_store(&team.arrived, 0);
        atomic_store(&team.ticket, 0);
        gate_open(&team.barrier);
    } else {
        gate_wait(&team.barrier, seen);
    }
}

typedef struct {
    int64_t items, grain;
    RangeTask task;
    void *context;
} Ranges;

static void draw_ranges(void *context, int thread, int threads)
{
    Ranges *r = context;
    int64_t begin;
    while ((begin = team_ticket() * r->grain) < r->items)
        r->task(r->context, begin, begin + r->grain < r->items ? begin + r->grain : r->items);
}

static int worth_the_pool(int64_t items, int64_t grain)
{
    return items > grain && team.threads > 1;
}

static void in_caller(int64_t items, int64_t grain, RangeTask task, void *context)
{
    for (int64_t begin = 0; begin < items; begin += grain)
        task(context, begin, begin + grain < items ? begin + grain : items);
}

void team_for(int64_t items, int64_t grain, RangeTask task, void *context)
{
    Ranges ranges = {items, grain, task, context};
    if (worth_the_pool(items, grain))
        team_run(draw_ranges, &ranges, 0);
    else
        in_caller(items, grain, task, context);
}

void parallel_for(int64_t items, int64_t grain, RangeTask task, void *context)
{
    if (!worth_the_pool(items, grain)) { /* asked once: without the lock, the answer may change */
        in_caller(items, grain, task, context);
        return;
    }
    team_enter();
    team_for(items, grain, task, context);
    team_leave();
}

int64_t grain_of(int64_t each) { return each >= 16384 ? 1 : 16384 / (each > 0 ? each : 1); }

/* Under AddressSanitizer, what lies beyond the bytes that were asked for is out of bounds, though
 * the block that is kept be larger. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
static void bound(void *block, size_t bytes, size_t kept)
{
    __asan_unpoison_memory_region(block, bytes);
    __asan_poison_memory_region((char *)block + bytes, kept - bytes);
}
#else
static void bound(void *block, size_t bytes, size_t kept) {}
#endif

void *scratch(int slot, size_t bytes)
{
    if (team.scratch_bytes[slot] < bytes || !team.scratch[slot]) { /* no bytes are a block, too */
        size_t pages = (bytes / HUGE_PAGE + 1) * HUGE_PAGE;
        free(team.scratch[slot]);
        team.scratch[slot] = aligned_alloc(HUGE_PAGE, pages);
#if defined(MADV_HUGEPAGE)
        if (team.scratch[slot])
            madvise(team.scratch[slot], pages, MADV_HUGEPAGE); /* a hint: failing is no failure */
#endif
        team.scratch_bytes[slot] = team.scratch[slot] ? pages : 0;
    }
    if (bytes && team.scratch[slot])
        bound(team.scratch[slot], bytes, team.scratch_bytes[slot]);
    return team.scratch[slot];
}

int64_t release_scratch(void)
{
    int64_t bytes = 0;
    team_enter();
    for (int slot = 0; slot < SCRATCH_SLOTS; slot++) {
        bytes += (int64_t)team.scratch_bytes[slot];
        free(team.scratch[slot]);
        team.scratch[slot] = NULL;
        team.scratch_bytes[slot] = 0;
    }
    team_leave();
    return bytes;
}

int scratch_for_threads(int threads, size_t bytes)
{
    for (int i = 0; i < threads; i++)
        if (!scratch(PRIVATE + i, bytes))
            return -1;
    return 0;
}

int minifm_threads(void) { return team.threads; }

void minifm_set_threads(int threads)
{
    team_enter();
    stop_workers();
    team.threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    team_leave();
}
