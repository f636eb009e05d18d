// A process of 1 MiB that forks a child, which writes to some pages and ends: copies of page tables and of pages.
#include "programs.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BYTES = 1 << 20, PAGE = 4096, TIMES = 120, WRITTEN = 16 };

static volatile uint8_t memory[BYTES];

uint64_t work_forks(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < BYTES; i += PAGE)
        memory[i] = i / PAGE;
    for (int i = 0; i < TIMES; i++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (!child) {
            for (int page = 0; page < WRITTEN; page++)
                memory[(page * 13 + i) % (BYTES / PAGE) * PAGE] += i;
            _exit(memory[i * PAGE] & 0x7f);
        }
        int status;
        if (waitpid(child, &status, 0) != child)
            fail("waitpid");
        sum = mix(sum, status);
    }
    return sum;
}
