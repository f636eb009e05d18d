// The C library's qsort: a callback for each comparison.
#include "programs.h"

#include <stdlib.h>

enum { COUNT = 100000, TIMES = 5 };

static struct record {
    uint32_t key, value;
} records[COUNT];

static int compare(const void *left, const void *right)
{
    const struct record *a = left, *b = right;
    if (a->key != b->key)
        return a->key < b->key ? -1 : 1;
    return (a->value > b->value) - (a->value < b->value);
}

uint64_t work_sort(void)
{
    uint64_t random = 1, sum = 0;
    for (int time = 0; time < TIMES; time++) {
        for (uint32_t i = 0; i < COUNT; i++)
            records[i] = (struct record){next_random(&random) % COUNT, i};
        qsort(records, COUNT, sizeof *records, compare);
        for (int i = 0; i < COUNT; i++)
            sum = mix(sum, (uint64_t)records[i].key << 32 | records[i].value);
    }
    return sum;
}
