// jit PASSES JOB...: what compilers in the guest do, PASSES times each, and print for every pass
//     program JOB PASS NANOSECONDS CHECKSUM
// A job is NAME:ROUNDS:SPINNERS: so often it does it in a pass, and so many threads of the process spin meanwhile, each
// on a hart of its own. The lines are between `programs begin NANOSECONDS` and `programs end NANOSECONDS`.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    PAGE = 4096,
    MOST_SPINNERS = 3,
    FLUSH_ICACHE = 259,
    MEMBARRIER = 283,
    EXPEDITED = 8, REGISTER_EXPEDITED = 16,
    RET = 0x00008067,
};

static uint32_t *code;  // some pages that are written and run
static atomic_int ending;
static _Atomic uint64_t turns[MOST_SPINNERS];

static void fail(const char *what)
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

static void fence_i(void) { __asm__ volatile("fence.i" ::: "memory"); }

static void flush(void)  // the instruction caches of all harts that the process runs on
{
    if (syscall(FLUSH_ICACHE, 0, 0, 0))
        fail("riscv_flush_icache");
}

static uint32_t li(unsigned reg, int value) { return (uint32_t)value << 20 | reg << 7 | 0x13; }
static uint32_t addi(unsigned reg, int value) { return (uint32_t)value << 20 | reg << 15 | reg << 7 | 0x13; }
static uint64_t call(const uint32_t *function, uint64_t x) { return ((uint64_t (*)(uint64_t))function)(x); }

static uint64_t work_fence(int rounds)  // FENCE.I, and nothing was written
{
    for (int i = 0; i < rounds; i++)
        fence_i();
    return 0;
}

static uint64_t rewrite(int rounds, int size, void (*make_visible)(void))
{
    uint64_t sum = 0;
    for (int i = 0; i < rounds; i++) {
        for (int j = 0; j < size; j++)
            code[j] = addi(10, (i + j) & 1023);
        code[size] = RET;
        make_visible();
        sum += call(code, i);
    }
    return sum;
}

static uint64_t work_rewrite(int rounds) { return rewrite(rounds, 4, fence_i); }  // the same function again and again
static uint64_t work_large(int rounds) { return rewrite(rounds, 1000, fence_i); }  // nearly a page
static uint64_t work_rewrite_all(int rounds) { return rewrite(rounds, 4, flush); }  // for all harts

static uint64_t work_flush(int rounds)
{
    for (int i = 0; i < rounds; i++)
        flush();
    return 0;
}

static uint64_t work_mprotect(int rounds)
{
    uint64_t sum = 0;
    for (int i = 0; i < rounds; i++) {
        if (mprotect(code, PAGE, PROT_READ | PROT_WRITE))
            fail("mprotect");
        code[0] = li(10, i & 1023);
        code[1] = RET;
        if (mprotect(code, PAGE, PROT_READ | PROT_EXEC))
            fail("mprotect");
        fence_i();
        sum += call(code, 0);
    }
    if (mprotect(code, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC))
        fail("mprotect");
    return sum;
}

static uint64_t work_membarrier(int rounds)
{
    if (syscall(MEMBARRIER, REGISTER_EXPEDITED, 0, 0))
        fail("membarrier");
    for (int i = 0; i < rounds; i++)
        if (syscall(MEMBARRIER, EXPEDITED, 0, 0))
            fail("membarrier");
    return 0;
}

// A small compiler: functions of 40 instructions and a loop, 20 to a page, each written beside the others while they are
// run; the oldest make room for new ones.
static uint64_t work_compiler(int rounds)
{
    enum { FUNCTIONS = 160, SIZE = 50 };
    uint64_t sum = 0;
    for (int round = 0; round < rounds; round++) {
        uint32_t *at = code + PAGE / 4 + round % FUNCTIONS * SIZE, *place = at;
        *place++ = li(11, 20);
        uint32_t *loop = place;
        for (int i = 0; i < 40; i++)
            *place++ = addi(10, (round * 7 + i) & 1023);
        *place++ = addi(11, -1);
        int back = (int)((char *)loop - (char *)place);  // bnez a1, loop
        *place++ = 0x63 | 1 << 12 | 11 << 15 | (back >> 11 & 1) << 7 | (back >> 1 & 15) << 8 | (back >> 5 & 63) << 25
            | (uint32_t)(back >> 12 & 1) << 31;
        *place++ = RET;
        fence_i();
        for (int i = 0; i < 20; i++)
            sum += call(at, i);
        if (round >= FUNCTIONS)  // an older one, of any page
            sum += call(code + PAGE / 4 + (round * 31 % FUNCTIONS) * SIZE, round);
    }
    return sum;
}

static uint64_t work_beside(int rounds)  // data in the page of the code that uses it
{
    uint64_t *count = (uint64_t *)(code + 512), sum = 0;
    code[0] = 0x00053583;  // ld a1, 0(a0)
    code[1] = addi(11, 1);
    code[2] = 0x00b53023;  // sd a1, 0(a0)
    code[3] = 0x00058513;  // mv a0, a1
    code[4] = RET;
    fence_i();
    *count = 0;
    for (int i = 0; i < rounds; i++)
        sum += call(code, (uint64_t)count);
    return sum;
}

static const struct job {
    const char *name;
    uint64_t (*work)(int rounds);
} jobs[] = {
    {"fence", work_fence}, {"rewrite", work_rewrite}, {"large", work_large}, {"rewrite_all", work_rewrite_all},
    {"flush", work_flush}, {"mprotect", work_mprotect}, {"membarrier", work_membarrier},
    {"compiler", work_compiler}, {"beside", work_beside},
};

static void stay_on(unsigned hart)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(hart, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        fail("sched_setaffinity");
}

static void *spin(void *number)
{
    stay_on(1 + (uintptr_t)number);
    while (!atomic_load_explicit(&ending, memory_order_relaxed))
        atomic_fetch_add_explicit(&turns[(uintptr_t)number], 1, memory_order_relaxed);
    return NULL;
}

static void repeat(const char *name, int passes)
{
    size_t length = strcspn(name, ":");
    int rounds, spinners, end = 0;
    const struct job *job = NULL;
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++)
        if (strlen(jobs[i].name) == length && !strncmp(jobs[i].name, name, length))
            job = &jobs[i];
    sscanf(name + length, ":%d:%d%n", &rounds, &spinners, &end);
    if (!job || !end || name[length + end] || rounds < 0 || spinners < 0 || spinners > MOST_SPINNERS) {
        fprintf(stderr, "jit: expected NAME:ROUNDS:SPINNERS, got %s\n", name);
        exit(2);
    }
    stay_on(0);
    pthread_t threads[MOST_SPINNERS];
    atomic_store(&ending, 0);
    for (int i = 0; i < spinners; i++) {
        atomic_store(&turns[i], 0);
        if (pthread_create(&threads[i], NULL, spin, (void *)(uintptr_t)i))
            fail("pthread_create");
    }
    for (int i = 0; i < spinners; i++)
        while (!atomic_load(&turns[i]))
            usleep(1000);
    for (int pass = 0; pass < passes; pass++) {
        unsigned long long began = now();
        uint64_t sum = job->work(rounds);
        printf("program %s %d %llu %016llx\n", name, pass, now() - began, (unsigned long long)sum);
        fflush(stdout);
    }
    atomic_store(&ending, 1);
    for (int i = 0; i < spinners; i++)
        if (pthread_join(threads[i], NULL))
            fail("pthread_join");
}

int main(int argc, char **argv)
{
    code = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (argc < 2 || code == MAP_FAILED)
        fail("mmap");
    printf("programs begin %llu\n", now());
    for (int i = 2; i < argc; i++)
        repeat(argv[i], atoi(argv[1]));
    printf("programs end %llu\n", now());
    return 0;
}
