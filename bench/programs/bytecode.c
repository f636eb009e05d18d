// An interpreter of a stack machine, one big switch, at work on Collatz' sequences: jumps that are hard to foresee.
#include "programs.h"

enum { LAST = 16000 };  // the sequences from 1 to this

enum opcode { PUSH, LOAD, STORE, ADD, SUBTRACT, MULTIPLY, HALVE, ODD, LESS, JUMP, JUMP_IF_ZERO, HALT };
enum variable { N, X, STEPS };
enum label { NEXT_N = 2, STEP = 4, EVEN = 18, COUNT = 21, DONE = 26, END = 35 };

static const struct instruction {
    enum opcode opcode;
    int operand;
} program[] = {
    {PUSH, 1}, {STORE, N},
    /* NEXT_N */ {LOAD, N}, {STORE, X},
    /* STEP */ {PUSH, 1}, {LOAD, X}, {LESS}, {JUMP_IF_ZERO, DONE},
    {LOAD, X}, {ODD}, {JUMP_IF_ZERO, EVEN},
    {LOAD, X}, {PUSH, 3}, {MULTIPLY}, {PUSH, 1}, {ADD}, {STORE, X}, {JUMP, COUNT},
    /* EVEN */ {LOAD, X}, {HALVE}, {STORE, X},
    /* COUNT */ {LOAD, STEPS}, {PUSH, 1}, {ADD}, {STORE, STEPS}, {JUMP, STEP},
    /* DONE */ {LOAD, N}, {PUSH, 1}, {ADD}, {STORE, N}, {PUSH, LAST + 1}, {LOAD, N}, {SUBTRACT}, {JUMP_IF_ZERO, END},
    {JUMP, NEXT_N},
    /* END */ {HALT},
};

uint64_t work_bytecode(void)
{
    uint64_t variables[3] = {0}, stack[8], sum = 0;
    uint64_t *top = stack;  // the first free place
    for (const struct instruction *at = program;; at++) {
        switch (at->opcode) {
        case PUSH: *top++ = at->operand; break;
        case LOAD: *top++ = variables[at->operand]; break;
        case STORE: variables[at->operand] = *--top; break;
        case ADD: top--; top[-1] += *top; break;
        case SUBTRACT: top--; top[-1] -= *top; break;
        case MULTIPLY: top--; top[-1] *= *top; break;
        case HALVE: top[-1] /= 2; break;
        case ODD: top[-1] %= 2; break;
        case LESS: top--; top[-1] = top[-1] < *top; break;
        case JUMP: sum = mix(sum, variables[X]); at = program + at->operand - 1; break;
        case JUMP_IF_ZERO:
            if (!*--top)
                at = program + at->operand - 1;
            break;
        case HALT: return mix(sum, variables[STEPS]);
        }
    }
}
