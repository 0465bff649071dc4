// Memory bandwidth for reads: threads sum disjoint halves of a buffer far larger than any cache.
//
//   cc -O3 -march=native -pthread bandwidth.c && ./a.out THREADS GIGABYTES REPEATS   ->  GB/s of each repeat, a line each
//
// Each repeat starts when all threads stand at a barrier and ends when the last one is through. The buffer is written
// beforehand, in 2 MiB pages where the system gives them: what is measured is memory, not page faults or address lookup.

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define LANES 64 // 512 bytes in flight per iteration

typedef struct {
    const uint64_t *words;
    size_t count;
    int repeats;
    uint64_t sum;
} Part;

static pthread_barrier_t barrier;

static void *read_part(void *argument) {
    Part *part = argument;
    for (int repeat = 0; repeat < part->repeats; repeat++) {
        uint64_t lanes[LANES] = {0};
        pthread_barrier_wait(&barrier);
        for (size_t i = 0; i + LANES <= part->count; i += LANES)
            for (int lane = 0; lane < LANES; lane++) lanes[lane] ^= part->words[i + lane];
        for (int lane = 0; lane < LANES; lane++) part->sum += lanes[lane];
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int main(int count, char **words) {
    if (count != 4) return fprintf(stderr, "usage: %s THREADS GIGABYTES REPEATS\n", words[0]), 2;
    int threads = atoi(words[1]), repeats = atoi(words[3]);
    size_t bytes = (size_t)(atof(words[2]) * 1e9) / threads / 4096 * 4096 * threads;
    uint64_t *buffer = aligned_alloc(1 << 21, (bytes + (1 << 21) - 1) >> 21 << 21);
    if (!buffer) return perror("aligned_alloc"), 1;
    madvise(buffer, bytes, MADV_HUGEPAGE);
    memset(buffer, 1, bytes);
    pthread_barrier_init(&barrier, NULL, (unsigned)threads + 1);
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    Part *parts = calloc((size_t)threads, sizeof *parts);
    size_t each = bytes / 8 / (size_t)threads;
    for (int i = 0; i < threads; i++) {
        parts[i] = (Part){buffer + each * (size_t)i, each, repeats, 0};
        pthread_create(&ids[i], NULL, read_part, &parts[i]);
    }
    for (int repeat = 0; repeat < repeats; repeat++) {
        pthread_barrier_wait(&barrier);
        double start = now();
        pthread_barrier_wait(&barrier);
        printf("%.3f\n", (double)bytes / (now() - start) / 1e9);
    }
    uint64_t sum = 0;
    for (int i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        sum += parts[i].sum;
    }
    return sum == 1; // the sum is used, so that no read may be left out
}
