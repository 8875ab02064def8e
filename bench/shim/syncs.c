/* Counts the syncs of a program, and makes them equal on every machine if told so. Preloaded, it shares one page with
 * whoever measures, the file $BENCH_SYNCS: how many syncs there were, and how many microseconds each of them sleeps
 * instead of syncing; 0 lets the disk do it. Data has to be on a file system in memory for that to be the whole cost. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static struct control {
    _Atomic uint64_t syncs, sleep_us;
} unshared, *control = &unshared;
static int (*real_fsync)(int), (*real_fdatasync)(int);

__attribute__((constructor)) static void begin(void) {
    real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    const char *path = getenv("BENCH_SYNCS");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *page = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) control = page;
    close(file);
}

static int synced(int fd, int (*real)(int)) {
    atomic_fetch_add(&control->syncs, 1);
    uint64_t us = atomic_load(&control->sleep_us);
    if (!us) return real(fd);
    struct timespec span = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    while (nanosleep(&span, &span)) {
    }
    return 0;
}

int fsync(int fd) { return synced(fd, real_fsync); }
int fdatasync(int fd) { return synced(fd, real_fdatasync); }
