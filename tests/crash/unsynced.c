/* What a program writes below one directory, and what of it was synced.
 *
 * A library to preload. It passes every call on, and notes in a log what would have to be taken
 * back if the power went at that moment: before bytes are overwritten or cut off, it saves them;
 * before a file is removed or replaced, it links it elsewhere; after a sync, it notes that. It
 * takes nothing back itself: power.rs reads the log after the program was killed, and says which
 * model of a disk it follows.
 *
 * UNSYNCED_DIR    the directory, absolute and without symbolic links
 * UNSYNCED_LOG    the log; it is appended to
 * UNSYNCED_LINKS  a directory on the same file system for files that were removed
 *
 * A call that changes files in a way that is not followed here is noted as such, and fails the
 * test: writing through a mapping, writing by stdio, links. copy_file_range and sendfile into the
 * directory are refused, upon which callers fall back to reading and writing.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    WRITE = 1, /* inode, at: offset, length; old_size; data: what stood there */
    SIZE,      /* inode, length: the new size; old_size; data: what is cut off */
    SYNC,      /* inode, path; at: the last record that is covered */
    CREATE,    /* inode, path */
    RENAME,    /* inode, path, other: the new path; at: the inode that is replaced, or 0 */
    UNLINK,    /* inode, path */
    MKDIR,     /* path */
    RMDIR,     /* path */
    DIRSYNC,   /* path; at: the last record that is covered */
    ALL,       /* at: the last record that is covered */
    CANCEL,    /* at: a record whose call has failed */
    UNKNOWN,   /* path: what was called */
};

/* As power.rs reads it: all little-endian, followed by path, other and data. */
struct record {
    uint32_t magic, kind;
    uint64_t number, inode, at, length, old_size;
    uint32_t path_len, other_len;
    uint64_t data_len;
};

#define MAGIC 0x59534e55u
#define FDS 65536

enum state { NOT_KNOWN, FOREIGN, FILE_BELOW, DIRECTORY_BELOW };

static _Atomic unsigned char states[FDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char directory[PATH_MAX], links[PATH_MAX];
static int log_fd = -1, is_ready;
static uint64_t records;

#define REAL(name) real_##name
#define FOR_EACH_CALL(X)                                                                        \
    X(open, int, (const char *, int, ...))                                                      \
    X(openat, int, (int, const char *, int, ...))                                               \
    X(close, int, (int))                                                                        \
    X(fclose, int, (FILE *))                                                                    \
    X(closedir, int, (DIR *))                                                                   \
    X(write, ssize_t, (int, const void *, size_t))                                              \
    X(pwrite, ssize_t, (int, const void *, size_t, off_t))                                      \
    X(writev, ssize_t, (int, const struct iovec *, int))                                        \
    X(pwritev, ssize_t, (int, const struct iovec *, int, off_t))                                \
    X(pwritev2, ssize_t, (int, const struct iovec *, int, off_t, int))                          \
    X(ftruncate, int, (int, off_t))                                                             \
    X(truncate, int, (const char *, off_t))                                                     \
    X(fallocate, int, (int, int, off_t, off_t))                                                 \
    X(posix_fallocate, int, (int, off_t, off_t))                                                \
    X(fsync, int, (int))                                                                        \
    X(fdatasync, int, (int))                                                                    \
    X(sync, void, (void))                                                                       \
    X(syncfs, int, (int))                                                                       \
    X(rename, int, (const char *, const char *))                                                \
    X(renameat2, int, (int, const char *, int, const char *, unsigned))                         \
    X(unlink, int, (const char *))                                                              \
    X(unlinkat, int, (int, const char *, int))                                                  \
    X(rmdir, int, (const char *))                                                               \
    X(mkdir, int, (const char *, mode_t))                                                       \
    X(mkdirat, int, (int, const char *, mode_t))                                                \
    X(link, int, (const char *, const char *))                                                  \
    X(linkat, int, (int, const char *, int, const char *, int))                                 \
    X(symlinkat, int, (const char *, int, const char *))                                        \
    X(mmap, void *, (void *, size_t, int, int, int, off_t))                                     \
    X(fopen, FILE *, (const char *, const char *))                                              \
    X(fdopen, FILE *, (int, const char *))                                                      \
    X(copy_file_range, ssize_t, (int, off_t *, int, off_t *, size_t, unsigned))                 \
    X(sendfile, ssize_t, (int, int, off_t *, size_t))

#define DECLARE(name, type, parameters) static type(*REAL(name)) parameters;
FOR_EACH_CALL(DECLARE)

__attribute__((constructor)) static void prepare(void)
{
    if (is_ready)
        return;
#define FIND(name, type, parameters) REAL(name) = (type(*) parameters)dlsym(RTLD_NEXT, #name);
    FOR_EACH_CALL(FIND)
    const char *dir = getenv("UNSYNCED_DIR"), *log = getenv("UNSYNCED_LOG");
    const char *beside = getenv("UNSYNCED_LINKS");
    is_ready = 1;
    if (!dir || !log || !beside)
        return;
    snprintf(directory, sizeof directory, "%s", dir);
    snprintf(links, sizeof links, "%s", beside);
    log_fd = REAL(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
}

static void die(const char *what)
{
    fprintf(stderr, "unsynced: %s: %s\n", what, strerror(errno));
    abort();
}

/* Called with the lock held. Returns the record's number. */
static uint64_t note(struct record r, const char *path, const char *other, const void *data)
{
    r.magic = MAGIC;
    r.number = ++records;
    r.path_len = path ? strlen(path) : 0;
    r.other_len = other ? strlen(other) : 0;
    struct iovec parts[] = {
        { &r, sizeof r },
        { (void *)path, r.path_len },
        { (void *)other, r.other_len },
        { (void *)data, r.data_len },
    };
    ssize_t all = sizeof r + r.path_len + r.other_len + r.data_len;
    if (REAL(writev)(log_fd, parts, 4) != all)
        die("the log cannot be written");
    return r.number;
}

static void unknown(const char *call)
{
    pthread_mutex_lock(&lock);
    note((struct record){ .kind = UNKNOWN }, call, NULL, NULL);
    pthread_mutex_unlock(&lock);
}

static int is_below(const char *path)
{
    size_t len = strlen(directory);
    return log_fd >= 0 && len && !strncmp(path, directory, len) && (path[len] == '/' || !path[len]);
}

/* The absolute form of a path that need not exist. 1 if it is below the directory. */
static int absolute(int at, const char *path, char *out)
{
    char base[PATH_MAX] = "", link[64];
    if (!path || log_fd < 0)
        return 0;
    if (path[0] != '/') {
        if (at == AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t len = readlink(link, base, sizeof base - 1);
        if (len < 0)
            return 0;
        base[len] = 0;
    }
    size_t to = 0;
    for (int part = 0; part < 3; part++) {
        const char *from = part == 0 ? base : part == 1 ? "/" : path;
        if (part < 2 && path[0] == '/')
            continue;
        for (; *from && to < PATH_MAX - 1; from++) {
            int is_dot = from[0] == '.' && to && out[to - 1] == '/' && (from[1] == '/' || !from[1]);
            if (!(*from == '/' && to && out[to - 1] == '/') && !is_dot)
                out[to++] = *from;
        }
    }
    while (to > 1 && out[to - 1] == '/')
        to--;
    out[to] = 0;
    return is_below(out);
}

static int path_of(int fd, char *out)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, out, PATH_MAX - 1);
    out[len < 0 ? 0 : len] = 0;
    return is_below(out);
}

static enum state state_of(int fd)
{
    if (fd < 0 || fd >= FDS || log_fd < 0 || fd == log_fd)
        return FOREIGN;
    enum state known = states[fd];
    if (known == NOT_KNOWN) {
        char path[PATH_MAX];
        struct stat status;
        int saved = errno;
        known = FOREIGN;
        if (path_of(fd, path) && !fstat(fd, &status))
            known = S_ISDIR(status.st_mode)   ? DIRECTORY_BELOW
                    : S_ISREG(status.st_mode) ? FILE_BELOW
                                              : FOREIGN;
        states[fd] = known;
        errno = saved;
    }
    return known;
}

static void forget(int fd)
{
    if (fd >= 0 && fd < FDS)
        states[fd] = NOT_KNOWN;
}

/* A file's bytes from `at` on, as far as there are `length`. The caller frees them. */
static void *read_old(int fd, off_t at, size_t *length)
{
    char *data = malloc(*length ? *length : 1);
    size_t have = 0;
    /* What is opened for writing only is opened again. */
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int again = REAL(open)(link, O_RDONLY | O_CLOEXEC);
    while (data && again >= 0 && have < *length) {
        ssize_t got = pread(again, data + have, *length - have, at + have);
        if (got <= 0)
            break;
        have += got;
    }
    if (again >= 0)
        REAL(close)(again);
    if (have < *length)
        die("old bytes cannot be read");
    return data;
}

/* Called with the lock held, before `length` bytes are written; at -1 where the file stands. */
static void note_write(int fd, off_t at, size_t length)
{
    struct stat status;
    if (fstat(fd, &status) || !S_ISREG(status.st_mode)) {
        forget(fd);
        return;
    }
    if (at < 0 || fcntl(fd, F_GETFL) & O_APPEND)
        at = fcntl(fd, F_GETFL) & O_APPEND ? status.st_size : lseek(fd, 0, SEEK_CUR);
    size_t old = at < status.st_size ? (size_t)(status.st_size - at) : 0;
    old = old < length ? old : length;
    void *data = old ? read_old(fd, at, &old) : NULL;
    struct record r = { .kind = WRITE, .inode = status.st_ino, .at = at, .length = length };
    r.old_size = status.st_size;
    r.data_len = old;
    note(r, NULL, NULL, data);
    free(data);
}

/* Called with the lock held, before the size changes. */
static void note_size(int fd, off_t size)
{
    struct stat status;
    if (fstat(fd, &status) || !S_ISREG(status.st_mode) || status.st_size == size)
        return;
    size_t old = size < status.st_size ? (size_t)(status.st_size - size) : 0;
    void *data = old ? read_old(fd, size, &old) : NULL;
    struct record r = { .kind = SIZE, .inode = status.st_ino, .length = size };
    r.old_size = status.st_size;
    r.data_len = old;
    note(r, NULL, NULL, data);
    free(data);
}

/* Called with the lock held: keeps a file that is about to lose its name. Returns its inode. */
static uint64_t keep(const char *path)
{
    struct stat status;
    char kept[PATH_MAX + 32];
    if (lstat(path, &status))
        return 0;
    snprintf(kept, sizeof kept, "%s/%llu", links, (unsigned long long)status.st_ino);
    if (REAL(link)(path, kept) && errno != EEXIST)
        die("a file cannot be linked");
    return status.st_ino;
}

static void note_result(uint64_t number, int result)
{
    int saved = errno;
    if (result)
        note((struct record){ .kind = CANCEL, .at = number }, NULL, NULL, NULL);
    errno = saved;
}

static size_t length_of(const struct iovec *parts, int count)
{
    size_t all = 0;
    for (int i = 0; i < count; i++)
        all += parts[i].iov_len;
    return all;
}

/* Passes a write on, between its note and the next. */
#define WRITING(fd, at, length, call)                                                           \
    do {                                                                                        \
        prepare();                                                                              \
        if (state_of(fd) != FILE_BELOW)                                                         \
            return call;                                                                        \
        pthread_mutex_lock(&lock);                                                              \
        note_write(fd, at, length);                                                             \
        __typeof__(call) result = call;                                                         \
        int saved = errno;                                                                      \
        pthread_mutex_unlock(&lock);                                                            \
        errno = saved;                                                                          \
        return result;                                                                          \
    } while (0)

ssize_t write(int fd, const void *data, size_t length)
{
    WRITING(fd, -1, length, REAL(write)(fd, data, length));
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at)
{
    WRITING(fd, at, length, REAL(pwrite)(fd, data, length, at));
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at)
{
    return pwrite(fd, data, length, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    WRITING(fd, -1, length_of(parts, count), REAL(writev)(fd, parts, count));
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at)
{
    WRITING(fd, at, length_of(parts, count), REAL(pwritev)(fd, parts, count, at));
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at)
{
    return pwritev(fd, parts, count, at);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags)
{
    WRITING(fd, at, length_of(parts, count), REAL(pwritev2)(fd, parts, count, at, flags));
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags)
{
    return pwritev2(fd, parts, count, at, flags);
}

#define RESIZING(fd, size, call)                                                                \
    do {                                                                                        \
        prepare();                                                                              \
        if (state_of(fd) != FILE_BELOW)                                                         \
            return call;                                                                        \
        pthread_mutex_lock(&lock);                                                              \
        note_size(fd, size);                                                                    \
        int result = call;                                                                      \
        int saved = errno;                                                                      \
        pthread_mutex_unlock(&lock);                                                            \
        errno = saved;                                                                          \
        return result;                                                                          \
    } while (0)

int ftruncate(int fd, off_t size)
{
    RESIZING(fd, size, REAL(ftruncate)(fd, size));
}

int ftruncate64(int fd, off64_t size)
{
    return ftruncate(fd, size);
}

int truncate(const char *path, off_t size)
{
    char full[PATH_MAX];
    prepare();
    if (!absolute(AT_FDCWD, path, full))
        return REAL(truncate)(path, size);
    int fd = REAL(open)(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int result = ftruncate(fd, size);
    close(fd);
    return result;
}

int truncate64(const char *path, off64_t size)
{
    return truncate(path, size);
}

/* The size that a file has after space was made in it, or the one that it has. */
static off_t size_with(int fd, int mode, off_t at, off_t length)
{
    struct stat status = { 0 };
    fstat(fd, &status);
    int grows = !(mode & FALLOC_FL_KEEP_SIZE) && at + length > status.st_size;
    return grows ? at + length : status.st_size;
}

int fallocate(int fd, int mode, off_t at, off_t length)
{
    prepare();
    if (state_of(fd) == FILE_BELOW && (mode & ~FALLOC_FL_KEEP_SIZE))
        unknown("fallocate that changes bytes");
    RESIZING(fd, size_with(fd, mode, at, length), REAL(fallocate)(fd, mode, at, length));
}

int fallocate64(int fd, int mode, off64_t at, off64_t length)
{
    return fallocate(fd, mode, at, length);
}

int posix_fallocate(int fd, off_t at, off_t length)
{
    RESIZING(fd, size_with(fd, 0, at, length), REAL(posix_fallocate)(fd, at, length));
}

int posix_fallocate64(int fd, off64_t at, off64_t length)
{
    return posix_fallocate(fd, at, length);
}

/* Only what was written before a sync begins is covered by it. */
static uint64_t records_so_far(void)
{
    pthread_mutex_lock(&lock);
    uint64_t so_far = records;
    pthread_mutex_unlock(&lock);
    return so_far;
}

static int synced(int fd, int (*call)(int))
{
    enum state state = state_of(fd);
    if (state == FOREIGN)
        return call(fd);
    uint64_t covered = records_so_far();
    int result = call(fd);
    char path[PATH_MAX];
    struct stat status;
    if (result == 0 && path_of(fd, path) && !fstat(fd, &status)) {
        int is_file = state == FILE_BELOW;
        pthread_mutex_lock(&lock);
        struct record r = { .kind = is_file ? SYNC : DIRSYNC, .at = covered };
        r.inode = status.st_ino;
        note(r, path, NULL, NULL);
        pthread_mutex_unlock(&lock);
    }
    return result;
}

int fsync(int fd)
{
    prepare();
    return synced(fd, REAL(fsync));
}

int fdatasync(int fd)
{
    prepare();
    return synced(fd, REAL(fdatasync));
}

static void note_all(uint64_t covered)
{
    pthread_mutex_lock(&lock);
    if (log_fd >= 0)
        note((struct record){ .kind = ALL, .at = covered }, NULL, NULL, NULL);
    pthread_mutex_unlock(&lock);
}

void sync(void)
{
    prepare();
    uint64_t covered = records_so_far();
    REAL(sync)();
    note_all(covered);
}

int syncfs(int fd)
{
    prepare();
    uint64_t covered = records_so_far();
    int result = REAL(syncfs)(fd);
    if (result == 0 && state_of(fd) != FOREIGN)
        note_all(covered);
    return result;
}

static int opened(int at, const char *path, int flags, mode_t mode)
{
    char full[PATH_MAX];
    struct stat before;
    prepare();
    int changes = (flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE;
    if (!changes || !absolute(at, path, full)) {
        int fd = REAL(openat)(at, path, flags, mode);
        forget(fd);
        return fd;
    }
    if ((flags & O_TMPFILE) == O_TMPFILE)
        unknown("O_TMPFILE");
    pthread_mutex_lock(&lock);
    int is_new = stat(full, &before) != 0;
    if (!is_new && flags & O_TRUNC && !(flags & O_EXCL) && S_ISREG(before.st_mode)) {
        int old = REAL(open)(full, O_RDONLY | O_CLOEXEC);
        if (old >= 0) {
            note_size(old, 0);
            REAL(close)(old);
        }
    }
    int fd = REAL(openat)(at, path, flags, mode);
    int saved = errno;
    forget(fd);
    struct stat after;
    if (fd >= 0 && is_new && !fstat(fd, &after))
        note((struct record){ .kind = CREATE, .inode = after.st_ino }, full, NULL, NULL);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return fd;
}

static mode_t mode_in(int flags, va_list *rest)
{
    int has_mode = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE;
    return has_mode ? va_arg(*rest, mode_t) : 0;
}

#define OPENING(at, path, flags)                                                                \
    do {                                                                                        \
        va_list rest;                                                                           \
        va_start(rest, flags);                                                                  \
        mode_t mode = mode_in(flags, &rest);                                                    \
        va_end(rest);                                                                           \
        return opened(at, path, flags, mode);                                                   \
    } while (0)

int open(const char *path, int flags, ...)
{
    OPENING(AT_FDCWD, path, flags);
}

int open64(const char *path, int flags, ...)
{
    OPENING(AT_FDCWD, path, flags);
}

int openat(int at, const char *path, int flags, ...)
{
    OPENING(at, path, flags);
}

int openat64(int at, const char *path, int flags, ...)
{
    OPENING(at, path, flags);
}

int creat(const char *path, mode_t mode)
{
    return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode)
{
    return creat(path, mode);
}

/* Compilers that check call these where no mode is given. */
int __open_2(const char *path, int flags)
{
    return opened(AT_FDCWD, path, flags, 0);
}

int __open64_2(const char *path, int flags)
{
    return opened(AT_FDCWD, path, flags, 0);
}

int __openat_2(int at, const char *path, int flags)
{
    return opened(at, path, flags, 0);
}

int __openat64_2(int at, const char *path, int flags)
{
    return opened(at, path, flags, 0);
}

int close(int fd)
{
    prepare();
    forget(fd);
    return REAL(close)(fd);
}

int fclose(FILE *file)
{
    prepare();
    forget(fileno(file));
    return REAL(fclose)(file);
}

int closedir(DIR *dir)
{
    prepare();
    forget(dirfd(dir));
    return REAL(closedir)(dir);
}

static int renamed(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    char old[PATH_MAX], new[PATH_MAX];
    prepare();
    int is_old = absolute(from_at, from, old), is_new = absolute(to_at, to, new);
    if (!is_old && !is_new)
        return REAL(renameat2)(from_at, from, to_at, to, flags);
    struct stat status;
    if (is_old != is_new || flags || lstat(old, &status) || S_ISDIR(status.st_mode))
        unknown("rename of a directory, with flags, or across the directory");
    pthread_mutex_lock(&lock);
    struct record r = { .kind = RENAME, .at = keep(new) };
    r.inode = lstat(old, &status) ? 0 : status.st_ino;
    uint64_t number = note(r, old, new, NULL);
    int result = REAL(renameat2)(from_at, from, to_at, to, flags);
    note_result(number, result);
    pthread_mutex_unlock(&lock);
    return result;
}

int rename(const char *from, const char *to)
{
    return renamed(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int renameat(int from_at, const char *from, int to_at, const char *to)
{
    return renamed(from_at, from, to_at, to, 0);
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    return renamed(from_at, from, to_at, to, flags);
}

static int removed(int at, const char *path, int flags)
{
    char full[PATH_MAX];
    prepare();
    if (!absolute(at, path, full))
        return REAL(unlinkat)(at, path, flags);
    pthread_mutex_lock(&lock);
    struct record r = { .kind = flags & AT_REMOVEDIR ? RMDIR : UNLINK };
    r.inode = flags & AT_REMOVEDIR ? 0 : keep(full);
    uint64_t number = note(r, full, NULL, NULL);
    int result = REAL(unlinkat)(at, path, flags);
    note_result(number, result);
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path)
{
    return removed(AT_FDCWD, path, 0);
}

int unlinkat(int at, const char *path, int flags)
{
    return removed(at, path, flags);
}

int rmdir(const char *path)
{
    return removed(AT_FDCWD, path, AT_REMOVEDIR);
}

int remove(const char *path)
{
    struct stat status;
    int is_directory = !lstat(path, &status) && S_ISDIR(status.st_mode);
    return removed(AT_FDCWD, path, is_directory ? AT_REMOVEDIR : 0);
}

int mkdirat(int at, const char *path, mode_t mode)
{
    char full[PATH_MAX];
    prepare();
    int is_ours = absolute(at, path, full);
    pthread_mutex_lock(&lock);
    int result = REAL(mkdirat)(at, path, mode);
    int saved = errno;
    if (result == 0 && is_ours)
        note((struct record){ .kind = MKDIR }, full, NULL, NULL);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int mkdir(const char *path, mode_t mode)
{
    return mkdirat(AT_FDCWD, path, mode);
}

/* A further name of a file: the name is new, the file is not. */
int linkat(int from_at, const char *from, int to_at, const char *to, int flags)
{
    char full[PATH_MAX];
    prepare();
    int is_ours = absolute(to_at, to, full);
    pthread_mutex_lock(&lock);
    int result = REAL(linkat)(from_at, from, to_at, to, flags);
    int saved = errno;
    struct stat status;
    if (result == 0 && is_ours && !lstat(full, &status))
        note((struct record){ .kind = CREATE, .inode = status.st_ino }, full, NULL, NULL);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int link(const char *from, const char *to)
{
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int symlinkat(const char *target, int at, const char *path)
{
    char full[PATH_MAX];
    prepare();
    if (absolute(at, path, full))
        unknown("symlink");
    return REAL(symlinkat)(target, at, path);
}

int symlink(const char *target, const char *path)
{
    return symlinkat(target, AT_FDCWD, path);
}

void *mmap(void *hint, size_t length, int protection, int flags, int fd, off_t at)
{
    prepare();
    int is_shared = (flags & MAP_TYPE) != MAP_PRIVATE;
    if (protection & PROT_WRITE && is_shared && state_of(fd) == FILE_BELOW)
        unknown("a mapping that writes");
    return REAL(mmap)(hint, length, protection, flags, fd, at);
}

void *mmap64(void *hint, size_t length, int protection, int flags, int fd, off64_t at)
{
    return mmap(hint, length, protection, flags, fd, at);
}

FILE *fopen(const char *path, const char *mode)
{
    char full[PATH_MAX];
    prepare();
    if (absolute(AT_FDCWD, path, full) && (mode[0] != 'r' || strchr(mode, '+')))
        unknown("fopen for writing");
    return REAL(fopen)(path, mode);
}

FILE *fopen64(const char *path, const char *mode)
{
    return fopen(path, mode);
}

FILE *fdopen(int fd, const char *mode)
{
    prepare();
    if (state_of(fd) == FILE_BELOW && (mode[0] != 'r' || strchr(mode, '+')))
        unknown("fdopen for writing");
    return REAL(fdopen)(fd, mode);
}

ssize_t copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t n, unsigned flags)
{
    prepare();
    if (state_of(out) == FILE_BELOW) {
        errno = EXDEV;
        return -1;
    }
    return REAL(copy_file_range)(in, in_at, out, out_at, n, flags);
}

ssize_t sendfile(int out, int in, off_t *at, size_t length)
{
    prepare();
    if (state_of(out) == FILE_BELOW) {
        errno = EINVAL;
        return -1;
    }
    return REAL(sendfile)(out, in, at, length);
}

ssize_t sendfile64(int out, int in, off64_t *at, size_t length)
{
    return sendfile(out, in, at, length);
}
