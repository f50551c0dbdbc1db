/* Makes one file operation of a program fail, for the tests in tests/tests/failure_injection.rs.
 *
 * Built with `cc -shared -fPIC -O1 failing_files.c -o failing_files.so -ldl` and loaded with
 * LD_PRELOAD. Operations on paths below one folder are numbered from 1 in the order in which they
 * happen; everything else (libraries, /proc, terminals, pipes) passes untouched. Environment:
 *
 *   FAIL_BELOW  absolute path of the folder
 *   FAIL_AT     number of the operation that fails; absent or 0: none
 *   FAIL_HOW    kill-before   the process is killed, the operation did not happen
 *               kill-after    the operation happened, then the process is killed
 *               eio           the operation fails with "Input/output error"
 *               enospc        the operation fails with "No space left on device"
 *               short         half of the bytes are written, as write() may do at any time
 *               full          half of the bytes are written, and from then on the disk is full
 *   FAIL_LOG    a file to which one line for each operation is appended: "NUMBER CALL PATH"
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define LONGEST 4096

enum fate { GO_ON, FAIL, DIE_AFTERWARDS, HALF };
enum kind { GROWS = 1, WRITES = 2 }; /* what a full disk refuses; what can be cut short */

static atomic_long operations;
static long at;
static const char *how = "", *below;
static size_t below_length;
static int log_file = -1;

__attribute__((constructor)) static void read_environment(void) {
    const char *text;
    below = getenv("FAIL_BELOW");
    below_length = below ? strlen(below) : 0;
    at = (text = getenv("FAIL_AT")) ? atol(text) : 0;
    if ((text = getenv("FAIL_HOW"))) how = text;
    if ((text = getenv("FAIL_LOG")))
        log_file = syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static void die(void) { syscall(SYS_kill, syscall(SYS_getpid), SIGKILL); }

/* The absolute form of `path`, which is relative to the folder open as `dir`. */
static const char *absolute(int dir, const char *path, char *buffer) {
    ssize_t length;
    char link[64];
    if (!path) return "";
    if (path[0] == '/') return path;
    if (dir == AT_FDCWD) {
        length = syscall(SYS_getcwd, buffer, LONGEST) > 0 ? (ssize_t)strlen(buffer) : 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        length = readlink(link, buffer, LONGEST - 1);
    }
    if (length < 0) length = 0;
    if (path[0]) length += snprintf(buffer + length, LONGEST - length, "/%s", path);
    buffer[length < LONGEST ? length : LONGEST - 1] = 0;
    return buffer;
}

static int is_below(const char *path) {
    return below && !strncmp(path, below, below_length)
        && (path[below_length] == '/' || path[below_length] == 0);
}

/* What becomes of an operation on `path`; errno is set where it fails. */
static enum fate fate(const char *call, int dir, const char *path, int kinds) {
    char buffer[LONGEST + 1], line[LONGEST + 100];
    const char *name = absolute(dir, path, buffer);
    long number;
    if (!is_below(name)) return GO_ON;
    number = atomic_fetch_add(&operations, 1) + 1;
    if (log_file >= 0) {
        int length = snprintf(line, sizeof line, "%ld %s %s\n", number, call, name + below_length);
        syscall(SYS_write, log_file, line, length);
    }
    if (at <= 0 || number < at) return GO_ON;
    if (!strcmp(how, "full")) {
        if (!(kinds & GROWS)) return GO_ON;
        errno = ENOSPC;
        return number == at && (kinds & WRITES) ? HALF : FAIL;
    }
    if (number > at) return GO_ON;
    if (!strcmp(how, "kill-before")) die();
    if (!strcmp(how, "kill-after")) return DIE_AFTERWARDS;
    if (!strcmp(how, "short")) return kinds & WRITES ? HALF : GO_ON;
    errno = !strcmp(how, "enospc") ? ENOSPC : EIO;
    return FAIL;
}

static enum fate fate_of_file(const char *call, int file, int kinds) {
    struct stat status;
    int before = errno;
    if (!below || file <= 2 || fstat(file, &status) || !(S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))) {
        errno = before;
        return GO_ON;
    }
    errno = before;
    return fate(call, file, "", kinds);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
/* Performs CALL as the fate says; for calls that return -1 on failure. */
#define OPERATION(type, decided, call) \
    do { \
        enum fate outcome = (decided); \
        if (outcome == FAIL) return (type)-1; \
        type result = (call); \
        if (outcome == DIE_AFTERWARDS) die(); \
        return result; \
    } while (0)

ssize_t write(int file, const void *bytes, size_t count) {
    REAL(write);
    enum fate outcome = fate_of_file("write", file, GROWS | WRITES);
    if (outcome == HALF && count > 1) return real(file, bytes, count / 2);
    OPERATION(ssize_t, outcome, real(file, bytes, count));
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t offset) {
    REAL(pwrite64);
    enum fate outcome = fate_of_file("pwrite", file, GROWS | WRITES);
    if (outcome == HALF && count > 1) return real(file, bytes, count / 2, offset);
    OPERATION(ssize_t, outcome, real(file, bytes, count, offset));
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    enum fate outcome = fate_of_file("writev", file, GROWS | WRITES);
    if (outcome == HALF) {
        static ssize_t (*plain)(int, const void *, size_t);
        if (!plain) plain = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
        if (count > 0 && parts[0].iov_len > 1) return plain(file, parts[0].iov_base, parts[0].iov_len / 2);
    }
    OPERATION(ssize_t, outcome, real(file, parts, count));
}

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t count, unsigned flags) {
    REAL(copy_file_range);
    OPERATION(ssize_t, fate_of_file("copy_file_range", to, GROWS), real(from, from_at, to, to_at, count, flags));
}

int ftruncate64(int file, off64_t length) {
    REAL(ftruncate64);
    OPERATION(int, fate_of_file("ftruncate", file, length > 0 ? GROWS : 0), real(file, length));
}

int fsync(int file) {
    REAL(fsync);
    OPERATION(int, fate_of_file("fsync", file, 0), real(file));
}

int fdatasync(int file) {
    REAL(fdatasync);
    OPERATION(int, fate_of_file("fdatasync", file, 0), real(file));
}

int fchmod(int file, mode_t mode) {
    REAL(fchmod);
    OPERATION(int, fate_of_file("fchmod", file, 0), real(file, mode));
}

void *mmap64(void *address, size_t length, int protection, int flags, int file, off64_t offset) {
    REAL(mmap64);
    OPERATION(void *, flags & MAP_ANONYMOUS ? GO_ON : fate_of_file("mmap", file, 0),
              real(address, length, protection, flags, file, offset));
}

void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    REAL(mmap);
    OPERATION(void *, flags & MAP_ANONYMOUS ? GO_ON : fate_of_file("mmap", file, 0),
              real(address, length, protection, flags, file, offset));
}

#define OPEN(name, call, dir_parameter, dir) \
    int name(dir_parameter const char *path, int flags, ...) { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list more; \
            va_start(more, flags); \
            mode = va_arg(more, mode_t); \
            va_end(more); \
        } \
        REAL(name); \
        OPERATION(int, fate(flags & O_CREAT ? "create" : "open", dir, path, flags & O_CREAT ? GROWS : 0), call); \
    }
#define NO_DIR
#define DIR_PARAMETER int dir,
OPEN(open64, real(path, flags, mode), NO_DIR, AT_FDCWD)
OPEN(open, real(path, flags, mode), NO_DIR, AT_FDCWD)
OPEN(openat64, real(dir, path, flags, mode), DIR_PARAMETER, dir)
OPEN(openat, real(dir, path, flags, mode), DIR_PARAMETER, dir)

int creat64(const char *path, mode_t mode) {
    REAL(creat64);
    OPERATION(int, fate("create", AT_FDCWD, path, GROWS), real(path, mode));
}

int rename(const char *from, const char *to) {
    REAL(rename);
    OPERATION(int, fate("rename", AT_FDCWD, to, 0), real(from, to));
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    REAL(renameat);
    OPERATION(int, fate("rename", to_dir, to, 0), real(from_dir, from, to_dir, to));
}

int link(const char *from, const char *to) {
    REAL(link);
    OPERATION(int, fate("link", AT_FDCWD, to, GROWS), real(from, to));
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    REAL(linkat);
    OPERATION(int, fate("link", to_dir, to, GROWS), real(from_dir, from, to_dir, to, flags));
}

int symlink(const char *target, const char *path) {
    REAL(symlink);
    OPERATION(int, fate("symlink", AT_FDCWD, path, GROWS), real(target, path));
}

int unlink(const char *path) {
    REAL(unlink);
    OPERATION(int, fate("unlink", AT_FDCWD, path, 0), real(path));
}

int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat);
    OPERATION(int, fate("unlink", dir, path, 0), real(dir, path, flags));
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    OPERATION(int, fate("mkdir", AT_FDCWD, path, GROWS), real(path, mode));
}

int rmdir(const char *path) {
    REAL(rmdir);
    OPERATION(int, fate("rmdir", AT_FDCWD, path, 0), real(path));
}
