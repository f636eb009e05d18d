// A disk, read and written in a Linux guest: block DEVICE. Prints, for each job, how many bytes it moved and in how many
// nanoseconds of the guest's clock. Everything but "buffered" goes past the guest's page cache (O_DIRECT).
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LARGE = 128 << 10, SMALL = 4 << 10, SEQUENTIAL = 256 << 20, RANDOM = 4000, DEEP = 32, WARM = 16 << 20 };

static char *buffer;
static uint64_t blocks;

_Noreturn static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static void move(int fd, int write, uint64_t offset, size_t size)
{
    ssize_t count = write ? pwrite(fd, buffer, size, offset) : pread(fd, buffer, size, offset);
    if (count != (ssize_t)size)
        fail(write ? "pwrite" : "pread");
}

static int64_t sequential(int fd, int write, uint64_t bytes)
{
    for (uint64_t offset = 0; offset < bytes; offset += LARGE)
        move(fd, write, offset, LARGE);
    return bytes;
}

static int64_t scattered(int fd, int write, uint64_t random, int times)
{
    for (int i = 0; i < times; i++) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        move(fd, write, (random >> 20) % blocks * SMALL, SMALL);
    }
    return (int64_t)times * SMALL;
}

static int64_t deep(int fd, int write)
{
    for (int i = 0; i < DEEP; i++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (!child) {
            scattered(fd, write, i + 1, RANDOM / DEEP);
            _exit(0);
        }
    }
    for (int status; wait(&status) > 0;)
        if (status)
            exit(1);
    return (int64_t)(RANDOM / DEEP) * DEEP * SMALL;
}

static int64_t job(int number, int fd)
{
    switch (number) {
    case 0: return sequential(fd, 0, SEQUENTIAL);
    case 1: return sequential(fd, 1, SEQUENTIAL);
    case 2: return scattered(fd, 0, 1, RANDOM);
    case 3: return scattered(fd, 1, 2, RANDOM);
    case 4: return deep(fd, 0);
    default: return deep(fd, 1);
    }
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"read", "write", "random-read", "random-write", "deep-read", "deep-write"};
    int fd = open(argc > 1 ? argv[1] : "/dev/vda", O_RDWR | O_DIRECT);
    int buffered = open(argc > 1 ? argv[1] : "/dev/vda", O_RDONLY);
    uint64_t size = 0;
    if (fd < 0 || buffered < 0 || ioctl(fd, BLKGETSIZE64, &size))
        fail("the disk");
    blocks = size / SMALL;
    buffer = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED)
        fail("mmap");
    printf("block begin\n");
    for (int i = 0; i < 6; i++) {
        sequential(fd, i & 1, WARM);
        int64_t start = now(), bytes = job(i, fd);
        printf("block %s %lld %lld\n", names[i], (long long)bytes, (long long)(now() - start));
    }
    if (ioctl(fd, BLKFLSBUF))
        fail("BLKFLSBUF");
    int64_t start = now(), bytes = sequential(buffered, 0, SEQUENTIAL);
    printf("block buffered %lld %lld\nblock end\n", (long long)bytes, (long long)(now() - start));
    return 0;
}
