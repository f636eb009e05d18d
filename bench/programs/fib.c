// Fibonacci numbers by the definition: calls and returns.
#include "programs.h"

enum { N = 34 };

__attribute__((noinline)) static uint64_t fib(unsigned n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

uint64_t work_fib(void)
{
    volatile unsigned n = N;
    return fib(n);
}
