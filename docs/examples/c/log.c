// The machine's log, and the end of a service that cannot go on.
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "parts.h"

static const char *speaker = "device";
static int log_file = -1;

void log_as(const char *name) {
    speaker = name;
}

void log_open(const char *path) {
    log_file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

// One line, as all services of a machine write them: to the machine's log, and to stderr if it is no information.
void log_line(const char *level, const char *format, ...) {
    char line[1024], text[768];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    for (char *c = text; *c != '\0'; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f) *c = '?';
    struct timespec now;
    struct tm utc;
    char stamp[32];
    clock_gettime(CLOCK_REALTIME, &now);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", gmtime_r(&now.tv_sec, &utc));
    int size = snprintf(line, sizeof line, "%s.%03ldZ %s %s %s\n", stamp, now.tv_nsec / 1000000, level,
                        speaker, text);
    if (size >= (int)sizeof line) size = sizeof line - 1;
    // The log must not end a service.
    if (log_file >= 0 && write(log_file, line, size) < 0) log_file = -1;
    if (strcmp(level, "info") != 0 && write(STDERR_FILENO, line, size) < 0) return;
}

void fail(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    log_line("error", "failed reason=\"%s\"", text);
    exit(1);
}

void *allocate(size_t size) {
    void *found = malloc(size > 0 ? size : 1);
    if (found == NULL) fail("no memory for %zu bytes", size);
    return found;
}
