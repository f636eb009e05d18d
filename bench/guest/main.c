// In S-mode under Sv39: runs every loop three times and prints `name work ticks` for each, then powers off.
// Ticks are of the time CSR, 10 MHz on this board; the work is instructions, or accesses for the two device loops.
typedef unsigned long u64;

extern void loop_alu(u64), loop_memory(u64), loop_branch(u64), loop_call(u64), loop_double(u64);
extern void loop_shadow(u64), loop_sync(u64);

struct loop {
    const char *name;
    void (*code)(u64 rounds);
    u64 rounds;
    u64 work; // of a round
};

static volatile unsigned char *const uart = (volatile unsigned char *)0x10000000;
static volatile unsigned *const test = (volatile unsigned *)0x100000;

static u64 now(void)
{
    u64 ticks;
    __asm__ volatile("rdtime %0" : "=r"(ticks));
    return ticks;
}

static void say(const char *text)
{
    for (; *text; text++)
        *uart = *text;
}

static void say_number(u64 number)
{
    char digits[21];
    char *at = digits + 20;
    *at = 0;
    do
        *--at = '0' + number % 10;
    while (number /= 10);
    say(at);
}

void main(void)
{
    const struct loop loops[] = {
        {"alu", loop_alu, 30000000, 12},      {"memory", loop_memory, 30000000, 8},
        {"branch", loop_branch, 20000000, 12}, {"call", loop_call, 12000000, 6},
        {"double", loop_double, 10000000, 6}, {"shadow", loop_shadow, 100000, 1},
        {"sync", loop_sync, 3000, 1},
    };
    for (int pass = 0; pass < 3; pass++) {
        for (const struct loop *each = loops; each < loops + sizeof loops / sizeof *loops; each++) {
            u64 start = now();
            each->code(each->rounds);
            u64 ticks = now() - start;
            say(each->name);
            say(" ");
            say_number(each->rounds * each->work);
            say(" ");
            say_number(ticks);
            say("\n");
        }
    }
    *test = 0x5555;
    for (;;)
        ;
}
