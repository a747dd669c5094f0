// Collectives between processes of one machine over POSIX shared memory: each rank has a slot that all can read.
// Follows the public HCCL interface as torch_npu calls it; no header of CANN is used.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define SLOT_BYTES ((size_t)1 << 20)
#define ROOT_INFO_BYTES 4108
enum { OK = 0, FAILED = 2 };
enum { SUM, PROD, MAX, MIN };

typedef struct { volatile int arrived, generation; } Gate;
typedef struct { Gate *gate; char *slots; size_t size, rank; char name[64]; } Group;

static void wait_for_all(Group *group) {
    int generation = group->gate->generation;
    if (__sync_add_and_fetch(&group->gate->arrived, 1) == (int)group->size) {
        group->gate->arrived = 0;
        __sync_synchronize();
        group->gate->generation = generation + 1;
    } else {
        while (group->gate->generation == generation) sched_yield();
    }
}
static char *slot(Group *group, size_t rank) { return group->slots + rank * SLOT_BYTES; }

// HcclDataType: int8 int16 int32 fp16 fp32 int64 uint64 uint8 uint16 uint32 fp64 bfp16
static size_t value_bytes(int type) {
    static const size_t sizes[] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2};
    if (type < 0 || type > 11) abort();
    return sizes[type];
}
static double load(const char *from, int type, size_t i) {
    uint32_t bits;
    float value;
    switch (type) {
        case 0: return ((const int8_t *)from)[i];
        case 2: return ((const int32_t *)from)[i];
        case 3: return (double)((const _Float16 *)from)[i];
        case 4: return ((const float *)from)[i];
        case 5: return (double)((const int64_t *)from)[i];
        case 7: return ((const uint8_t *)from)[i];
        case 10: return ((const double *)from)[i];
        case 11:
            bits = (uint32_t)((const uint16_t *)from)[i] << 16;
            memcpy(&value, &bits, 4);
            return value;
    }
    abort();
}
static void store(char *to, int type, size_t i, double value) {
    uint32_t bits;
    float narrow = (float)value;
    switch (type) {
        case 0: ((int8_t *)to)[i] = (int8_t)value; return;
        case 2: ((int32_t *)to)[i] = (int32_t)value; return;
        case 3: ((_Float16 *)to)[i] = (_Float16)value; return;
        case 4: ((float *)to)[i] = narrow; return;
        case 5: ((int64_t *)to)[i] = (int64_t)value; return;
        case 7: ((uint8_t *)to)[i] = (uint8_t)value; return;
        case 10: ((double *)to)[i] = value; return;
        case 11:
            memcpy(&bits, &narrow, 4);
            ((uint16_t *)to)[i] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
            return;
    }
    abort();
}
static double combine(double a, double b, int op) {
    if (op == SUM) return a + b;
    if (op == PROD) return a * b;
    return op == MAX ? (a > b ? a : b) : (a < b ? a : b);
}

EXPORT int HcclGetRootInfo(char *info) {
    static int count;
    memset(info, 0, ROOT_INFO_BYTES);
    snprintf(info, 64, "/fakehccl-%d-%d", getpid(), count++);
    return OK;
}
EXPORT int HcclCommInitRootInfo(uint32_t size, const char *info, uint32_t rank, void **out) {
    size_t length = 4096 + size * SLOT_BYTES;
    int file = shm_open(info, O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, (off_t)length)) return FAILED;
    char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return FAILED;
    Group *group = calloc(1, sizeof(Group));
    group->gate = (Gate *)memory;
    group->slots = memory + 4096;
    group->size = size;
    group->rank = rank;
    snprintf(group->name, sizeof group->name, "%s", info);
    wait_for_all(group);
    if (rank == 0) shm_unlink(info);
    *out = group;
    return OK;
}
EXPORT int HcclCommInitRootInfoConfig(uint32_t size, const char *info, uint32_t rank, const void *config, void **out) {
    return HcclCommInitRootInfo(size, info, rank, out);
}
EXPORT uint32_t HcclGetCommConfigCapability(void) { return 0; }
EXPORT int HcclCommDestroy(Group *group) {
    munmap(group->gate, 4096 + group->size * SLOT_BYTES);
    free(group);
    return OK;
}
EXPORT int HcclGetCommName(Group *group, char *out) { strcpy(out, group->name); return OK; }
EXPORT int HcclGetCommAsyncError(void *group, int *error) { *error = OK; return OK; }
EXPORT int HcclSetConfig(int key, int value) { return OK; }

// Everything is done in pieces of a slot: write one's own, wait, read the others', wait.
static int reduce(Group *group, const char *in, char *out, size_t total, size_t first, size_t count, int type, int op) {
    size_t width = value_bytes(type), most = SLOT_BYTES / width;
    for (size_t base = 0; base < total; base += most) {
        size_t piece = total - base < most ? total - base : most;
        memcpy(slot(group, group->rank), in + base * width, piece * width);
        wait_for_all(group);
        for (size_t i = 0; i < piece; i++) {
            if (base + i < first || base + i >= first + count) continue;
            double value = load(slot(group, 0), type, i);
            for (size_t rank = 1; rank < group->size; rank++) value = combine(value, load(slot(group, rank), type, i), op);
            store(out, type, base + i - first, value);
        }
        wait_for_all(group);
    }
    return OK;
}
EXPORT int HcclAllReduce(void *in, void *out, uint64_t count, int type, int op, Group *group, void *stream) {
    return reduce(group, in, out, count, 0, count, type, op);
}
EXPORT int HcclReduceScatter(void *in, void *out, uint64_t count, int type, int op, Group *group, void *stream) {
    return reduce(group, in, out, count * group->size, group->rank * count, count, type, op);
}
EXPORT int HcclAllGather(void *in, void *out, uint64_t count, int type, Group *group, void *stream) {
    size_t length = count * value_bytes(type);
    for (size_t base = 0; base < length; base += SLOT_BYTES) {
        size_t piece = length - base < SLOT_BYTES ? length - base : SLOT_BYTES;
        memcpy(slot(group, group->rank), (char *)in + base, piece);
        wait_for_all(group);
        for (size_t rank = 0; rank < group->size; rank++) memcpy((char *)out + rank * length + base, slot(group, rank), piece);
        wait_for_all(group);
    }
    return OK;
}
EXPORT int HcclBroadcast(void *data, uint64_t count, int type, uint32_t root, Group *group, void *stream) {
    size_t length = count * value_bytes(type);
    for (size_t base = 0; base < length; base += SLOT_BYTES) {
        size_t piece = length - base < SLOT_BYTES ? length - base : SLOT_BYTES;
        if (group->rank == root) memcpy(slot(group, root), (char *)data + base, piece);
        wait_for_all(group);
        if (group->rank != root) memcpy((char *)data + base, slot(group, root), piece);
        wait_for_all(group);
    }
    return OK;
}
EXPORT int HcclScatter(void *in, void *out, uint64_t count, int type, uint32_t root, Group *group, void *stream) {
    size_t length = count * value_bytes(type);
    for (size_t base = 0; base < length; base += SLOT_BYTES) {
        size_t piece = length - base < SLOT_BYTES ? length - base : SLOT_BYTES;
        if (group->rank == root)
            for (size_t rank = 0; rank < group->size; rank++) memcpy(slot(group, rank), (char *)in + rank * length + base, piece);
        wait_for_all(group);
        memcpy((char *)out + base, slot(group, group->rank), piece);
        wait_for_all(group);
    }
    return OK;
}
// Each rank's slot holds what it sends, in the order of the receivers; counts and places are in values.
EXPORT int HcclAlltoAllV(const void *in, const uint64_t *counts, const uint64_t *places, int type, void *out,
                         const uint64_t *in_counts, const uint64_t *in_places, int out_type, Group *group, void *stream) {
    size_t width = value_bytes(type), filled = 0, share = SLOT_BYTES / group->size / width * width;
    for (size_t rank = 0; rank < group->size; rank++) if (counts[rank] * width > filled) filled = counts[rank] * width;
    // The number of rounds must be the same everywhere: the longest message of all, told through the slots.
    memcpy(slot(group, group->rank), &filled, sizeof filled);
    wait_for_all(group);
    for (size_t rank = 0; rank < group->size; rank++) {
        size_t other;
        memcpy(&other, slot(group, rank), sizeof other);
        if (other > filled) filled = other;
    }
    wait_for_all(group);
    for (size_t base = 0; base < filled; base += share) {
        for (size_t rank = 0; rank < group->size; rank++) {
            size_t length = counts[rank] * width;
            size_t piece = base >= length ? 0 : length - base < share ? length - base : share;
            memcpy(slot(group, group->rank) + rank * share, (const char *)in + places[rank] * width + base, piece);
        }
        wait_for_all(group);
        for (size_t rank = 0; rank < group->size; rank++) {
            size_t length = in_counts[rank] * width;
            size_t piece = base >= length ? 0 : length - base < share ? length - base : share;
            memcpy((char *)out + in_places[rank] * width + base, slot(group, rank) + group->rank * share, piece);
        }
        wait_for_all(group);
    }
    return OK;
}
