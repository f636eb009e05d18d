// The copier of ../copier, in C: it moves up to 1 MiB of guest memory and gives its CRC-32. Nothing but proto/ and
// device.c stands between it and the machine.
#include <string.h>

#include "device.h"
#include "vmesh/v1/devices.pb-c.h"

enum { SOURCE = 0x00, TARGET = 0x08, LENGTH = 0x10, STATUS = 0x18, CRC = 0x20, END = 0x28 };
enum { IDLE, DONE, FAILED };  // what STATUS reads; writing 1 to it starts the copier, 0 acknowledges
enum { LIMIT = 1 << 20 };

static Vmesh__V1__CopierState state = VMESH__V1__COPIER_STATE__INIT;

static void drive(void) {
    set_line(state.status != IDLE);
    set_shadow(STATUS, 8, state.status);
    set_shadow(CRC, 8, state.crc);
}

static uint32_t copy(void) {
    if (state.length > LIMIT) return FAILED;
    const void *source = guest_memory(state.source, state.length, false);
    void *target = guest_memory(state.target, state.length, true);
    if (source == NULL || target == NULL) return FAILED;
    memmove(target, source, state.length);
    guest_memory_written(state.target, state.length);
    state.crc = crc32(0, target, state.length);
    return DONE;
}

static bool read_register(uint64_t offset, unsigned size, uint64_t *value) {
    (void)size;  // always 8
    switch (offset) {
    case SOURCE: *value = state.source; return true;
    case TARGET: *value = state.target; return true;
    case LENGTH: *value = state.length; return true;
    case STATUS: *value = state.status; return true;
    case CRC: *value = state.crc; return true;
    default: return false;
    }
}

static bool write_register(uint64_t offset, unsigned size, uint64_t value) {
    (void)size;
    switch (offset) {
    case SOURCE: state.source = value; return true;
    case TARGET: state.target = value; return true;
    case LENGTH: state.length = value; return true;
    case STATUS:
        state.status = value != 0 ? copy() : IDLE;
        drive();
        return true;
    default: return offset == CRC;  // read only: the write is lost
    }
}

static void reset(void) {
    vmesh__v1__copier_state__init(&state);
    drive();
}

static size_t save(uint8_t bytes[STATE_BYTES]) {
    return vmesh__v1__copier_state__pack(&state, bytes);
}

static const char *load(const uint8_t *bytes, size_t length, bool check_only) {
    Vmesh__V1__CopierState *loaded = vmesh__v1__copier_state__unpack(NULL, length, bytes);
    if (loaded == NULL) return "a vmesh.v1.CopierState";
    bool good = loaded->status <= FAILED;
    if (good && !check_only) {
        reset();
        state.source = loaded->source, state.target = loaded->target, state.length = loaded->length;
        state.status = loaded->status, state.crc = loaded->crc;
        drive();
    }
    vmesh__v1__copier_state__free_unpacked(loaded, NULL);
    return good ? NULL : "a status up to 2";
}

int main(int argc, char **argv) {
    static const struct registers registers[] = {
        {.name = "arguments", .offset = SOURCE, .size = 8, .count = 3, .write = WRITE_POSTED},
        {.name = "results", .offset = STATUS, .size = 8, .count = 2, .read = READ_SHADOW},
    };
    static const struct device copier = {
        .kind = "copier", .state_type = "vmesh.v1.CopierState", .state_version = 1,
        .region_size = END, .access_sizes = 8, .registers = registers, .register_rows = 2, .line = "done",
        .reset = reset, .read = read_register, .write = write_register, .save = save, .load = load,
    };
    return serve(&copier, argc, argv);
}
