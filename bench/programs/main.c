// programs PASSES NAME...: do each program PASSES times, in a process of its own, and print for every pass
//     program NAME PASS NANOSECONDS CHECKSUM
// between `programs begin NANOSECONDS` and `programs end NANOSECONDS`, by which the reader checks this clock.
#include "programs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const struct program {
    const char *name;
    uint64_t (*work)(void);
} programs[] = {
#define ENTRY(name) {#name, work_##name},
    EACH_PROGRAM(ENTRY)
#undef ENTRY
};

void fail(const char *what)
{
    perror(what);
    exit(1);
}

static unsigned long long now(void)
{
    struct timespec time;
    if (clock_gettime(CLOCK_MONOTONIC, &time))
        fail("clock_gettime");
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static const struct program *find(const char *name)
{
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        if (!strcmp(programs[i].name, name))
            return &programs[i];
    fprintf(stderr, "programs: no program is called %s\n", name);
    exit(2);
}

static void repeat(const struct program *program, int passes)
{
    for (int pass = 0; pass < passes; pass++) {
        unsigned long long began = now();
        unsigned long long sum = program->work();
        printf("program %s %d %llu %016llx\n", program->name, pass, now() - began, sum);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    int failed = 0;
    printf("programs begin %llu\n", now());
    for (int i = 2; i < argc; i++) {
        const struct program *program = find(argv[i]);
        fflush(stdout);
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (!child) {
            repeat(program, atoi(argv[1]));
            return 0;
        }
        int status;
        if (waitpid(child, &status, 0) != child || status) {
            printf("programs: %s failed\n", argv[i]);
            failed = 1;
        }
    }
    printf("programs end %llu\n", now());
    return failed;
}
