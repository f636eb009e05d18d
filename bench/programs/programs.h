// The programs that bench/programs.py times. Each is one function that does a fixed piece of work; what it returns
// depends on every step, so that a wrong step shows and none can be left out by the compiler.
#pragma once
#include <stdint.h>

#define EACH_PROGRAM(DO)                                                                                              \
    DO(sieve) DO(fib) DO(sha256) DO(sort) DO(bytecode) DO(calls) DO(chase) DO(lz) DO(strings) DO(core)                 \
    DO(matmul) DO(nbody) DO(fft) DO(syscalls) DO(pipes) DO(forks) DO(faults)

#define DECLARE(name) uint64_t work_##name(void);
EACH_PROGRAM(DECLARE)
#undef DECLARE

// The next of a fixed sequence of random numbers (Marsaglia, "Xorshift RNGs"); *state must not be 0.
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

// A checksum with one more value in it; the order of the values counts.
static inline uint64_t mix(uint64_t sum, uint64_t value)
{
    sum = (sum ^ value) * 0x9e3779b97f4a7c15u;
    return sum ^ sum >> 29;
}

// Says what failed (errno) and ends the process.
_Noreturn void fail(const char *what);
