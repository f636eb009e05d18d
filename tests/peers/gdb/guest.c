/* A guest to be debugged, on one hart or four: it computes a little, for ever. */

volatile unsigned long shared[4];
volatile unsigned long rounds;
volatile double ratio = 1.5;

__attribute__((noinline)) static unsigned long leaf(unsigned long number)
{
    unsigned long square = number * number;
    return square + 1;
}

__attribute__((noinline)) static unsigned long middle(unsigned long hart, unsigned long number)
{
    unsigned long got = leaf(number);
    shared[hart] = got;
    return got;
}

void main(unsigned long hart)
{
    for (unsigned long number = 0;; number++) {
        middle(hart, number);
        if (hart == 0) {
            rounds = number;
            ratio = ratio + 0.25;
        }
    }
}
