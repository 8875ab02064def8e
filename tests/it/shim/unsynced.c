/* What a power cut leaves: preloaded into a server, this keeps a copy of every file of the directory $UNSYNCED_FROM in
 * $UNSYNCED_TO as it was at its last fsync or fdatasync. Whatever was written and never synced is not in the copy; a
 * deleted file goes when the directory that it was in is synced. A copy appears whole or not at all, so the server may
 * be killed in the middle. Real syncs are left out: the copy is what the test believes in. Directories inside the
 * directory have to be in the copy already; PostgreSQL makes none while it is only written to. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int fail(void) {
    errno = EIO;
    return -1;
}

static int copy(int fd, const char *target) {
    char partial[PATH_MAX], buffer[65536];
    // With its own number: several processes of one server may sync the same file.
    if (snprintf(partial, sizeof partial, "%s.%d.partial", target, (int)getpid()) >= (int)sizeof partial) return fail();
    int out = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (out < 0) return -1;
    off_t at = 0;
    for (ssize_t n; (n = pread(fd, buffer, sizeof buffer, at)) != 0; at += n)
        if (n < 0 || write(out, buffer, (size_t)n) != n) {
            close(out);
            return fail();
        }
    close(out);
    return rename(partial, target);
}

static int forget_deleted(const char *from, const char *to) {
    DIR *names = opendir(to);
    if (!names) return -1;
    for (struct dirent *name; (name = readdir(names));) {
        char original[PATH_MAX], kept[PATH_MAX];
        if (name->d_name[0] == '.' || strstr(name->d_name, ".partial")) continue;
        snprintf(original, sizeof original, "%s/%s", from, name->d_name);
        snprintf(kept, sizeof kept, "%s/%s", to, name->d_name);
        // Of a directory unlink makes nothing.
        if (access(original, F_OK)) unlink(kept);
    }
    return closedir(names);
}

static int keep(int fd) {
    const char *from = getenv("UNSYNCED_FROM"), *to = getenv("UNSYNCED_TO");
    char link[64], path[PATH_MAX], target[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (!from || !to || length < 0) return 0;
    path[length] = 0;
    size_t prefix = strlen(from);
    if (strncmp(path, from, prefix) || (path[prefix] != '/' && path[prefix] != 0)) return 0;
    if (snprintf(target, sizeof target, "%s%s", to, path + prefix) >= (int)sizeof target) return fail();
    struct stat found;
    if (fstat(fd, &found)) return -1;
    return S_ISDIR(found.st_mode) ? forget_deleted(path, target) : copy(fd, target);
}

int fsync(int fd) { return keep(fd); }
int fdatasync(int fd) { return keep(fd); }
