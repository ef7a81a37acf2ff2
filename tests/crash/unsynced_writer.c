/* Does what the lines of its standard input say, in its working directory, and kills itself at
 * their end. For the tests of unsynced.c.
 *
 *   write F TEXT     appends, with write        vector F TEXT   appends, with writev
 *   put F AT TEXT    pwrite64                   cut F SIZE      ftruncate
 *   grow F SIZE      posix_fallocate            again F         opens with O_TRUNC
 *   sync F           fdatasync                  syncdir D       fsync of a directory
 *   rename A B       unlink A                   mkdir D         mapped F   a mapping that writes
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static void check(int is_well, const char *line)
{
    if (!is_well) {
        perror(line);
        exit(1);
    }
}

static int run(const char *verb, const char *a, const char *b, const char *c)
{
    ssize_t length = strlen(b);
    struct iovec halves[] = { { (void *)b, length / 2 },
                              { (void *)(b + length / 2), length - length / 2 } };
    if (!strcmp(verb, "rename"))
        return rename(a, b) == 0;
    if (!strcmp(verb, "unlink"))
        return unlink(a) == 0;
    if (!strcmp(verb, "mkdir"))
        return mkdir(a, 0777) == 0;
    int flags = !strcmp(verb, "syncdir") ? O_RDONLY | O_DIRECTORY : O_RDWR | O_CREAT;
    if (!strcmp(verb, "again"))
        flags |= O_TRUNC;
    int fd = open64(a, flags, 0666), done = fd >= 0;
    if (!strcmp(verb, "write"))
        done = lseek(fd, 0, SEEK_END) >= 0 && write(fd, b, length) == length;
    if (!strcmp(verb, "vector"))
        done = lseek(fd, 0, SEEK_END) >= 0 && writev(fd, halves, 2) == length;
    if (!strcmp(verb, "put"))
        done = pwrite64(fd, c, strlen(c), atoi(b)) == (ssize_t)strlen(c);
    if (!strcmp(verb, "cut"))
        done = ftruncate64(fd, atoi(b)) == 0;
    if (!strcmp(verb, "grow"))
        done = posix_fallocate64(fd, 0, atoi(b)) == 0;
    if (!strcmp(verb, "sync"))
        done = fdatasync(fd) == 0;
    if (!strcmp(verb, "syncdir"))
        done = fsync(fd) == 0;
    if (!strcmp(verb, "mapped"))
        done = mmap64(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED;
    return done && close(fd) == 0;
}

int main(void)
{
    static char line[65536], whole[65536];
    while (fgets(line, sizeof line, stdin)) {
        memcpy(whole, line, sizeof line);
        char *verb = strtok(line, " \n"), *a = strtok(NULL, " \n"), *b = strtok(NULL, " \n");
        char *c = strtok(NULL, " \n");
        check(verb && a && run(verb, a, b ? b : "", c ? c : ""), whole);
    }
    kill(getpid(), SIGKILL);
    return 1;
}
