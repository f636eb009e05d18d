// The device's side of proto/vmesh/v1 in C: a device has one region and one line, and fills in `struct device`.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { STATE_BYTES = 1024 };  // a state is never longer

enum write_kind { WRITE_SYNC, WRITE_POSTED };
enum read_kind { READ_SYNC, READ_SHADOW };

// A row of equal registers; see Register in bus.proto.
struct registers {
    char *name;
    uint64_t offset;
    uint32_t size, count;
    enum read_kind read;
    enum write_kind write;
};

// A device model. Every function is called in the one thread of the service; `offset` and `size` were checked against
// the region. `read` and `write` give false where there is no register: the guest gets an access fault.
struct device {
    char *kind;
    char *state_type;  // full name of the protobuf message that `save` gives and `load` takes
    uint32_t state_version;
    uint64_t region_size;
    uint32_t access_sizes;
    const struct registers *registers;
    size_t register_rows;
    char *line;  // its name, NULL if there is none
    void (*reset)(void);
    bool (*read)(uint64_t offset, unsigned size, uint64_t *value);
    bool (*write)(uint64_t offset, unsigned size, uint64_t value);
    size_t (*save)(uint8_t bytes[STATE_BYTES]);
    // NULL, or what was expected instead: then nothing was changed. With `check_only` nothing is changed at all.
    const char *(*load)(const uint8_t *bytes, size_t length, bool check_only);
};

// Serve the device, to its end. Gives the exit status.
int serve(const struct device *device, int argc, char **argv);

// Drive the line, and say what a shadowed register reads. Only changes cost a message.
void set_line(bool level);
void set_shadow(uint64_t offset, unsigned size, uint64_t value);

// `size` bytes of guest memory at guest physical `address`, mapped; NULL if not all of it may be read (or written).
void *guest_memory(uint64_t address, uint64_t size, bool write);
// What was written there is written: to be called afterwards.
void guest_memory_written(uint64_t address, uint64_t size);

// The CRC-32 of ISO/IEC 8802-3, of what had `crc` and `size` bytes more; 0 for none.
uint32_t crc32(uint32_t crc, const void *data, size_t size);
