// Five bodies that attract each other: doubles with division and square root.
#include "programs.h"

#include <math.h>
#include <string.h>

enum { BODIES = 5, STEPS = 300000 };

static struct body {
    double at[3], speed[3], mass;
} bodies[BODIES];

static void step(double time)
{
    for (int i = 0; i < BODIES; i++)
        for (int k = i + 1; k < BODIES; k++) {
            double between[3], square = 0.01;  // never 0: bodies that meet pass through each other
            for (int axis = 0; axis < 3; axis++) {
                between[axis] = bodies[i].at[axis] - bodies[k].at[axis];
                square += between[axis] * between[axis];
            }
            double pull = time / (square * sqrt(square));
            for (int axis = 0; axis < 3; axis++) {
                bodies[i].speed[axis] -= between[axis] * bodies[k].mass * pull;
                bodies[k].speed[axis] += between[axis] * bodies[i].mass * pull;
            }
        }
    for (int i = 0; i < BODIES; i++)
        for (int axis = 0; axis < 3; axis++)
            bodies[i].at[axis] += bodies[i].speed[axis] * time;
}

uint64_t work_nbody(void)
{
    for (int i = 0; i < BODIES; i++)
        bodies[i] = (struct body){{i, i * i * 0.25, 1.0 - i}, {0.1 * i, -0.2, 0.05 * i * i}, 1.0 / (1 + i)};
    for (int i = 0; i < STEPS; i++)
        step(0.001);
    uint64_t sum = 0;
    for (int i = 0; i < BODIES; i++)
        for (int axis = 0; axis < 3; axis++) {
            uint64_t bits;
            memcpy(&bits, &bodies[i].at[axis], sizeof bits);
            sum = mix(sum, bits);
        }
    return sum;
}
