// Small functions called through a table, in an order that is hard to foresee.
#include "programs.h"

enum { CALLS = 10000000, KINDS = 16, ORDER = 4096 };

typedef uint64_t function(uint64_t);

#define FUNCTION(name, expression)                                                                                    \
    static uint64_t name(uint64_t x)                                                                                  \
    {                                                                                                                 \
        return expression;                                                                                            \
    }
FUNCTION(f0, x + 1)
FUNCTION(f1, x ^ x >> 7)
FUNCTION(f2, x * 3)
FUNCTION(f3, x - (x >> 3))
FUNCTION(f4, x << 1 | x >> 63)
FUNCTION(f5, ~x)
FUNCTION(f6, x + 0x12345)
FUNCTION(f7, x ^ 0x5555)
FUNCTION(f8, x & 1 ? x + 7 : x - 7)
FUNCTION(f9, x * 5 + 1)
FUNCTION(f10, x ^ x << 9)
FUNCTION(f11, x > 1000 ? x >> 1 : x + 999)
FUNCTION(f12, x | 0x80)
FUNCTION(f13, x + (x << 2))
FUNCTION(f14, -x)
FUNCTION(f15, x ^ x >> 31)

static function *const table[KINDS] = {f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11, f12, f13, f14, f15};

uint64_t work_calls(void)
{
    static function *order[ORDER];
    uint64_t random = 1, x = 1;
    for (int i = 0; i < ORDER; i++)
        order[i] = table[next_random(&random) % KINDS];
    for (int i = 0; i < CALLS; i++)
        x = order[i % ORDER](x);
    return x;
}
