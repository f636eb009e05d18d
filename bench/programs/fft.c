// Fast Fourier transforms, forth and back, and a filter, in single precision.
#include "programs.h"

#include <math.h>
#include <string.h>

enum { LOG = 10, SIZE = 1 << LOG, TIMES = 180, TAPS = 16 };

static struct complex {
    float re, im;
} signal[SIZE], turn[SIZE / 2];

static void transform(float direction)
{
    for (int i = 0; i < SIZE; i++) {
        int mirrored = 0;
        for (int bit = 0; bit < LOG; bit++)
            mirrored |= (i >> bit & 1) << (LOG - 1 - bit);
        if (mirrored > i) {
            struct complex kept = signal[i];
            signal[i] = signal[mirrored];
            signal[mirrored] = kept;
        }
    }
    for (int half = 1; half < SIZE; half *= 2)
        for (int start = 0; start < SIZE; start += 2 * half)
            for (int k = 0; k < half; k++) {
                struct complex by = turn[k * (SIZE / 2 / half)];
                struct complex *low = &signal[start + k], *high = low + half;
                float im = by.im * direction;
                float re_part = high->re * by.re - high->im * im;
                float im_part = high->re * im + high->im * by.re;
                *high = (struct complex){low->re - re_part, low->im - im_part};
                *low = (struct complex){low->re + re_part, low->im + im_part};
            }
}

static void filter(void)
{
    for (int i = SIZE - 1; i >= TAPS; i--) {
        float total = 0;
        for (int tap = 0; tap < TAPS; tap++)
            total += signal[i - tap].re * (1.0f / (2 + tap));
        signal[i].re = total;
    }
}

uint64_t work_fft(void)
{
    uint64_t random = 1, sum = 0;
    for (int i = 0; i < SIZE / 2; i++) {
        double angle = 2 * 3.14159265358979323846 * i / SIZE;
        turn[i] = (struct complex){(float)cos(angle), (float)sin(angle)};
    }
    for (int time = 0; time < TIMES; time++) {
        for (int i = 0; i < SIZE; i++)
            signal[i] = (struct complex){(float)(next_random(&random) % 2001) / 1000.0f - 1.0f, 0.0f};
        transform(-1.0f);
        for (int i = SIZE / 4; i < SIZE * 3 / 4; i++)
            signal[i] = (struct complex){0.0f, 0.0f};
        transform(1.0f);
        for (int i = 0; i < SIZE; i++) {
            signal[i].re /= SIZE;
            signal[i].im /= SIZE;
        }
        filter();
        for (int i = 0; i < SIZE; i += 8) {
            uint32_t bits;
            memcpy(&bits, &signal[i].re, sizeof bits);
            sum = mix(sum, bits);
        }
    }
    return sum;
}
