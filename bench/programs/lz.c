// Compression by references to what came before, and back: hashing, byte compares, short copies, irregular branches.
// A token is a byte: below 128, so many literals and one follow; else (token - 128) + SHORTEST bytes are copied from a
// distance that follows in 2 bytes.
#include "programs.h"

#include <string.h>

enum { BYTES = 256 << 10, TIMES = 100, WORDS = 500, SHORTEST = 4, LONGEST = SHORTEST + 127, WINDOW = 65535, SLOTS = 1 << 13 };

static uint8_t text[BYTES], packed[BYTES + BYTES / 64], unpacked[BYTES];

// Words of 2 to 9 letters, the first ones of the vocabulary more often.
static void write_text(void)
{
    static char words[WORDS][10];
    uint64_t random = 1;
    for (int i = 0; i < WORDS; i++) {
        int length = 2 + next_random(&random) % 8;
        for (int k = 0; k < length; k++)
            words[i][k] = 'a' + next_random(&random) % 26;
        words[i][length] = 0;
    }
    for (int at = 0; at < BYTES;) {
        unsigned most = 1 + next_random(&random) % WORDS;
        const char *word = words[next_random(&random) % most];
        while (*word && at < BYTES)
            text[at++] = *word++;
        if (at < BYTES)
            text[at++] = ' ';
    }
}

static uint8_t *put_literals(uint8_t *out, const uint8_t *from, const uint8_t *to)
{
    while (from < to) {
        long count = to - from < 128 ? to - from : 128;
        *out++ = count - 1;
        memcpy(out, from, count);
        out += count;
        from += count;
    }
    return out;
}

static int pack(void)
{
    static int32_t latest[SLOTS];  // where 4 bytes with this hash were last
    memset(latest, -1, sizeof latest);
    uint8_t *out = packed;
    int pending = 0, at = 0;  // literals from `pending` on are still to be written
    while (at + SHORTEST <= BYTES) {
        uint32_t four;
        memcpy(&four, text + at, 4);
        int32_t *slot = &latest[four * 2654435761u >> 19];
        int candidate = *slot;
        *slot = at;
        int length = 0;
        if (candidate >= 0 && at - candidate <= WINDOW)
            while (length < LONGEST && at + length < BYTES && text[candidate + length] == text[at + length])
                length++;
        if (length < SHORTEST) {
            at++;
            continue;
        }
        out = put_literals(out, text + pending, text + at);
        *out++ = 128 + length - SHORTEST;
        *out++ = at - candidate;
        *out++ = (at - candidate) >> 8;
        at += length;
        pending = at;
    }
    return put_literals(out, text + pending, text + BYTES) - packed;
}

static int unpack(int size)
{
    const uint8_t *in = packed;
    uint8_t *out = unpacked;
    while (in < packed + size) {
        int token = *in++;
        if (token < 128) {
            memcpy(out, in, token + 1);
            in += token + 1;
            out += token + 1;
            continue;
        }
        const uint8_t *from = out - (in[0] | in[1] << 8);
        in += 2;
        for (int left = token - 128 + SHORTEST; left; left--)  // a byte at a time: it may overlap
            *out++ = *from++;
    }
    return out - unpacked;
}

uint64_t work_lz(void)
{
    uint64_t sum = 0;
    write_text();
    for (int time = 0; time < TIMES; time++) {
        text[time] = time;
        int size = pack();
        int back = unpack(size);
        sum = mix(sum, size);
        sum = mix(sum, back == BYTES && !memcmp(text, unpacked, BYTES));
        for (int i = 0; i < size; i += 7)
            sum = mix(sum, packed[i]);
    }
    return sum;
}
