// SHA-256 (FIPS 180-4): shifts, rotations and additions of 32 bits. Its constants are computed, as the standard defines
// them: the fractions of the square and cube roots of the first primes.
#include "programs.h"

#include <string.h>

enum { BYTES = 64 << 10, TIMES = 500, ROUNDS = 64 };

static uint32_t initial[8], constant[ROUNDS];
static uint8_t message[BYTES + 64];

// The first 32 bits behind the point of the root of that degree.
static uint32_t root_fraction(unsigned n, int degree)
{
    unsigned __int128 square = (unsigned __int128)n << 64, cube = (unsigned __int128)n << 96;
    uint64_t root = 0;
    for (uint64_t bit = 1ull << 38; bit; bit >>= 1) {
        uint64_t guess = root | bit;
        unsigned __int128 power = (unsigned __int128)guess * guess;
        if (degree == 3 ? guess < 1ull << 36 && power * guess <= cube : power <= square)
            root = guess;
    }
    return (uint32_t)root;
}

static void set_up(void)
{
    unsigned found = 0;
    for (unsigned n = 2; found < ROUNDS; n++) {
        unsigned divisor = 2;
        while (n % divisor)
            divisor++;
        if (divisor < n)
            continue;
        if (found < 8)
            initial[found] = root_fraction(n, 2);
        constant[found++] = root_fraction(n, 3);
    }
}

static uint32_t rotate(uint32_t x, int by)
{
    return x >> by | x << (32 - by);
}

static void compress(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[ROUNDS];
    for (int t = 0; t < 16; t++, block += 4)
        w[t] = (uint32_t)block[0] << 24 | block[1] << 16 | block[2] << 8 | block[3];
    for (int t = 16; t < ROUNDS; t++) {
        uint32_t early = w[t - 15], late = w[t - 2];
        w[t] = w[t - 16] + w[t - 7] + (rotate(early, 7) ^ rotate(early, 18) ^ early >> 3) +
               (rotate(late, 17) ^ rotate(late, 19) ^ late >> 10);
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int t = 0; t < ROUNDS; t++) {
        uint32_t one = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + constant[t] + w[t];
        uint32_t two = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

// The first 8 bytes of the hash of the message, whose length is a multiple of 64.
static uint64_t hash(void)
{
    uint32_t state[8];
    memcpy(state, initial, sizeof state);
    memset(message + BYTES, 0, 64);
    message[BYTES] = 0x80;
    for (int i = 0; i < 8; i++)
        message[BYTES + 63 - i] = (uint64_t)BYTES * 8 >> 8 * i;
    for (int at = 0; at < BYTES + 64; at += 64)
        compress(state, message + at);
    return (uint64_t)state[0] << 32 | state[1];
}

// BYTES zeros first; then each time with the hash before it in front.
uint64_t work_sha256(void)
{
    set_up();
    memset(message, 0, BYTES);
    uint64_t sum = 0;
    for (int time = 0; time < TIMES; time++) {
        sum = hash();
        memcpy(message, &sum, sizeof sum);
    }
    return sum;
}
