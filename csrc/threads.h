/* A team of threads that all work on one parallel region at a time. */
#ifndef MINIFM_THREADS_H
#define MINIFM_THREADS_H

#include <stddef.h>
#include <stdint.h>

enum { MAX_THREADS = 256, CACHE_LINE = 64 };

/* What each thread of a region runs. `thread` is 0 ... threads - 1. */
typedef void (*Task)(void *context, int thread, int threads);

/* What parallel_for runs on items begin ... end - 1. */
typedef void (*RangeTask)(void *context, int64_t begin, int64_t end);

/* Only one caller has the team at a time; Python threads that call at once wait here. (What is too
 * small for it, see parallel_for, runs in its caller meanwhile.) Everything below,
 * and the scratch memory, belongs to whoever is between enter and leave. */
void team_enter(void);
void team_leave(void);

/* Run `task` on up to `threads` threads of the team (0: all of them), the caller being number 0. */
void team_run(Task task, void *context, int threads);

/* Inside a region: wait until all its threads are here. The tickets start again from 0. */
void team_barrier(int threads);

/* Inside a region: the next number 0, 1, 2, ... that no other thread has drawn. */
int64_t team_ticket(void);

int team_threads(void);

/* How many threads so many multiply-adds are worth: one, or all of the team. */
int threads_for(double multiply_adds);

/* Outside a region, between enter and leave: items 0 ... items - 1 in ranges of `grain`, on all
 * threads where that is more than one range, else in the caller without ceremony. */
void team_for(int64_t items, int64_t grain, RangeTask task, void *context);

/* The same, taking the lock itself. */
void parallel_for(int64_t items, int64_t grain, RangeTask task, void *context);

/* Items of a range so that it holds some 16,000 numbers, `each` to an item: enough that handing it
 * out costs little beside computing it. */
int64_t grain_of(int64_t each);

/* A sum over rows, always in the same order: rows are cut into chunks by a rule that looks at
 * their number alone, `task` adds the rows of a chunk to partial[width], which begins at 0, and
 * the partials are added in order. out[width] is overwritten; -1 if there is no memory. */
typedef void (*ChunkTask)(void *context, float *partial, int64_t begin, int64_t end);
int reduce_rows(float *out, int64_t rows, int64_t width, ChunkTask task, void *context);

/* Aligned memory number `slot`, at least `bytes` long, kept between calls; NULL if there is no
 * memory. Slots: SHARED, then one for each thread at PRIVATE + thread. */
enum { SHARED, PRIVATE, SCRATCH_SLOTS = PRIVATE + MAX_THREADS };
void *scratch(int slot, size_t bytes);

/* Free it, between two regions; how many bytes that were. */
int64_t release_scratch(void);

/* The same for every thread's private slot; 0, or -1 if there is no memory. */
int scratch_for_threads(int threads, size_t bytes);

#endif
