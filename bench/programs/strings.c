// Strings copied, measured, searched and compared, long and short, as a C library does it: by words where it can. The
// functions are written out here because C libraries differ in them so much.
#include "programs.h"

#include <stddef.h>

enum { BYTES = 32 << 10, TIMES = 2000, LONGEST_LINE = 100, WORD = sizeof(uint64_t) };

// The compiler must not put the C library's back.
#define FUNCTION __attribute__((noinline, no_builtin)) static

typedef uint64_t __attribute__((may_alias)) word;

static char text[BYTES], copy[BYTES];

static int aligned(const void *at)
{
    return (uintptr_t)at % WORD == 0;
}

static int has_zero(uint64_t bytes)
{
    return ((bytes - 0x0101010101010101u) & ~bytes & 0x8080808080808080u) != 0;
}

FUNCTION void copy_bytes(char *to, const char *from, size_t size)
{
    if (((uintptr_t)to - (uintptr_t)from) % WORD == 0) {
        for (; size && !aligned(from); size--)
            *to++ = *from++;
        for (; size >= WORD; size -= WORD, to += WORD, from += WORD)
            *(word *)to = *(const word *)from;
    }
    while (size--)
        *to++ = *from++;
}

FUNCTION size_t length(const char *string)
{
    const char *at = string;
    for (; !aligned(at); at++)
        if (!*at)
            return at - string;
    while (!has_zero(*(const word *)at))
        at += WORD;
    while (*at)
        at++;
    return at - string;
}

// Where `wanted` is first, or else the end.
FUNCTION const char *find(const char *string, char wanted)
{
    uint64_t everywhere = (uint8_t)wanted * 0x0101010101010101u;
    while (!aligned(string) && *string && *string != wanted)
        string++;
    if (aligned(string))
        while (!has_zero(*(const word *)string) && !has_zero(*(const word *)string ^ everywhere))
            string += WORD;
    while (*string && *string != wanted)
        string++;
    return string;
}

FUNCTION int compare_strings(const char *left, const char *right)
{
    while (*left && *left == *right)
        left++, right++;
    return (uint8_t)*left - (uint8_t)*right;
}

FUNCTION int compare_bytes(const char *left, const char *right, size_t size)
{
    for (; size >= WORD && *(const word *)left == *(const word *)right; size -= WORD)
        left += WORD, right += WORD;
    for (; size; size--, left++, right++)
        if (*left != *right)
            return (uint8_t)*left - (uint8_t)*right;
    return 0;
}

uint64_t work_strings(void)
{
    uint64_t random = 1, sum = 0;
    for (int i = 0, end = 0; i < BYTES - 1; i++) {
        text[i] = 'a' + next_random(&random) % 26;
        if (i == end) {
            text[i] = '\n';
            end = i + 1 + next_random(&random) % LONGEST_LINE;
        }
    }
    for (int time = 0; time < TIMES; time++) {
        copy_bytes(copy, text, BYTES);
        copy[next_random(&random) % (BYTES - 1)] = '!';
        sum = mix(sum, length(copy));
        sum = mix(sum, compare_bytes(copy, text, BYTES));
        for (const char *line = copy; *line;) {
            char word[LONGEST_LINE + LONGEST_LINE + 1];
            const char *end = find(line, '\n');
            copy_bytes(word, line, end - line);
            word[end - line] = 0;
            sum = mix(sum, length(word));
            sum = mix(sum, compare_strings(word, text + (line - copy)));
            line = *end ? end + 1 : end;
        }
    }
    return sum;
}
