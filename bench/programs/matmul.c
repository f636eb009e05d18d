// Products of matrices of doubles: fused multiply-adds, loads and stores.
#include "programs.h"

#include <string.h>

enum { SIZE = 96, TIMES = 40 };

static double left[SIZE][SIZE], right[SIZE][SIZE], product[SIZE][SIZE];

uint64_t work_matmul(void)
{
    uint64_t random = 1, sum = 0;
    for (int i = 0; i < SIZE; i++)
        for (int k = 0; k < SIZE; k++) {
            left[i][k] = (double)(next_random(&random) >> 11) * 0x1p-53 - 0.5;
            right[i][k] = (double)(next_random(&random) >> 11) * 0x1p-53 - 0.5;
        }
    for (int time = 0; time < TIMES; time++) {
        memset(product, 0, sizeof product);
        for (int i = 0; i < SIZE; i++)
            for (int j = 0; j < SIZE; j++)
                for (int k = 0; k < SIZE; k++)
                    product[i][k] += left[i][j] * right[j][k];
        memcpy(left, product, sizeof left);
        for (int i = 0; i < SIZE; i++) {
            uint64_t bits;
            memcpy(&bits, &product[i][i], sizeof bits);
            sum = mix(sum, bits);
        }
    }
    return sum;
}
