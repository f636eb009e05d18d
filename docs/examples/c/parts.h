// What the files of a device service have from each other; a device model needs only device.h.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "vmesh/v1/memory.pb-c.h"

// log.c: one line, as all services of a machine write them, to its log, and to stderr if it is no information.
void log_as(const char *name);
void log_open(const char *path);
void log_line(const char *level, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Say why in one line, and end the process with status 1.
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void *allocate(size_t size);

// guest_memory.c
void guest_memory_map(const Vmesh__V1__Attached *attached);

// slot.c: the last record that was written whole (NULL: there is none), and its replacement.
void slot_open(const char *path, bool fresh);
const void *slot_read(size_t *size);
void slot_write(const void *data, size_t size);
