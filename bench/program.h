/* What the programs in C share: a clock, times sorted into a histogram, what a process has taken so far; a server's
 * beginning and end; for loads, what to send and where from. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ull

enum { FINE = 64, BUCKETS = FINE * 60 }; /* per doubling: times are right to 1.6 % */
enum { SOURCES = 16 };

static uint64_t histogram[BUCKETS], longest;

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline void *room(size_t bytes) {
    void *place = calloc(1, bytes);
    if (!place)
        die("calloc");
    return place;
}

/* -- times -- */

static inline uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static inline void took(uint64_t time) {
    int shift = time < FINE ? 0 : 63 - __builtin_clzll(time) - 6;
    size_t bucket = (size_t)shift * FINE + (size_t)(time >> shift);
    histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    if (time > longest)
        longest = time;
}

static inline double percentile(double share) {
    uint64_t all = 0, seen = 0;
    for (size_t i = 0; i < BUCKETS; i++)
        all += histogram[i];
    for (size_t i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (all && (double)seen >= share * (double)all) {
            size_t shift = i < 2 * FINE ? 0 : i / FINE - 1;
            return (double)((uint64_t)(i - shift * FINE) << shift) / 1000;
        }
    }
    return 0;
}

/* -- what a process has taken -- */

static inline double cpu_of(pid_t pid) {
    clockid_t clock;
    struct timespec t;
    if (!pid || clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t))
        return 0;
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* A line of its /proc/PID/status, KiB. */
static inline long memory_of(pid_t pid, const char *name) {
    char line[256];
    long found = 0;
    snprintf(line, sizeof line, "/proc/%d/status", (int)pid);
    FILE *status = fopen(line, "r");
    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, name, strlen(name)))
            found = atol(line + strlen(name));
    if (status)
        fclose(status);
    return found;
}

/* -- for a load -- */

static inline void raise_file_limit(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

/* Small letters, of which no window begins with the 'S' that asks for a stream, or holds an end of line. */
static inline void write_letters(char *place, size_t size) {
    uint32_t random = 12345;
    for (size_t i = 0; i < size; i++) {
        random = random * 1664525 + 1013904223;
        place[i] = (char)('a' + (random >> 16) % 26);
    }
}

/* Local ports of one address run out, as a closed connection holds its own for a while. So take several addresses. */
static inline void choose_source(int fd, unsigned number) {
    struct sockaddr_in source = {.sin_family = AF_INET};
    int on = 1;
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + number % SOURCES);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(fd, (void *)&source, sizeof source) < 0)
        die("bind");
}

/* -- a server's beginning and end -- */

static inline void bind_to_any_port(int fd) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (void *)&address, sizeof address) < 0)
        die("bind");
}

static inline void say_port(int fd) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    if (getsockname(fd, (void *)&address, &length) < 0)
        die("getsockname");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
}

static inline void say_what_it_took(unsigned long long handled) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double seconds = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                     (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"cpu\": %.6f, \"peak\": %ld, \"rss\": %ld, \"handled\": %llu}\n", seconds,
           memory_of(getpid(), "VmHWM:"), memory_of(getpid(), "VmRSS:"), handled);
}

#endif
