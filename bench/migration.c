// What a Linux guest does while it moves. `migration dirty MEBIBYTES` writes to every page of so much memory, over and over,
// and says "dirty ready" after the first time. `migration verify MEBIBYTES DISK ADDRESS PORT` does work whose result it
// knows, and checks it: memory, a disk (- for none), a TCP connection to `migration echo PORT` (- for none), and that the
// monotonic clock does not step back. It says "verify PASS LONGEST CLOCK" (the longest pause, and the time of day, in ms)
// now and then, or what is wrong.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, BLOCKS = 1024, SAY = 50 };

_Noreturn static void fail(const char *what)
{
    printf("verify failed: ");
    fflush(stdout);
    perror(what);
    exit(1);
}

_Noreturn static void wrong(const char *what, long pass, long place)
{
    printf("verify failed: %s, pass %ld, place %ld\n", what, pass, place);
    exit(1);
}

static int64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static uint64_t *memory(long pages)
{
    void *found = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (found == MAP_FAILED)
        fail("mmap");
    return found;
}

static void dirty(long pages)
{
    uint64_t *words = memory(pages);
    for (uint64_t pass = 1;; pass++) {
        for (long page = 0; page < pages; page++)
            words[page * WORDS] = pass;
        if (pass == 1) {
            puts("dirty ready");
            fflush(stdout);
        }
    }
}

static uint64_t word(uint64_t pass, uint64_t place)
{
    return (pass * 0x9e3779b97f4a7c15ull ^ place) * 0xff51afd7ed558ccdull;
}

static void check_memory(uint64_t *words, long pages, uint64_t pass)
{
    for (long page = 0; page < pages; page++) {
        for (int at = 0; at < WORDS; at += 73) {
            uint64_t *here = words + page * WORDS + at;
            if (*here != (pass == 1 ? 0 : word(pass - 1, page + at)))
                wrong("memory", pass, page);
            *here = word(pass, page + at);
        }
    }
}

static void check_disk(int disk, uint64_t *block, uint64_t pass)
{
    if (pass > BLOCKS) {
        if (pread(disk, block, PAGE, pass % BLOCKS * PAGE) != PAGE)
            fail("read");
        for (int at = 0; at < WORDS; at++)
            if (block[at] != word(pass - BLOCKS, at))
                wrong("disk", pass, at);
    }
    for (int at = 0; at < WORDS; at++)
        block[at] = word(pass, at);
    if (pwrite(disk, block, PAGE, pass % BLOCKS * PAGE) != PAGE)
        fail("write");
    memset(block, 0, PAGE);
    if (pread(disk, block, PAGE, pass % BLOCKS * PAGE) != PAGE)
        fail("read");
    for (int at = 0; at < WORDS; at++)
        if (block[at] != word(pass, at))
            wrong("disk, just written", pass, at);
}

static void check_stream(int peer, uint64_t pass)
{
    static uint64_t sent[WORDS / 2], got[WORDS / 2];
    for (int at = 0; at < WORDS / 2; at++)
        sent[at] = word(pass, ~at);
    if (write(peer, sent, sizeof sent) != sizeof sent)
        fail("write to the peer");
    for (size_t done = 0; done < sizeof got;) {
        ssize_t count = read(peer, (char *)got + done, sizeof got - done);
        if (count <= 0)
            fail("read from the peer");
        done += count;
    }
    if (memcmp(sent, got, sizeof got))
        wrong("stream", pass, 0);
}

static int connection(const char *address, int port)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd, one = 1;
    inet_pton(AF_INET, address, &there.sin_addr);
    for (int tries = 0;; tries++) {
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (!connect(fd, (struct sockaddr *)&there, sizeof there))
            break;
        close(fd);
        if (tries == 50)
            fail("connect");
        usleep(100000);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void verify(long pages, const char *path, const char *address, int port)
{
    uint64_t *words = memory(pages), *block = memory(1);
    int disk = *path == '-' ? -1 : open(path, O_RDWR | O_DIRECT);
    int peer = *address == '-' ? -1 : connection(address, port);
    int64_t before = now(CLOCK_MONOTONIC), longest = 0;
    if (*path != '-' && disk < 0)
        fail(path);
    for (uint64_t pass = 1;; pass++) {
        check_memory(words, pages, pass);
        if (disk >= 0)
            check_disk(disk, block, pass);
        if (peer >= 0)
            check_stream(peer, pass);
        int64_t time = now(CLOCK_MONOTONIC);
        if (time < before)
            wrong("the clock stepped back", pass, before - time);
        if (time - before > longest)
            longest = time - before;
        before = time;
        if (pass % SAY == 0) {
            printf("verify %ld %ld %ld\n", (long)pass, (long)(longest / 1000000),
                   (long)(now(CLOCK_REALTIME) / 1000000));
            fflush(stdout);
            longest = 0;
        }
    }
}

static void echo(int port)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    static char buffer[65536];
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4))
        fail("listen");
    puts("echo ready");
    fflush(stdout);
    for (;;) {
        int peer = accept(listener, NULL, NULL);
        setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        for (ssize_t count; (count = read(peer, buffer, sizeof buffer)) > 0;)
            for (ssize_t done = 0; done < count;) {
                ssize_t part = write(peer, buffer + done, count - done);
                if (part <= 0)
                    break;
                done += part;
            }
        close(peer);
    }
}

int main(int count, char **words)
{
    if (count == 3 && !strcmp(words[1], "dirty"))
        dirty(atol(words[2]) * (1048576 / PAGE));
    if (count == 6 && !strcmp(words[1], "verify"))
        verify(atol(words[2]) * (1048576 / PAGE), words[3], words[4], atoi(words[5]));
    if (count == 3 && !strcmp(words[1], "echo"))
        echo(atoi(words[2]));
    fputs("usage: migration dirty|verify|echo ...\n", stderr);
    return 2;
}
