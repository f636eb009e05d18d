// A linked list of 8 MiB in random order: each load waits for the one before it, and most miss caches and TLB.
#include "programs.h"

enum { NODES = 128 << 10, TIMES = 20 };

static struct node {
    struct node *next;
    uint64_t value;
    uint64_t unused[6];  // a line of the host's cache each
} nodes[NODES];

uint64_t work_chase(void)
{
    uint64_t random = 1, sum = 0;
    for (uint32_t i = 0; i < NODES; i++)
        nodes[i] = (struct node){&nodes[i], i, {0}};
    // One cycle through all of them (Sattolo).
    for (uint32_t i = NODES - 1; i; i--) {
        uint32_t other = next_random(&random) % i;
        struct node *next = nodes[i].next;
        nodes[i].next = nodes[other].next;
        nodes[other].next = next;
    }
    const struct node *at = nodes;
    for (int i = 0; i < NODES * TIMES; i++) {
        sum = sum * 3 + at->value;
        at = at->next;
    }
    return sum;
}
