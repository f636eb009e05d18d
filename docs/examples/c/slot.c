// The slot: two records that take turns, each { checksum, size, number, data }, little endian, so that a process that
// dies while it writes one leaves the other. vmesh/slot.py writes the same, so a successor may be in another language.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "device.h"
#include "parts.h"

enum {
    HALF = 1 << 20,  // in a sparse file: what is not written takes nothing
    MARKS = 512,     // bytes behind the two records, which this device has no use for
};

struct record {
    uint32_t checksum, size;  // the checksum is of what follows it
    uint64_t number;
    uint8_t data[HALF - 16];
};

static struct record *halves;
static uint64_t newest_number;
static size_t written_size;
static uint8_t written[sizeof halves->data];

uint32_t crc32(uint32_t crc, const void *data, size_t size) {
    static uint32_t table[256];
    if (table[1] == 0)
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t value = byte;
            for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? 0xedb88320 : 0);
            table[byte] = value;
        }
    crc = ~crc;
    for (const uint8_t *byte = data; byte < (const uint8_t *)data + size; byte++)
        crc = crc >> 8 ^ table[(crc ^ *byte) & 0xff];
    return ~crc;
}

static uint32_t record_checksum(const struct record *record) {
    return crc32(crc32(0, &record->size, 12), record->data, record->size);
}

void slot_open(const char *path, bool fresh) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | (fresh ? O_TRUNC : 0), 0600);
    if (fd < 0 || ftruncate(fd, 2 * HALF + MARKS) < 0) fail("cannot open the slot %s: %s", path, strerror(errno));
    halves = mmap(NULL, 2 * HALF, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (halves == MAP_FAILED) fail("cannot map the slot %s: %s", path, strerror(errno));
    close(fd);
}

const void *slot_read(size_t *size) {
    const struct record *newest = NULL;
    for (const struct record *record = halves; record < halves + 2; record++) {
        if (record->number <= newest_number || record->size > sizeof record->data) continue;
        if (record->checksum == record_checksum(record)) newest = record, newest_number = record->number;
    }
    if (newest == NULL) return NULL;
    *size = newest->size;
    return newest->data;
}

void slot_write(const void *data, size_t size) {
    if (size > sizeof written) fail("slot: expected at most %zu bytes, got %zu", sizeof written, size);
    if (newest_number > 0 && size == written_size && memcmp(data, written, size) == 0) return;
    memcpy(written, data, size), written_size = size;
    struct record *record = &halves[++newest_number & 1];
    memcpy(record->data, data, size);
    record->size = size, record->number = newest_number;
    record->checksum = record_checksum(record);
}
