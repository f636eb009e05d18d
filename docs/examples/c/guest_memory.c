// Guest memory, mapped: what memory has granted, and the flags of the pages that were written (memory.proto).
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"
#include "parts.h"

enum {
    MAX_SEGMENTS = 16,
    PAGE = 4096,
    DIRTY = 1, HOLDS_CODE = 2, CODE_NEWS = 3,  // page flags, and what is behind them
    CODE_FREE = 0, CODE_WRITTEN = 2,
};

struct segment {
    uint64_t base, size;
    uint8_t *content;
    uint8_t *flags;  // or NULL
    uint64_t stride;
    bool writable;
};

struct grant {
    uint64_t base, size;
    bool writable;
};

static struct segment segments[MAX_SEGMENTS];
static size_t segment_count;
static struct grant grants[MAX_SEGMENTS];
static size_t grant_count;

static uint8_t *map_file(const char *path, size_t *size, bool writable) {
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    struct stat found;
    if (fd < 0 || fstat(fd, &found) < 0) fail("cannot open %s: %s", path, strerror(errno));
    *size = found.st_size;
    uint8_t *mapped = mmap(NULL, *size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) fail("cannot map %s: %s", path, strerror(errno));
    close(fd);
    return mapped;
}

void guest_memory_map(const Vmesh__V1__Attached *attached) {
    if (attached->n_segments > MAX_SEGMENTS || attached->n_grants > MAX_SEGMENTS) fail("memory has too many segments");
    if (attached->n_segments == 0) fail("memory gave nothing to map: this device must be on its host");
    for (size_t i = 0; i < attached->n_segments; i++) {
        const Vmesh__V1__Segment *said = attached->segments[i];
        struct segment *segment = &segments[segment_count++];
        *segment = (struct segment){said->base_address, said->size, NULL, NULL, said->flags_stride, said->writable};
        size_t size, flags_size = 0;
        segment->content = map_file(said->path, &size, said->writable);
        if (size != said->size) fail("segment %s: expected %" PRIu64 " bytes, got %zu", said->name, said->size, size);
        if (said->flags_path[0] == '\0') continue;
        segment->flags = map_file(said->flags_path, &flags_size, true);
        if (segment->stride < size / PAGE || flags_size / 4 < segment->stride)
            fail("page flags of %s are too short", said->name);
    }
    for (size_t i = 0; i < attached->n_grants; i++) {
        const Vmesh__V1__Grant *said = attached->grants[i];
        grants[grant_count++] = (struct grant){said->base_address, said->size, said->writable};
    }
}

static bool inside(uint64_t base, uint64_t length, uint64_t address, uint64_t size) {
    return base <= address && address - base <= length && size <= length - (address - base);
}

static struct segment *segment_at(uint64_t address, uint64_t size) {
    for (struct segment *segment = segments; segment < segments + segment_count; segment++)
        if (inside(segment->base, segment->size, address, size)) return segment;
    return NULL;
}

void *guest_memory(uint64_t address, uint64_t size, bool write) {
    struct segment *segment = segment_at(address, size);
    if (segment == NULL || (write && !segment->writable)) return NULL;
    for (struct grant *grant = grants; grant < grants + grant_count; grant++)
        if (inside(grant->base, grant->size, address, size) && (grant->writable || !write))
            return segment->content + (address - segment->base);
    return NULL;
}

void guest_memory_written(uint64_t address, uint64_t size) {
    struct segment *segment = segment_at(address, size);
    if (segment == NULL || segment->flags == NULL || size == 0) return;
    // After the write: see Segment in memory.proto.
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint64_t first = (address - segment->base) / PAGE, last = (address - segment->base + size - 1) / PAGE;
    memset(segment->flags + DIRTY * segment->stride + first, 1, last - first + 1);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    bool written = false;
    for (uint64_t page = first; page <= last; page++) {
        uint8_t *flag = segment->flags + HOLDS_CODE * segment->stride + page;
        uint8_t found = __atomic_load_n(flag, __ATOMIC_SEQ_CST);
        if (found == CODE_FREE || found == CODE_WRITTEN) continue;
        __atomic_store_n(flag, CODE_WRITTEN, __ATOMIC_SEQ_CST);
        written = true;
    }
    if (!written) return;
    static uint32_t mine, count;
    if (count++ == 0 && getrandom(&mine, sizeof mine, 0) != sizeof mine) fail("no random number");
    uint64_t *news = (uint64_t *)(segment->flags + CODE_NEWS * segment->stride);
    __atomic_store_n(news, (uint64_t)mine << 32 | count, __ATOMIC_SEQ_CST);
}
