// A checked TCP stream in a Linux guest. `stream ADDRESS PORT SEED BYTES` sends BYTES of a sequence that SEED begins to a
// server that sends back what it gets, while it compares what comes, and says `stream SEED BYTES`, or where it differs.
// `stream PORT` is such a server, of one connection after the other.
#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK = 64 << 10, LIMIT_MS = 60000 };

static unsigned char out[CHUNK], in[CHUNK];

_Noreturn static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static unsigned char next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state >> 24;
}

static int serve(int port)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4))
        fail("listen");
    puts("stream listens");
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, 0, 0);
        ssize_t count;
        while ((count = read(fd, in, CHUNK)) > 0)
            for (ssize_t at = 0, done; at < count; at += done)
                if ((done = write(fd, in + at, count - at)) <= 0)
                    break;
        close(fd);
    }
}

int main(int argc, char **argv)
{
    if (argc == 2)
        return serve(atoi(argv[1]));
    if (argc != 5)
        return 2;
    uint64_t seed = strtoull(argv[3], 0, 0), bytes = strtoull(argv[4], 0, 0);
    uint64_t sending = seed * 0x9e3779b97f4a7c15 + 1, receiving = sending, sent = 0, received = 0, begin = 0, end = 0;
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (inet_pton(AF_INET, argv[1], &there.sin_addr) != 1 || connect(fd, (struct sockaddr *)&there, sizeof there))
        fail("connect");
    while (received < bytes) {
        struct pollfd ready = {.fd = fd, .events = POLLIN | (sent < bytes ? POLLOUT : 0)};
        if (poll(&ready, 1, LIMIT_MS) != 1)
            fail("poll");
        if (ready.revents & POLLOUT) {
            if (begin == end)
                for (begin = 0, end = 0; end < CHUNK && sent + end < bytes; end++)
                    out[end] = next(&sending);
            ssize_t done = send(fd, out + begin, end - begin, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (done > 0)
                begin += done, sent += done;
        }
        if (ready.revents & (POLLIN | POLLERR | POLLHUP)) {
            ssize_t count = recv(fd, in, CHUNK, 0);
            if (count <= 0)
                fail("recv");
            for (ssize_t at = 0; at < count; at++)
                if (in[at] != next(&receiving)) {
                    printf("stream %s differs at %llu\n", argv[3], (unsigned long long)(received + at));
                    return 1;
                }
            received += count;
        }
    }
    printf("stream %s %s\n", argv[3], argv[4]);
    return 0;
}
