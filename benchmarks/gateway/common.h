/* What engine.c and load.c share. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* Log-linear: buckets of 1/64 of a power of two, so at most 1.6 % off at any size. */
enum { SUB = 64 };
typedef struct Histogram {
    uint64_t count[64 * SUB];
    int64_t longest;
} Histogram;

static inline int64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Right-aligned, with zeros. */
static inline void digits(char *to, int count, uint64_t value) {
    while (count--) to[count] = (char)('0' + value % 10), value /= 10;
}

/* Where the value of a header begins in a head that is text, or NULL. Faster than strcasestr by far. */
static inline char *header(char *head, const char *name) {
    size_t length = strlen(name);
    for (char *line = head; (line = strchr(line, '\n'));) {
        line++;
        if ((line[0] | 32) == name[0] && strncasecmp(line, name, length) == 0 && line[length] == ':')
            return line + length + 1;
    }
    return NULL;
}

/* Sockets by the thousand need more than the 1,024 descriptors that a shell gives. */
static inline void raise_file_limit(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

static inline void note(Histogram *h, int64_t ns) {
    int power = 63 - __builtin_clzll((uint64_t)ns | SUB), shift = power - 6;
    h->count[shift * SUB + (ns >> shift)]++;
    if (ns > h->longest) h->longest = ns;
}

static inline double percentile_us(const Histogram *h, double share) {
    uint64_t total = 0, seen = 0;
    for (int i = 0; i < 64 * SUB; i++) total += h->count[i];
    for (int i = 0; i < 64 * SUB; i++) {
        if (!h->count[i] || (double)(seen += h->count[i]) < share * (double)total) continue;
        int shift = i < 2 * SUB ? 0 : i / SUB - 1;
        return ((double)((int64_t)(i - shift * SUB) << shift) + (double)(1LL << shift) / 2) / 1000;
    }
    return 0;
}

static inline void print_histogram(const char *name, const Histogram *h) {
    printf(",\"%s\":{\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, percentile_us(h, .5),
           percentile_us(h, .9), percentile_us(h, .99), 1e-3 * (double)h->longest);
}
