/* Time that has passed: preloaded into a server, this adds as many seconds as the file $LATER holds (one 64-bit number)
 * to every clock that it asks. All of them move together, so for the server that time has really passed; a wall clock
 * that steps alone would be another thing. Who writes the file lets time pass. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *later;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LATER");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) _exit(99);
    void *page = mmap(NULL, sizeof *later, PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) _exit(99);
    later = page;
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC || clock == CLOCK_BOOTTIME)) at->tv_sec += *later;
    return failed;
}
