// Primes by Eratosthenes' sieve: byte stores with growing strides.
#include "programs.h"

#include <string.h>

enum { LIMIT = 1000000, TIMES = 50 };

static uint8_t composite[LIMIT];

uint64_t work_sieve(void)
{
    uint64_t sum = 0;
    for (int time = 0; time < TIMES; time++) {
        memset(composite, 0, sizeof composite);
        for (uint32_t n = 2 + time % 2; n < LIMIT; n++) {
            if (composite[n])
                continue;
            sum = mix(sum, n);
            for (uint64_t multiple = (uint64_t)n * n; multiple < LIMIT; multiple += n)
                composite[multiple] = 1;
        }
    }
    return sum;
}
