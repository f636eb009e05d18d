// programs PASSES JOB...: do each job PASSES times, in a process of its own, and print for every pass
//     program JOB PASS NANOSECONDS CHECKSUM
// A job is a program's name, or NAME:INSTANCES for so many processes that do it at the same time: the pass then takes
// from the start of the first to the end of the last, and all of them must compute the same. The lines are
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

static const struct program *find(const char *job)
{
    size_t length = strcspn(job, ":");
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        if (strlen(programs[i].name) == length && !strncmp(programs[i].name, job, length))
            return &programs[i];
    fprintf(stderr, "programs: no program is called %.*s\n", (int)length, job);
    exit(2);
}

static uint64_t together(const struct program *program, int instances)
{
    int sums[2];
    if (pipe(sums))
        fail("pipe");
    for (int i = 0; i < instances; i++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (!child) {
            uint64_t sum = program->work();
            _exit(write(sums[1], &sum, sizeof sum) != sizeof sum);
        }
    }
    uint64_t first = 0;
    for (int i = 0; i < instances; i++) {
        int status;
        uint64_t sum;
        if (wait(&status) < 0 || status || read(sums[0], &sum, sizeof sum) != sizeof sum)
            fail("an instance");
        if (i && sum != first) {
            fprintf(stderr, "programs: instances of %s computed %016llx and %016llx\n", program->name,
                    (unsigned long long)first, (unsigned long long)sum);
            exit(1);
        }
        first = sum;
    }
    close(sums[0]);
    close(sums[1]);
    return first;
}

static void repeat(const char *job, int passes)
{
    const struct program *program = find(job);
    const char *colon = strchr(job, ':');
    for (int pass = 0; pass < passes; pass++) {
        unsigned long long began = now();
        unsigned long long sum = colon ? together(program, atoi(colon + 1)) : program->work();
        printf("program %s %d %llu %016llx\n", job, pass, now() - began, sum);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    int failed = 0;
    printf("programs begin %llu\n", now());
    for (int i = 2; i < argc; i++) {
        fflush(stdout);
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (!child) {
            repeat(argv[i], atoi(argv[1]));
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
