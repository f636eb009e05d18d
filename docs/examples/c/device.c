// A device service in C, from proto/vmesh/v1 and docs/protocol.md alone: one thread, one poll, one device a process.
// What arrives is hostile until checked; whatever cannot be followed is refused, counted and logged now and then.
#include "device.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "parts.h"
#include "vmesh/v1/packet.pb-c.h"
#include "vmesh/v1/slot.pb-c.h"

#define PB(name) Vmesh__V1__##name
#define BODY(name) VMESH__V1__PACKET__BODY_##name
#define CODE(name) VMESH__V1__ERROR_CODE__ERROR_##name
#define PHASE(name) VMESH__V1__SERVICE_PHASE__SERVICE_##name
#define ROLE(name) VMESH__V1__ROLE__ROLE_##name
#define NEVER_NS UINT64_MAX  // what is promised: devices here do nothing but answer accesses
#define NAME_PATTERN "^[A-Za-z0-9._-]{1,64}$"

enum {
    MAJOR = 1, MINOR = 1,
    WINDOW = 1024,             // accesses of one hart that may be unacknowledged
    MAX_PACKET = 16 << 20,
    MAX_CLIENTS = 1024,
    MAX_HARTS = 4096,
    MAX_SHADOWS = 64,
    MAX_CAUSES = 64,           // kinds of refusals that are told apart in the log
    MAX_NOTES = 240,
    QUEUE = 4096,              // messages that wait in a socket
    IDENTITY = 256,            // of a ZeroMQ peer, at most 255
    START_MS = 30000,
    RETRY_MS = 1,
    LOOK_MS = 1000,            // without a lifeline: between two looks whether the machine is still there
};

struct client {
    uint8_t identity[IDENTITY];
    size_t identity_size;
    int role;  // 0: no client
    uint32_t hart;
    char name[65];
};

// What is remembered of one hart; see docs/protocol.md, Batches.
struct link {
    bool known;
    uint64_t done, value;
    bool bus_error;
    uint8_t identity[IDENTITY];
    size_t identity_size;
};

struct shadow {
    uint64_t offset, value;
    uint32_t size;
    bool changed;
};

static struct {
    const struct device *device;
    char *machine, *machine_name, *name;
    char socket_path[128], endpoint[136];
    struct stat socket_stat;
    uint64_t epoch, base;
    uint32_t irq;
    int lifeline, signals;
    void *context, *router, *memory;
    PB(ServicePhase) phase;
    bool drained, stop;
    struct client clients[MAX_CLIENTS];
    struct link links[MAX_HARTS];
    struct client *irqchip;
    bool level, level_changed;
    struct shadow shadows[MAX_SHADOWS];
    size_t shadow_count;
    uint64_t update_sequence;
    uint64_t time_ns;  // guest time that was heard last
    uint64_t accesses, batches, updates, bus_errors, unsendable, refused;
    struct { char name[48]; uint64_t count; } causes[MAX_CAUSES];
} self;

// Count a refusal; log the 1st, 10th, 100th, ... of its cause.
static void note_refusal(const char *cause, const char *text) {
    self.refused++;
    size_t place = 0;
    while (place < MAX_CAUSES - 1 && self.causes[place].count > 0 && strcmp(self.causes[place].name, cause) != 0)
        place++;
    if (self.causes[place].count == 0) snprintf(self.causes[place].name, sizeof self.causes[place].name, "%s", cause);
    uint64_t count = ++self.causes[place].count, power = 1;
    while (power < count) power *= 10;
    if (power == count) log_line("warning", "refused cause=\"%s\" count=%" PRIu64 " text=\"%s\"", cause, count, text);
}

// Packets

static PB(Packet) packet_with(uint64_t id, PB(Packet__BodyCase) kind, void *body) {
    PB(Packet) packet = VMESH__V1__PACKET__INIT;
    packet.id = id;
    packet.body_case = kind;
    packet.done = body;  // of a union of pointers
    return packet;
}

// The name of what a packet carries, as packet.proto has it.
static const char *kind_name(const PB(Packet) *packet) {
    const ProtobufCFieldDescriptor *field =
        protobuf_c_message_descriptor_get_field(&vmesh__v1__packet__descriptor, packet->body_case);
    return field != NULL ? field->name : "nothing";
}

static bool send_packet(const uint8_t *identity, size_t identity_size, const PB(Packet) *packet) {
    size_t size = vmesh__v1__packet__get_packed_size(packet);
    uint8_t *bytes = allocate(size);
    vmesh__v1__packet__pack(packet, bytes);
    bool sent = zmq_send(self.router, identity, identity_size, ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0 &&
                zmq_send(self.router, bytes, size, ZMQ_DONTWAIT) >= 0;
    int error = errno;
    free(bytes);
    if (sent) return true;
    self.unsendable++;
    if (error == EHOSTUNREACH)  // gone: forgotten
        for (struct client *client = self.clients; client < self.clients + MAX_CLIENTS; client++)
            if (client->role != 0 && client->identity_size == identity_size &&
                memcmp(client->identity, identity, identity_size) == 0) {
                client->role = 0;
                if (client == self.irqchip) self.irqchip = NULL;
            }
    return false;
}

static bool answer(const struct client *client, uint64_t id, PB(Packet__BodyCase) kind, void *body) {
    PB(Packet) packet = packet_with(id, kind, body);
    return send_packet(client->identity, client->identity_size, &packet);
}

static void answer_done(const struct client *client, uint64_t id) {
    PB(Done) done = VMESH__V1__DONE__INIT;
    if (id != 0) answer(client, id, BODY(DONE), &done);
}

// Answer Error: count it, log it.
static void refuse_request(const struct client *client, const PB(Packet) *packet, PB(ErrorCode) code,
                           const char *expected, const char *got) {
    char text[MAX_NOTES], note[2 * MAX_NOTES];
    snprintf(text, sizeof text, "%s to %s", kind_name(packet), self.name);
    snprintf(note, sizeof note, "from %s: %s: expected %s, got %s", client->name, text, expected, got);
    note_refusal(kind_name(packet), note);
    if (packet->id == 0) return;
    PB(Error) error = VMESH__V1__ERROR__INIT;
    error.code = code, error.text = text, error.expected = (char *)expected, error.got = (char *)got;
    answer(client, packet->id, BODY(ERROR), &error);
}

// Answer Refused to somebody who is no client.
static void refuse_peer(const uint8_t *identity, size_t identity_size, uint64_t id, const char *cause,
                        const char *expected, const char *got) {
    char reason[MAX_NOTES];
    snprintf(reason, sizeof reason, "%s expected %s, got %s", self.name, expected, got);
    note_refusal(cause, reason);
    PB(Refused) refused = VMESH__V1__REFUSED__INIT;
    refused.expected = (char *)expected, refused.got = (char *)got, refused.reason = reason;
    PB(Packet) packet = packet_with(id, BODY(REFUSED), &refused);
    send_packet(identity, identity_size, &packet);
}

// What survives the process

static void write_slot(void) {
    static PB(LinkRecord) records[MAX_HARTS];
    static PB(LinkRecord) *links[MAX_HARTS];
    uint8_t state[STATE_BYTES];
    PB(SlotRecord) slot = VMESH__V1__SLOT_RECORD__INIT;
    slot.epoch = self.epoch;
    slot.state_type = self.device->state_type, slot.state_version = self.device->state_version;
    slot.state.len = self.device->save(state), slot.state.data = state;
    slot.links = links;
    for (uint32_t hart = 0; hart < MAX_HARTS; hart++) {
        const struct link *link = &self.links[hart];
        if (link->done == 0) continue;
        PB(LinkRecord) *record = links[slot.n_links] = &records[slot.n_links];
        slot.n_links++;
        vmesh__v1__link_record__init(record);
        record->hart = hart, record->done = link->done;
        record->value = link->value, record->bus_error = link->bus_error;
    }
    size_t size = vmesh__v1__slot_record__get_packed_size(&slot);
    uint8_t *bytes = allocate(size);
    vmesh__v1__slot_record__pack(&slot, bytes);
    slot_write(bytes, size);
    free(bytes);
}

// Take over from the epoch before, if there was one.
static void recover(void) {
    size_t size;
    const void *data = slot_read(&size);
    if (data == NULL) return;
    PB(SlotRecord) *slot = vmesh__v1__slot_record__unpack(NULL, size, data);
    if (slot == NULL) fail("slot of %s cannot be parsed", self.name);
    if (strcmp(slot->state_type, self.device->state_type) != 0)
        fail("slot of %s: expected %s, got '%.80s'", self.name, self.device->state_type, slot->state_type);
    if (slot->state_version < 1 || slot->state_version > self.device->state_version)
        fail("state of %s: expected version 1 to %" PRIu32 ", got %" PRIu32, self.name, self.device->state_version,
             slot->state_version);
    const char *expected = self.device->load(slot->state.data, slot->state.len, false);
    if (expected != NULL) fail("state of %s: expected %s", self.name, expected);
    for (size_t i = 0; i < slot->n_links; i++) {
        const PB(LinkRecord) *record = slot->links[i];
        if (record->hart >= MAX_HARTS) continue;
        struct link *link = &self.links[record->hart];
        link->known = true, link->done = record->done, link->value = record->value, link->bus_error = record->bus_error;
    }
    log_line("info", "recovered epoch=%" PRIu64 " before=%" PRIu64, self.epoch, slot->epoch);
    vmesh__v1__slot_record__free_unpacked(slot, NULL);
}

// Lines and shadows

void set_line(bool level) {
    if (self.level == level) return;
    self.level = level;
    self.level_changed = true;
}

void set_shadow(uint64_t offset, unsigned size, uint64_t value) {
    struct shadow *shadow = self.shadows;
    while (shadow < self.shadows + self.shadow_count && (shadow->offset != offset || shadow->size != size)) shadow++;
    if (shadow == self.shadows + self.shadow_count) {
        if (self.shadow_count == MAX_SHADOWS) fail("too many shadows");
        self.shadow_count++;
    } else if (shadow->value == value) {
        return;
    }
    *shadow = (struct shadow){offset, value, size, true};
}

static bool wires_changed(void) {
    for (size_t i = 0; i < self.shadow_count; i++)
        if (self.shadows[i].changed) return true;
    return self.level_changed;
}

// A DeviceUpdate in the making: the message and what it points to.
struct update {
    PB(DeviceUpdate) message;
    PB(LineLevel) line, *lines[1];
    PB(ShadowValue) values[MAX_SHADOWS], *shadows[MAX_SHADOWS];
};

// The next update: what changed, or `everything`. Nothing has changed since afterwards.
static void next_update(struct update *update, bool everything) {
    vmesh__v1__device_update__init(&update->message);
    update->message.epoch = self.epoch;
    update->message.sequence = ++self.update_sequence;
    update->message.time_ns = self.time_ns, update->message.quiet_until_ns = NEVER_NS;
    self.updates++;
    update->message.lines = update->lines, update->message.shadows = update->shadows;
    if (self.device->line != NULL && (everything || self.level_changed)) {
        vmesh__v1__line_level__init(&update->line);
        update->line.level = self.level;
        update->lines[update->message.n_lines++] = &update->line;
    }
    for (size_t i = 0; i < self.shadow_count; i++) {
        if (!everything && !self.shadows[i].changed) continue;
        PB(ShadowValue) *value = &update->values[update->message.n_shadows];
        vmesh__v1__shadow_value__init(value);
        value->offset = self.shadows[i].offset, value->size = self.shadows[i].size;
        value->value = self.shadows[i].value;
        update->shadows[update->message.n_shadows++] = value;
        self.shadows[i].changed = false;
    }
    self.level_changed = false;
}

// The update has not gone out: what it says counts as changed, and its number, which Drained must not name, as free.
static void take_back(const struct update *update) {
    self.update_sequence--;
    self.updates--;
    self.level_changed |= update->message.n_lines > 0;
    for (size_t i = 0; i < update->message.n_shadows; i++)
        for (size_t k = 0; k < self.shadow_count; k++)
            if (self.shadows[k].offset == update->values[i].offset && self.shadows[k].size == update->values[i].size)
                self.shadows[k].changed = true;
}

static void send_update(bool everything) {
    static struct update update;
    if (self.irqchip == NULL || !(everything || wires_changed())) return;
    next_update(&update, everything);
    if (!answer(self.irqchip, 0, BODY(DEVICE_UPDATE), &update.message)) take_back(&update);
}

// Batches

static bool is_posted(const PB(Access) *access) {
    if (!access->write || access->region != 0) return false;
    for (size_t i = 0; i < self.device->register_rows; i++) {
        const struct registers *row = &self.device->registers[i];
        uint64_t past = access->offset - row->offset;
        if (row->write == WRITE_POSTED && access->size == row->size && access->offset >= row->offset &&
            past % row->size == 0 && past / row->size < row->count)
            return true;
    }
    return false;
}

// One access: its value if it reads; false for a bus error.
static bool perform(const PB(Access) *access, uint64_t *value) {
    uint32_t size = access->size;
    *value = 0;
    bool fits = access->region == 0 && (size == 1 || size == 2 || size == 4 || size == 8) &&
                (size & self.device->access_sizes) != 0 && access->offset % size == 0 &&
                size <= self.device->region_size && access->offset <= self.device->region_size - size;
    if (!fits) return false;
    uint64_t mask = size == 8 ? UINT64_MAX : (UINT64_C(1) << 8 * size) - 1;
    if (access->write) return self.device->write(access->offset, size, access->value & mask);
    if (!self.device->read(access->offset, size, value)) return false;
    *value &= mask;
    return true;
}

static void answer_batch(const struct client *client, uint64_t id, const struct link *link, struct update *update) {
    PB(BatchDone) done = VMESH__V1__BATCH_DONE__INIT;
    done.epoch = self.epoch, done.done = link->done, done.value = link->value, done.bus_error = link->bus_error;
    done.credits = WINDOW;
    done.time_ns = self.time_ns, done.quiet_until_ns = NEVER_NS;
    done.update = update != NULL ? &update->message : NULL;
    if (!answer(client, id, BODY(BATCH_DONE), &done) && update != NULL) take_back(update);
}

static void handle_batch(struct client *client, const PB(Packet) *packet) {
    static struct update update;
    const PB(AccessBatch) *batch = packet->access_batch;
    struct link *link = &self.links[client->hart];
    uint64_t count = batch->n_accesses, last = batch->sequence + count - 1;
    char expected[64], got[32];
    snprintf(got, sizeof got, "%" PRIu64, batch->epoch);
    if (link->identity_size != client->identity_size ||
        memcmp(link->identity, client->identity, client->identity_size) != 0) {
        refuse_request(client, packet, CODE(NOT_ALLOWED), "the newest connection of its hart", "another");
        return;
    }
    if (batch->epoch != self.epoch) {
        snprintf(expected, sizeof expected, "epoch %" PRIu64, self.epoch);
        refuse_request(client, packet, CODE(STALE_EPOCH), expected, got);
        return;
    }
    snprintf(got, sizeof got, "%" PRIu64, batch->sequence);
    if (packet->id == 0 || count == 0 || batch->sequence == 0 || last < batch->sequence) {
        refuse_request(client, packet, CODE(BAD_REQUEST), "a packet id, a sequence number and accesses", got);
        return;
    }
    if (last > link->done && batch->sequence > link->done + 1) {
        snprintf(expected, sizeof expected, "sequence %" PRIu64, link->done + 1);
        refuse_request(client, packet, CODE(BAD_REQUEST), expected, got);
        return;
    }
    if (last > link->done && last - link->done > WINDOW) {
        refuse_request(client, packet, CODE(TOO_MANY), "at most 1024 unacknowledged", "more");
        client->role = 0;
        return;
    }
    for (uint64_t i = 0; i + 1 < count; i++)
        if (!is_posted(batch->accesses[i])) {
            refuse_request(client, packet, CODE(BAD_REQUEST),
                           "only posted writes before the last access", "an access that waits");
            return;
        }
    if (last <= link->done) {  // the answer may have been lost, and what it said of lines and shadows with it
        next_update(&update, true);
        answer_batch(client, packet->id, link, &update);
        return;
    }
    for (uint64_t i = link->done + 1 - batch->sequence; i < count; i++) {
        link->bus_error = !perform(batch->accesses[i], &link->value);
        self.bus_errors += link->bus_error;
        self.accesses++;
    }
    self.batches++;
    if (batch->time_ns > self.time_ns) self.time_ns = batch->time_ns;
    link->done = last;
    write_slot();  // before the answer leaves: a successor then knows that these were made
    // Nobody may be waiting for the answer to posted writes: what they changed goes to the irqchip, which listens.
    if (is_posted(batch->accesses[count - 1]) || !wires_changed()) {
        answer_batch(client, packet->id, link, NULL);
    } else {
        next_update(&update, false);
        answer_batch(client, packet->id, link, &update);
    }
}

// Lifecycle

static void answer_health(const struct client *client, uint64_t id) {
    const struct { char *name; uint64_t value; } counters[] = {
        {"accesses", self.accesses}, {"batches", self.batches}, {"updates", self.updates},
        {"bus_errors", self.bus_errors}, {"refused", self.refused}, {"unsendable", self.unsendable},
    };
    enum { COUNT = sizeof counters / sizeof *counters };
    PB(HealthReport__CountersEntry) entries[COUNT], *places[COUNT];
    for (int i = 0; i < COUNT; i++) {
        vmesh__v1__health_report__counters_entry__init(&entries[i]);
        entries[i].key = counters[i].name, entries[i].value = counters[i].value;
        places[i] = &entries[i];
    }
    PB(HealthReport) report = VMESH__V1__HEALTH_REPORT__INIT;
    report.phase = self.phase, report.name = self.name, report.kind = self.device->kind, report.epoch = self.epoch;
    report.pid = getpid(), report.counters = places, report.n_counters = COUNT;
    answer(client, id, BODY(HEALTH_REPORT), &report);
}

static void handle_save(const struct client *client, const PB(Packet) *packet) {
    uint8_t bytes[STATE_BYTES];
    PB(ServiceState) state = VMESH__V1__SERVICE_STATE__INIT;
    state.type = self.device->state_type, state.version = self.device->state_version;
    state.bytes.len = self.device->save(bytes), state.bytes.data = bytes;
    answer(client, packet->id, BODY(SERVICE_STATE), &state);
}

static void handle_load(const struct client *client, const PB(Packet) *packet) {
    const PB(Load) *load = packet->load;
    const PB(ServiceState) *state = load->state;
    if (!load->check_only && self.phase != PHASE(PAUSED)) {
        refuse_request(client, packet, CODE(BAD_REQUEST), "Pause before it", "none");
        return;
    }
    const char *expected = NULL;
    if (state == NULL || strcmp(state->type, self.device->state_type) != 0)
        expected = self.device->state_type;
    else if (state->version < 1 || state->version > self.device->state_version)
        expected = "a version that this device knows";
    else
        expected = self.device->load(state->bytes.data, state->bytes.len, load->check_only);
    if (expected != NULL)
        refuse_request(client, packet, CODE(BAD_STATE), expected, "another state");
    else
        answer_done(client, packet->id);
}

static void handle_drain(const struct client *client, const PB(Packet) *packet) {
    // No batch ever waits here: each is executed when it comes.
    send_update(false);
    if (self.irqchip != NULL && wires_changed()) {
        refuse_request(client, packet, CODE(INTERNAL), "an irqchip that reads", "one that does not");
        return;
    }
    self.drained = true;
    PB(Drained) drained = VMESH__V1__DRAINED__INIT;
    drained.update_sequence = self.update_sequence;
    if (packet->id != 0) answer(client, packet->id, BODY(DRAINED), &drained);
}

// A request of a client that has said Hello.
static void handle(struct client *client, const PB(Packet) *packet) {
    const int role = client->role;
    int allowed;
    switch (packet->body_case) {
    case BODY(ACCESS_BATCH): allowed = ROLE(HART); break;
    case BODY(GUEST_TIME): allowed = ROLE(IRQCHIP); break;
    case BODY(PAUSE):
    case BODY(DRAIN):
    case BODY(SAVE):
    case BODY(LOAD):
    case BODY(RESUME):
    case BODY(RESET):
    case BODY(SHUTDOWN):
    case BODY(PROCESSES):
    case BODY(HEALTH): allowed = ROLE(MONITOR); break;
    default:
        refuse_request(client, packet, CODE(BAD_REQUEST), "a request that devices serve", kind_name(packet));
        return;
    }
    if (role != allowed) {
        refuse_request(client, packet, CODE(NOT_ALLOWED), "a client whose role allows it", client->name);
        return;
    }
    const bool paused = self.phase == PHASE(PAUSED);
    switch (packet->body_case) {
    case BODY(ACCESS_BATCH): handle_batch(client, packet); return;
    case BODY(GUEST_TIME): self.time_ns = packet->guest_time->now_ns; return;
    case BODY(HEALTH):
        if (packet->id != 0) answer_health(client, packet->id);
        return;
    case BODY(DRAIN):
        if (paused) handle_drain(client, packet);
        else refuse_request(client, packet, CODE(BAD_REQUEST), "Pause before it", "none");
        return;
    case BODY(SAVE):
        if (!self.drained) refuse_request(client, packet, CODE(BAD_REQUEST), "Drain before it", "none");
        else if (packet->id != 0) handle_save(client, packet);
        return;
    case BODY(LOAD): handle_load(client, packet); return;
    case BODY(PAUSE): self.phase = PHASE(PAUSED); break;
    case BODY(RESUME):
        self.phase = PHASE(RUNNING);
        self.drained = false;
        break;
    case BODY(RESET): self.device->reset(); break;
    case BODY(PROCESSES): break;  // may be ignored: whoever can enter the machine directory is believed here
    default:  // Shutdown
        self.phase = PHASE(STOPPING);
        self.stop = true;
    }
    answer_done(client, packet->id);
}

// Hello

static struct client *client_of(const uint8_t *identity, size_t size) {
    for (struct client *client = self.clients; client < self.clients + MAX_CLIENTS; client++)
        if (client->role != 0 && client->identity_size == size && memcmp(client->identity, identity, size) == 0)
            return client;
    return NULL;
}

static struct client *free_client(void) {
    for (int sweep = 0; sweep < 2; sweep++) {
        for (struct client *client = self.clients; client < self.clients + MAX_CLIENTS; client++)
            if (client->role == 0) return client;
        // A ROUTER tells who is gone only when something is sent there.
        PB(Packet) nothing = VMESH__V1__PACKET__INIT;
        for (struct client *client = self.clients; client < self.clients + MAX_CLIENTS; client++)
            send_packet(client->identity, client->identity_size, &nothing);
    }
    return NULL;
}

static bool is_name(const char *text) {
    static regex_t pattern;
    static bool compiled;
    if (!compiled) compiled = regcomp(&pattern, NAME_PATTERN, REG_EXTENDED | REG_NOSUB) == 0;
    return regexec(&pattern, text, 0, NULL, 0) == 0;
}

static void handle_hello(const uint8_t *identity, size_t identity_size, const PB(Packet) *packet) {
    const PB(Hello) *said = packet->hello;
    struct client *client = client_of(identity, identity_size);
    if (client != NULL) {
        client->role = 0;
        if (client == self.irqchip) self.irqchip = NULL;
    }
    char got[96], expected[96];
    const char *cause = NULL;
    if (said->major != MAJOR) {
        cause = "version";
        snprintf(expected, sizeof expected, "protocol %d.x", MAJOR);
        snprintf(got, sizeof got, "protocol %" PRIu32 ".%" PRIu32, said->major, said->minor);
    } else if (said->role < ROLE(MONITOR) || said->role > ROLE(CACHE)) {
        cause = "role";
        snprintf(expected, sizeof expected, "a Role of common.proto");
        snprintf(got, sizeof got, "%d", (int)said->role);
    } else if (!is_name(said->name)) {
        cause = "name";
        snprintf(expected, sizeof expected, "1 to 64 of [A-Za-z0-9._-]");
        snprintf(got, sizeof got, "'%.80s'", said->name);
    } else if (said->machine[0] != '\0' && strcmp(said->machine, self.machine_name) != 0) {
        cause = "machine";
        snprintf(expected, sizeof expected, "machine %.64s", self.machine_name);
        snprintf(got, sizeof got, "'%.80s'", said->machine);
    } else if (said->hart >= MAX_HARTS) {
        cause = "hart";
        snprintf(expected, sizeof expected, "a hart below %d", MAX_HARTS);
        snprintf(got, sizeof got, "%" PRIu32, said->hart);
    } else if ((client = free_client()) == NULL) {
        cause = "connections";
        snprintf(expected, sizeof expected, "at most %d connections", MAX_CLIENTS);
        snprintf(got, sizeof got, "one more");
    }
    if (cause != NULL) {
        refuse_peer(identity, identity_size, packet->id, cause, expected, got);
        return;
    }
    memcpy(client->identity, identity, identity_size), client->identity_size = identity_size;
    client->role = said->role, client->hart = said->hart;
    snprintf(client->name, sizeof client->name, "%s", said->name);
    PB(Welcome) welcome = VMESH__V1__WELCOME__INIT;
    welcome.major = MAJOR, welcome.minor = MINOR, welcome.name = self.name, welcome.kind = self.device->kind;
    welcome.epoch = self.epoch;
    if (client->role == ROLE(HART)) {
        // A new connection of the same hart: it replays what was not acknowledged.
        struct link *link = &self.links[client->hart];
        memcpy(link->identity, identity, identity_size), link->identity_size = identity_size;
        welcome.window = WINDOW, welcome.done = link->done;
    }
    answer(client, packet->id, BODY(WELCOME), &welcome);
    if (client->role == ROLE(IRQCHIP)) {
        self.irqchip = client;
        send_update(true);
    }
}

// The loop

// One frame of a message: its size, or -1 if none is there. `more`: whether another follows.
static int receive_frame(zmq_msg_t *frame, int *more) {
    zmq_msg_init(frame);
    int size = zmq_msg_recv(frame, self.router, ZMQ_DONTWAIT);
    *more = size >= 0 && zmq_msg_more(frame);
    return size;
}

static void receive(void) {
    // A bounded number, so that a flood does not keep the loop from the lifeline.
    for (int turn = 0; turn < 64 && !self.stop; turn++) {
        zmq_msg_t frame;
        int more;
        uint8_t identity[IDENTITY];
        int size = receive_frame(&frame, &more);
        if (size < 0) {
            zmq_msg_close(&frame);
            return;
        }
        size_t identity_size = size;
        memcpy(identity, zmq_msg_data(&frame), identity_size);  // at most 255 bytes
        zmq_msg_close(&frame);
        size = receive_frame(&frame, &more);
        if (more) {
            while (more) {
                zmq_msg_close(&frame);
                receive_frame(&frame, &more);
            }
            zmq_msg_close(&frame);
            refuse_peer(identity, identity_size, 0, "frames", "one frame", "several");
            continue;
        }
        PB(Packet) *packet = vmesh__v1__packet__unpack(NULL, size, zmq_msg_data(&frame));
        zmq_msg_close(&frame);
        if (packet == NULL) {
            refuse_peer(identity, identity_size, 0, "unparsable", "a vmesh.v1.Packet", "bytes that are none");
            continue;
        }
        struct client *client = client_of(identity, identity_size);
        if (packet->body_case == BODY(HELLO)) handle_hello(identity, identity_size, packet);
        else if (packet->body_case == VMESH__V1__PACKET__BODY__NOT_SET) ;
        else if (client == NULL)
            refuse_peer(identity, identity_size, packet->id, "no hello", "Hello first", kind_name(packet));
        else handle(client, packet);
        vmesh__v1__packet__free_unpacked(packet, NULL);
    }
}

// Whether the machine is gone: our socket, or another in its place.
static bool orphaned(void) {
    struct stat found;
    return stat(self.socket_path, &found) < 0 || found.st_ino != self.socket_stat.st_ino ||
           found.st_dev != self.socket_stat.st_dev;
}

static void run(void) {
    while (!self.stop) {
        zmq_pollitem_t items[] = {
            {self.router, 0, ZMQ_POLLIN, 0}, {NULL, self.signals, ZMQ_POLLIN, 0}, {NULL, self.lifeline, ZMQ_POLLIN, 0},
        };
        bool unsent = self.irqchip != NULL && wires_changed();
        long timeout = unsent ? RETRY_MS : self.lifeline < 0 ? LOOK_MS : -1;
        if (zmq_poll(items, self.lifeline < 0 ? 2 : 3, timeout) < 0 && errno != EINTR)
            fail("poll: %s", zmq_strerror(errno));
        if (items[1].revents != 0) self.stop = true;  // asked to end
        if (self.lifeline < 0 ? orphaned() : items[2].revents != 0) {
            log_line("warning", "the machine is gone");
            self.stop = true;
        }
        receive();
        write_slot();
        send_update(false);
    }
}

// Attaching

// Ask memory; gives its answer, to be freed.
static PB(Packet) *ask(const PB(Packet) *request) {
    size_t size = vmesh__v1__packet__get_packed_size(request);
    uint8_t *bytes = allocate(size);
    vmesh__v1__packet__pack(request, bytes);
    if (zmq_send(self.memory, bytes, size, ZMQ_DONTWAIT) < 0) fail("cannot ask memory: %s", zmq_strerror(errno));
    free(bytes);
    for (;;) {
        zmq_pollitem_t items[] = {
            {self.memory, 0, ZMQ_POLLIN, 0}, {NULL, self.signals, ZMQ_POLLIN, 0}, {NULL, self.lifeline, ZMQ_POLLIN, 0},
        };
        int ready = zmq_poll(items, self.lifeline < 0 ? 2 : 3, START_MS);
        if (ready < 0 && errno == EINTR) continue;
        if (ready == 0) fail("no answer from memory within %d s", START_MS / 1000);
        if (items[1].revents != 0 || (self.lifeline >= 0 && items[2].revents != 0)) exit(0);
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        int length = zmq_msg_recv(&frame, self.memory, ZMQ_DONTWAIT);
        PB(Packet) *packet = length < 0 ? NULL : vmesh__v1__packet__unpack(NULL, length, zmq_msg_data(&frame));
        zmq_msg_close(&frame);
        if (packet == NULL) fail("memory sent what is no packet");
        if (packet->id == request->id) return packet;
        vmesh__v1__packet__free_unpacked(packet, NULL);
    }
}

static void attach(void) {
    char address[136];
    snprintf(address, sizeof address, "ipc://%s/memory.sock", self.machine);
    self.memory = zmq_socket(self.context, ZMQ_DEALER);
    int interval = 5, linger = 0;
    zmq_setsockopt(self.memory, ZMQ_RECONNECT_IVL, &interval, sizeof interval);
    zmq_setsockopt(self.memory, ZMQ_LINGER, &linger, sizeof linger);
    if (zmq_connect(self.memory, address) < 0) fail("cannot connect to %s: %s", address, zmq_strerror(errno));

    PB(Hello) hello = VMESH__V1__HELLO__INIT;
    hello.major = MAJOR, hello.minor = MINOR, hello.role = ROLE(DEVICE);
    hello.name = self.name, hello.machine = self.machine_name;
    PB(Packet) request = packet_with(1, BODY(HELLO), &hello);
    PB(Packet) *said = ask(&request);
    if (said->body_case == BODY(REFUSED)) fail("memory refused: %.200s", said->refused->reason);
    if (said->body_case != BODY(WELCOME)) fail("memory answered: expected Welcome, got %s", kind_name(said));
    vmesh__v1__packet__free_unpacked(said, NULL);

    PB(Register) rows[64], *registers[64];
    PB(Region) region = VMESH__V1__REGION__INIT, *regions[] = {&region};
    PB(Line) line = VMESH__V1__LINE__INIT, *lines[] = {&line};
    region.name = "registers", region.base_address = self.base, region.size = self.device->region_size;
    region.access_sizes = self.device->access_sizes, region.registers = registers;
    for (size_t i = 0; i < self.device->register_rows && i < 64; i++) {
        const struct registers *row = &self.device->registers[i];
        vmesh__v1__register__init(&rows[i]);
        rows[i].name = row->name, rows[i].offset = row->offset, rows[i].size = row->size, rows[i].count = row->count;
        rows[i].read = row->read == READ_SHADOW ? VMESH__V1__READ_KIND__READ_SHADOW : VMESH__V1__READ_KIND__READ_SYNC;
        rows[i].write =
            row->write == WRITE_POSTED ? VMESH__V1__WRITE_KIND__WRITE_POSTED : VMESH__V1__WRITE_KIND__WRITE_SYNC;
        registers[region.n_registers++] = &rows[i];
    }
    line.name = self.device->line, line.irq = self.irq;
    PB(Description) description = VMESH__V1__DESCRIPTION__INIT;
    description.name = self.name, description.kind = (char *)self.device->kind;
    description.state_type = self.device->state_type, description.state_version = self.device->state_version;
    description.epoch = self.epoch, description.endpoint = self.endpoint;
    description.regions = regions, description.n_regions = 1;
    description.lines = lines, description.n_lines = self.device->line != NULL;
    description.dma = true;
    PB(Attach) attach = VMESH__V1__ATTACH__INIT;
    attach.description = &description;
    request = packet_with(2, BODY(ATTACH), &attach);
    said = ask(&request);
    if (said->body_case == BODY(ERROR)) {
        const PB(Error) *error = said->error;
        fail("%.200s%s%.100s%s%.100s", error->text, error->expected[0] ? ": expected " : "", error->expected,
             error->got[0] ? ", got " : "", error->got);
    }
    if (said->body_case != BODY(ATTACHED)) fail("memory answered: expected Attached, got %s", kind_name(said));
    guest_memory_map(said->attached);
    vmesh__v1__packet__free_unpacked(said, NULL);
}

// Start and end

static void listen_on_socket(void) {
    snprintf(self.socket_path, sizeof self.socket_path, "%s/%s.sock", self.machine, self.name);
    snprintf(self.endpoint, sizeof self.endpoint, "ipc://%s", self.socket_path);
    self.context = zmq_ctx_new();
    self.router = zmq_socket(self.context, ZMQ_ROUTER);
    int mandatory = 1, queue = QUEUE;
    int64_t largest = MAX_PACKET;
    zmq_setsockopt(self.router, ZMQ_ROUTER_MANDATORY, &mandatory, sizeof mandatory);
    zmq_setsockopt(self.router, ZMQ_SNDHWM, &queue, sizeof queue);
    zmq_setsockopt(self.router, ZMQ_RCVHWM, &queue, sizeof queue);
    zmq_setsockopt(self.router, ZMQ_MAXMSGSIZE, &largest, sizeof largest);
    unlink(self.socket_path);  // of an earlier life
    if (zmq_bind(self.router, self.endpoint) < 0 || stat(self.socket_path, &self.socket_stat) < 0)
        fail("cannot listen on %s: %s", self.socket_path, zmq_strerror(errno));
}

static uint64_t number(const char *option, const char *text) {
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 0);
    if (errno == 0 && end != text && *end == '\0' && text[0] != '-') return value;
    fprintf(stderr, "%s: --%s: '%s' is no number: expected e.g. 4096 or 0x1000\n", self.device->kind, option, text);
    exit(2);
}

static void parse(int argc, char **argv) {
    static const struct option options[] = {
        {"machine", required_argument, NULL, 'm'}, {"name", required_argument, NULL, 'n'},
        {"epoch", required_argument, NULL, 'e'}, {"lifeline", required_argument, NULL, 'l'},
        {"base", required_argument, NULL, 'b'}, {"irq", required_argument, NULL, 'i'}, {0},
    };
    self.name = self.device->kind, self.epoch = 1, self.lifeline = -1;
    int option, place;
    bool based = false;
    while ((option = getopt_long(argc, argv, "", options, &place)) != -1) switch (option) {
        case 'm': self.machine = realpath(optarg, NULL); break;
        case 'n': self.name = optarg; break;
        case 'e': self.epoch = number("epoch", optarg); break;
        case 'l': self.lifeline = number("lifeline", optarg); break;
        case 'b': self.base = number("base", optarg), based = true; break;
        case 'i': self.irq = number("irq", optarg); break;
        default: exit(2);
        }
    if (self.machine == NULL || !based || !is_name(self.name) || self.epoch == 0 || optind < argc) {
        fprintf(stderr, "usage: %s --machine DIR --base ADDRESS [--irq N] [--name NAME] [--epoch N] [--lifeline FD]\n",
                self.device->kind);
        exit(2);
    }
    if (strlen(self.machine) + strlen(self.name) + sizeof "/.sock" > 108)
        fail("the path of the socket is too long: %s", self.machine);
    self.machine_name = strrchr(self.machine, '/') + 1;
}

int serve(const struct device *device, int argc, char **argv) {
    self.device = device;
    log_as(device->kind);
    parse(argc, argv);
    log_as(self.name);
    umask(077);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    signal(SIGPIPE, SIG_IGN);
    self.signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    char path[256];
    snprintf(path, sizeof path, "%s/log", self.machine);
    log_open(path);
    self.phase = PHASE(STARTING);
    listen_on_socket();
    snprintf(path, sizeof path, "%s/%s.slot", self.machine, self.name);
    slot_open(path, self.epoch == 1);
    self.level_changed = device->line != NULL;  // nobody knows it yet
    device->reset();
    recover();
    write_slot();
    attach();
    // A later life that the monitor has started is told to go on.
    self.phase = self.epoch > 1 && self.lifeline >= 0 ? PHASE(PAUSED) : PHASE(RUNNING);
    log_line("info", "started kind=%s epoch=%" PRIu64 " pid=%d", device->kind, self.epoch, getpid());
    run();
    int linger = 200;  // ms, for the last answer
    zmq_setsockopt(self.router, ZMQ_LINGER, &linger, sizeof linger);
    zmq_close(self.router);
    zmq_close(self.memory);
    zmq_ctx_term(self.context);
    log_line("info", "ended");
    return 0;
}
