// TCP in a Linux guest. `net ADDRESS PORT BYTES ROUNDS` asks a server to take BYTES, to give BYTES, and to send back a
// byte ROUNDS times, and prints for each how many it was and how many nanoseconds of the guest's clock it took.
// `net PORT` is such a server. A request is 12 bytes: what ('t', 'g', 'r'), padding, and a count of 8 bytes, little
// endian; the server says that it has taken everything with one byte.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 256 << 10 };

static char buffer[CHUNK];

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

static void give(int fd, uint64_t count)
{
    while (count) {
        ssize_t done = write(fd, buffer, count < CHUNK ? count : CHUNK);
        if (done <= 0)
            fail("write");
        count -= done;
    }
}

static void take(int fd, uint64_t count)
{
    while (count) {
        ssize_t done = read(fd, buffer, count < CHUNK ? count : CHUNK);
        if (done <= 0)
            fail("read");
        count -= done;
    }
}

static int connection(const char *address, int port)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd, one = 1;
    if (inet_pton(AF_INET, address, &there.sin_addr) != 1)
        fail("address");
    for (int tries = 0;; tries++) {
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (!connect(fd, (struct sockaddr *)&there, sizeof there))
            break;
        if (tries == 100)
            fail("connect");
        close(fd);
        usleep(100000);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void request(int fd, char what, uint64_t count)
{
    char text[12] = {what};
    memcpy(text + 4, &count, sizeof count);
    if (write(fd, text, sizeof text) != sizeof text)
        fail("write");
}

static void client(const char *address, int port, uint64_t bytes, uint64_t rounds)
{
    printf("net begin\n");
    for (const char *job = "tgr"; *job; job++) {
        int fd = connection(address, port);
        uint64_t count = *job == 'r' ? rounds : bytes;
        int64_t start = now();
        request(fd, *job, count);
        if (*job == 't') {
            give(fd, count);
            take(fd, 1);
        } else if (*job == 'g') {
            take(fd, count);
        } else {
            for (uint64_t i = 0; i < count; i++) {
                give(fd, 1);
                take(fd, 1);
            }
        }
        printf("net %c %llu %lld\n", *job, (unsigned long long)count, (long long)(now() - start));
        close(fd);
    }
    printf("net end\n");
}

static void server(int port)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4))
        fail("listen");
    printf("net listens\n");
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        char text[12];
        uint64_t count;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (read(fd, text, sizeof text) == sizeof text) {
            memcpy(&count, text + 4, sizeof count);
            if (text[0] == 't') {
                take(fd, count);
                give(fd, 1);
            } else if (text[0] == 'g') {
                give(fd, count);
            } else {
                for (; count; count--) {
                    take(fd, 1);
                    give(fd, 1);
                }
            }
        }
        close(fd);
    }
}

int main(int argc, char **argv)
{
    if (argc == 2)
        server(atoi(argv[1]));
    else if (argc == 5)
        client(argv[1], atoi(argv[2]), strtoull(argv[3], NULL, 0), strtoull(argv[4], NULL, 0));
    return argc != 5;
}
