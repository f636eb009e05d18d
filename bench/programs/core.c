// The mix that small embedded benchmarks ask of a core: a list that is searched, turned round and sorted, products of
// matrices of integers, a state machine that reads numbers, and a CRC of what came out.
#include "programs.h"

#include <stddef.h>

enum { TIMES = 10000, ITEMS = 200, SIZE = 16, CHARACTERS = 600 };

static struct item {
    struct item *next;
    int16_t key, value;
} items[ITEMS];
static int16_t left[SIZE][SIZE], right[SIZE][SIZE];
static int32_t product[SIZE][SIZE];
static char input[CHARACTERS + 1];

// CRC-16 with the polynomial x^16 + x^15 + x^2 + 1, a bit at a time.
static uint16_t crc(uint16_t sum, uint32_t value)
{
    for (int bit = 0; bit < 32; bit++, value >>= 1) {
        int carry = (sum ^ value) & 1;
        sum >>= 1;
        if (carry)
            sum ^= 0xa001;
    }
    return sum;
}

static struct item *reverse(struct item *list)
{
    struct item *done = NULL;
    while (list) {
        struct item *next = list->next;
        list->next = done;
        done = list;
        list = next;
    }
    return done;
}

static struct item *merge_sort(struct item *list)
{
    if (!list || !list->next)
        return list;
    struct item *middle = list;
    for (struct item *end = list->next; end && end->next; end = end->next->next)
        middle = middle->next;
    struct item *second = merge_sort(middle->next);
    middle->next = NULL;
    struct item *first = merge_sort(list), *sorted = NULL, **tail = &sorted;
    while (first && second) {
        struct item **lower = first->key <= second->key ? &first : &second;
        *tail = *lower;
        tail = &(*lower)->next;
        *lower = *tail;
    }
    *tail = first ? first : second;
    return sorted;
}

static uint16_t use_list(uint16_t sum, uint64_t *random)
{
    for (int i = 0; i < ITEMS; i++) {
        items[i].next = i + 1 < ITEMS ? &items[i + 1] : NULL;
        items[i].key = next_random(random);
        items[i].value = i;
    }
    struct item *list = reverse(items);
    for (int wanted = 0; wanted < ITEMS; wanted += 20) {
        const struct item *at = list;
        while (at && at->value != wanted)
            at = at->next;
        sum = crc(sum, at ? (uint16_t)at->key : 0);
    }
    for (const struct item *at = merge_sort(list); at; at = at->next)
        sum = crc(sum, (uint16_t)at->value);
    return sum;
}

static uint16_t use_matrices(uint16_t sum, uint64_t *random)
{
    for (int i = 0; i < SIZE; i++)
        for (int k = 0; k < SIZE; k++) {
            left[i][k] = next_random(random) % 1000;
            right[i][k] = *random >> 20;
        }
    for (int i = 0; i < SIZE; i++)
        for (int k = 0; k < SIZE; k++) {
            int32_t cell = 0;
            for (int j = 0; j < SIZE; j++)
                cell += left[i][j] * right[j][k] >> 3;
            product[i][k] = cell;
        }
    for (int i = 0; i < SIZE; i++)
        sum = crc(sum, product[i][SIZE - 1 - i]);
    return sum;
}

enum state { START, SIGN, WHOLE, POINT, FRACTION, EXPONENT, EXPONENT_SIGN, POWER, WRONG, STATES };

static enum state step(enum state state, char c)
{
    int digit = c >= '0' && c <= '9', sign = c == '+' || c == '-';
    switch (state) {
    case START: return digit ? WHOLE : sign ? SIGN : c == '.' ? POINT : WRONG;
    case SIGN: return digit ? WHOLE : c == '.' ? POINT : WRONG;
    case WHOLE: return digit ? WHOLE : c == '.' ? FRACTION : c == 'e' ? EXPONENT : WRONG;
    case POINT: return digit ? FRACTION : WRONG;
    case FRACTION: return digit ? FRACTION : c == 'e' ? EXPONENT : WRONG;
    case EXPONENT: return digit ? POWER : sign ? EXPONENT_SIGN : WRONG;
    case EXPONENT_SIGN: return digit ? POWER : WRONG;
    case POWER: return digit ? POWER : WRONG;
    default: return WRONG;
    }
}

static uint16_t use_states(uint16_t sum, uint64_t *random)
{
    static const char alphabet[] = "01234567890123456789+-.e,,,,";
    uint32_t ended[STATES] = {0};
    for (int i = 0; i < CHARACTERS; i++)
        input[i] = alphabet[next_random(random) % (sizeof alphabet - 1)];
    enum state state = START;
    for (const char *at = input; *at; at++) {
        if (*at == ',') {
            ended[state]++;
            state = START;
        } else {
            state = step(state, *at);
        }
    }
    for (int i = 0; i < STATES; i++)
        sum = crc(sum, ended[i]);
    return sum;
}

uint64_t work_core(void)
{
    uint64_t random = 1;
    uint16_t sum = 0;
    for (int time = 0; time < TIMES; time++) {
        sum = use_list(sum, &random);
        sum = use_matrices(sum, &random);
        sum = use_states(sum, &random);
    }
    return sum;
}
