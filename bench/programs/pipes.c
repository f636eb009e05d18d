// Two processes that send one byte back and forth: wake-ups and context switches.
#include "programs.h"

#include <sys/wait.h>
#include <unistd.h>

enum { TIMES = 3000 };

static void answer(int from, int to)
{
    uint8_t byte;
    while (read(from, &byte, 1) == 1) {
        byte = byte * 5 + 1;
        if (write(to, &byte, 1) != 1)
            _exit(1);
    }
    _exit(0);
}

uint64_t work_pipes(void)
{
    int there[2], back[2];
    if (pipe(there) || pipe(back))
        fail("pipe");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        close(there[1]);
        close(back[0]);
        answer(there[0], back[1]);
    }
    close(there[0]);
    close(back[1]);
    uint64_t sum = 0;
    for (int i = 0; i < TIMES; i++) {
        uint8_t byte = i;
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            fail("pipe");
        sum = mix(sum, byte);
    }
    close(there[1]);
    close(back[0]);
    int status;
    if (waitpid(child, &status, 0) != child)
        fail("waitpid");
    return mix(sum, status);
}
