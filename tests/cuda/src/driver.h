// Shared by the files of the stand-in driver: its log, its objects, the card's state.
#pragma once
#define _GNU_SOURCE
#include <cuda.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CARDS = 16 };

// Held by every call that touches what is below.
extern pthread_mutex_t mu;
extern char dir[512];     // NULLCUDA_DIR
extern const char *ptxas; // NULLCUDA_PTXAS
extern int verbose, executing;
extern size_t copy_max; // larger copies are recorded, not made; 0: no limit
extern uint64_t seed;   // which tuning candidate is told to be the fastest
// mem_peak: most that was in use at a time on any card
extern size_t mem_total, mem_reserved, mem_used[MAX_CARDS], mem_peak;

// The cards that are shown (NULLCUDA_DEVICES, default 1), and the one whose context is that of the
// calling thread.
int cards(void);
int current_card(void);

// Totals, written at the end of the log.
typedef struct Totals {
    uint64_t launches, products, modules, h2d, d2h, d2d, syncs, allocs, frees, events, tensor_maps;
    uint64_t errors;
    size_t h2d_bytes, d2h_bytes, d2d_bytes;
} Totals;
extern Totals total;

// One line of the log: milliseconds since the start, a tab, the text.
__attribute__((format(printf, 1, 2))) void say(const char *fmt, ...);
// Writes a refusal ("!") to the log and returns its code.
__attribute__((format(printf, 2, 3))) CUresult fail(CUresult r, const char *fmt, ...);
void begin(void); // opens the log, once
void flush_log(void);

// A stream has a clock of made-up durations, so that events can tell elapsed times.
typedef struct Stream {
    uint64_t id;
    double clock_ns;
} Stream;
Stream *stream_of(CUstream s);

// A kernel: what its PTX declares and what ptxas says of it.
typedef struct Param {
    int size, align, is_ptr;
} Param;
typedef void Execute(void *const *params, const unsigned *grid, const unsigned *block,
                     unsigned shared_bytes, char *stacks);
typedef struct Func {
    struct Func *next;
    struct Module *module;
    char *name;
    uint64_t id;
    // static_smem: shared variables of the whole module, which lie one after the other when kernels
    // run here; used_smem: those of this kernel, which count towards its limit
    int regs, spill_st, spill_ld, static_smem, used_smem, lmem, max_dyn, maxntid, reqntid[3], has_req,
        cluster[3];
    int nparams;
    Param params[2048];
    int uses_mma, uses_wmma, uses_wgmma, uses_tma, uses_cpasync, uses_ldmatrix, uses_f64, uses_atom,
        uses_shfl;
    uint64_t launches;
    Execute *exec;
} Func;
typedef struct Module {
    uint64_t hash;
    char *ptx;
    size_t len;
    Func *funcs;
    void *so;
    int tried;
} Module;
uint64_t fnv(const char *p, size_t n);
void load_exec(Module *m); // translates the module's PTX to C, compiles and loads it

// The allocation that holds the address, or NULL.
typedef struct Alloc {
    uintptr_t at;
    size_t size;
    int card;
} Alloc;
Alloc *find(uintptr_t p);

// Waiting for a probe of the card's peak takes as long as the probe would: see launch.c.
extern double probe_pending;
