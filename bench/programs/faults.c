// Memory mapped, touched page by page, and given back: page faults.
#define _GNU_SOURCE
#include "programs.h"

#include <sys/mman.h>

enum { PAGES = 1024, PAGE = 4096, TIMES = 16 };

uint64_t work_faults(void)
{
    uint64_t sum = 0;
    for (int time = 0; time < TIMES; time++) {
        uint8_t *memory = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            fail("mmap");
        madvise(memory, PAGES * PAGE, MADV_NOHUGEPAGE);  // a fault for each page; a kernel without huge pages refuses
        for (int page = 0; page < PAGES; page++)
            memory[page * PAGE + time] = page;
        for (int page = 0; page < PAGES; page += 16)
            sum = mix(sum, memory[page * PAGE + time]);
        if (munmap(memory, PAGES * PAGE))
            fail("munmap");
    }
    return sum;
}
