// The part of the ACL runtime that torch_npu needs, on plain memory: device memory is malloc, streams run at once,
// events are clocks. Prototypes follow the public documentation of AscendCL; no header of CANN is used or copied.
//
//   FAKECANN_SOC     name of the chip, as aclrtGetSocName gives it      FAKECANN_COUNT   devices
//   FAKECANN_BYTES   memory of one device; an allocation beyond it fails
//   FAKECANN_VERSION   of CANN, as torch_npu asks it
#define _GNU_SOURCE
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
enum { OK = 0, INVALID_DEVICE = 107001, OUT_OF_MEMORY = 207001, NOT_SUPPORTED = 207000, EVENT_COMPLETE = 1 };

static long setting(const char *name, long usual) {
    const char *value = getenv(name);
    return value && *value ? atol(value) : usual;
}
static int num_devices(void) { return (int)setting("FAKECANN_COUNT", 1); }
static size_t capacity(void) { return (size_t)setting("FAKECANN_BYTES", 64000000000L); }

static __thread int current_device = 0;
static size_t used_bytes = 0;
static char recent_error[4096] = "";

// ------------------------------------------------------------------------------------------ start, devices, errors
EXPORT int aclInit(const char *config) { return OK; }
EXPORT int aclFinalize(void) { return OK; }
EXPORT int aclrtGetDeviceCount(uint32_t *count) { *count = (uint32_t)num_devices(); return OK; }
EXPORT int aclrtSetDevice(int32_t device) {
    if (device < 0 || device >= num_devices()) return INVALID_DEVICE;
    current_device = device;
    return OK;
}
EXPORT int aclrtResetDevice(int32_t device) { return OK; }
EXPORT int aclrtGetDevice(int32_t *device) { *device = current_device; return OK; }
EXPORT int aclrtGetCurrentContext(void **context) { *context = (void *)(uintptr_t)(0x1000 + current_device); return OK; }
EXPORT int aclrtSetCurrentContext(void *context) { current_device = (int)((uintptr_t)context - 0x1000); return OK; }
EXPORT int aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
    if (flags) *flags = 0;
    if (active) *active = 1;
    return OK;
}
EXPORT const char *aclrtGetSocName(void) {
    const char *name = getenv("FAKECANN_SOC");
    return name && *name ? name : "Ascend910B3";
}
EXPORT const char *aclGetRecentErrMsg(void) { return recent_error; }
EXPORT void fakecann_set_error(const char *text) { snprintf(recent_error, sizeof recent_error, "%s", text); }
EXPORT int aclrtPeekAtLastError(int level) { return OK; }
EXPORT int aclrtGetLastError(int level) { return OK; }
EXPORT int aclrtGetErrorVerbose(int device, void *error) { return OK; }
// Newest that torch_npu 2.13 asks for: it then takes the newest form of each operator. The version stands first in the
// structure that the older question fills.
static const char *cann_version(void) {
    const char *value = getenv("FAKECANN_VERSION");
    return value && *value ? value : "9.2.0";
}
EXPORT int aclsysGetVersionStr(char *package, char *version) { strcpy(version, cann_version()); return OK; }
EXPORT int aclsysGetCANNVersion(int package, char *version) { strcpy(version, cann_version()); return OK; }
EXPORT int aclGetCannAttribute(int attribute, int32_t *value) { *value = 0; return OK; }
EXPORT int aclGetDeviceCapability(uint32_t device, int item, int64_t *value) { *value = 24; return OK; }
EXPORT int aclrtGetDeviceInfo(uint32_t device, int attribute, int64_t *value) { *value = 0; return OK; }
EXPORT int aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) { *can = 1; return OK; }
EXPORT int aclrtGetLogicDevIdByUserDevId(int32_t user, int32_t *logic) { *logic = user; return OK; }

// ----------------------------------------------------------------------------------------------------------- memory
EXPORT int aclrtMalloc(void **out, size_t size, int policy) {
    *out = NULL;
    size = size ? size : 512;
    if (used_bytes + size > capacity() || posix_memalign(out, 512, size)) return OUT_OF_MEMORY;
    __sync_fetch_and_add(&used_bytes, malloc_usable_size(*out));
    // What a kernel does not write must not look like a result: uninitialised device memory is NaN in every format.
    memset(*out, 0xff, size);
    return OK;
}
EXPORT int aclrtMallocAlign32(void **out, size_t size, int policy) { return aclrtMalloc(out, size, policy); }
EXPORT int aclrtFree(void *memory) {
    if (memory) __sync_fetch_and_sub(&used_bytes, malloc_usable_size(memory));
    free(memory);
    return OK;
}
EXPORT int aclrtMallocHost(void **out, size_t size) { return posix_memalign(out, 512, size ? size : 512) ? OUT_OF_MEMORY : OK; }
EXPORT int aclrtMallocHostWithCfg(void **out, uint64_t size, void *config) { return aclrtMallocHost(out, size); }
EXPORT int aclrtFreeHost(void *memory) { free(memory); return OK; }
EXPORT int aclrtMemcpy(void *to, size_t room, const void *from, size_t size, int kind) {
    if (size > room) return NOT_SUPPORTED;
    memcpy(to, from, size);
    return OK;
}
EXPORT int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t size, int kind, void *stream) {
    return aclrtMemcpy(to, room, from, size, kind);
}
EXPORT int aclrtMemset(void *to, size_t room, int32_t value, size_t size) { memset(to, value, size); return OK; }
EXPORT int aclrtMemsetAsync(void *to, size_t room, int32_t value, size_t size, void *stream) { memset(to, value, size); return OK; }
EXPORT int aclrtGetMemInfo(int kind, size_t *free_bytes, size_t *total) {
    *total = capacity();
    *free_bytes = *total > used_bytes ? *total - used_bytes : 0;
    return OK;
}
EXPORT int aclrtReserveMemAddress(void **out, size_t size, size_t alignment, void *expected, uint64_t flags) { return NOT_SUPPORTED; }
EXPORT int aclrtHostRegister(void *memory, uint64_t size, int type, void **device) { *device = memory; return OK; }
EXPORT int aclrtHostUnregister(void *memory) { return OK; }

// ------------------------------------------------------------------------------------------------ streams and events
static long next_stream = 1;
EXPORT int aclrtCreateStream(void **stream) { *stream = (void *)(0x10000 + 16 * __sync_fetch_and_add(&next_stream, 1)); return OK; }
EXPORT int aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flag) { return aclrtCreateStream(stream); }
EXPORT int aclrtStreamGetId(void *stream, int32_t *id) { *id = (int32_t)((uintptr_t)stream >> 4); return OK; }
EXPORT int aclrtStreamQuery(void *stream, int *status) { *status = 0; return OK; }
EXPORT int aclrtDestroyStreamForce(void *stream) { return OK; }
EXPORT int aclrtCreateEventExWithFlag(void **event, uint32_t flag) { *event = calloc(1, sizeof(struct timespec)); return OK; }
EXPORT int aclrtCreateEventWithFlag(void **event, uint32_t flag) { return aclrtCreateEventExWithFlag(event, flag); }
EXPORT int aclrtDestroyEvent(void *event) { free(event); return OK; }
EXPORT int aclrtRecordEvent(void *event, void *stream) {
    if (event) clock_gettime(CLOCK_MONOTONIC, event);
    return OK;
}
EXPORT int aclrtQueryEventStatus(void *event, int *status) { *status = EVENT_COMPLETE; return OK; }
EXPORT int aclrtQueryEventWaitStatus(void *event, int *status) { *status = 0; return OK; }
EXPORT int aclrtEventElapsedTime(float *ms, void *start, void *end) {
    struct timespec *a = start, *b = end;
    *ms = (float)((b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) * 1e-6);
    return OK;
}
EXPORT int aclrtSynchronizeDevice(void) { return OK; }
EXPORT int aclrtSynchronizeDeviceWithTimeout(int32_t timeout) { return OK; }
EXPORT int aclrtSynchronizeStreamWithTimeout(void *stream, int32_t timeout) { return OK; }

// ------------------------------------------------------------------------ settings that change nothing in an emulator
EXPORT int aclrtSetSysParamOpt(int option, int64_t value) { return OK; }
EXPORT int aclrtCtxSetSysParamOpt(int option, int64_t value) { return OK; }
EXPORT int aclrtGetSysParamOpt(int option, int64_t *value) { *value = 0; return OK; }
EXPORT int aclrtSetDeviceSatMode(int mode) { return OK; }
EXPORT int aclrtSetOpExecuteTimeOut(uint32_t timeout) { return OK; }
EXPORT int aclrtSetOpExecuteTimeOutV2(uint64_t timeout, uint64_t *actual) {
    if (actual) *actual = timeout;
    return OK;
}
EXPORT int aclrtSetOpWaitTimeout(uint32_t timeout) { return OK; }
EXPORT int aclrtSetStreamFailureMode(void *stream, uint64_t mode) { return OK; }
EXPORT int aclrtSetStreamOverflowSwitch(void *stream, uint32_t flag) { return OK; }
EXPORT int aclrtGetStreamOverflowSwitch(void *stream, uint32_t *flag) { *flag = 0; return OK; }
EXPORT int aclSetCompileopt(int option, const char *value) { return OK; }
EXPORT size_t aclGetCompileoptSize(int option) { return 256; }
EXPORT int aclGetCompileopt(int option, char *value, size_t size) {
    if (size) value[0] = 0;
    return OK;
}
// The older way to run an operator, by its name. A zero here would leave its results as they were and say nothing.
EXPORT int aclopCompileAndExecute(const char *name) {
    snprintf(recent_error, sizeof recent_error, "fakecann: the operator %s was asked for as aclop, which is not emulated", name);
    return NOT_SUPPORTED;
}
EXPORT int aclopStartDumpArgs(uint32_t type, const char *path) { return OK; }
EXPORT int aclopStopDumpArgs(uint32_t type) { return OK; }
