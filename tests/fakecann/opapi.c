// libopapi: the handles that aclnn calls take, and the two callbacks that every call ends in.
//
// A trampoline (generated, one per aclnn name) hands `plan` its number, the six integer registers, the eight floating
// point registers and the caller's stack: Python knows each operator's signature and reads them (calls.py). The second
// half of a call, aclnnX(workspace, size, executor, stream), runs what was planned under that executor.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MAGIC 0x4e4e41436b616600ull
enum { TENSOR = 1, SCALAR, INT_ARRAY, FLOAT_ARRAY, BOOL_ARRAY, TENSOR_LIST, SCALAR_LIST };
enum { NOT_THERE = 561000 };

typedef struct {
    uint64_t magic;
    int32_t kind, dtype;
    int64_t count;  // dims of a tensor, elements of an array
    int64_t offset, format;
    void *data;
    int64_t dims[16], strides[16];
    int64_t num_storage_dims, storage_dims[16];
} Handle;

typedef int (*Plan)(int, uint64_t *, double *, uint64_t *);
typedef int (*Run)(uint64_t);
static Plan plan;
static Run run;
extern const char *const fakecann_names[];
extern const int fakecann_num_names;

EXPORT void fakecann_set(Plan new_plan, Run new_run) { plan = new_plan; run = new_run; }
EXPORT const char *fakecann_name(int index) { return fakecann_names[index]; }
EXPORT int fakecann_count(void) { return fakecann_num_names; }

// The first call of a process that has not installed the emulator does it: the interpreter is in this very process.
static int install(void) {
    int (*ensure)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
    void (*release)(int) = (void (*)(int))dlsym(RTLD_DEFAULT, "PyGILState_Release");
    int (*evaluate)(const char *) = (int (*)(const char *))dlsym(RTLD_DEFAULT, "PyRun_SimpleString");
    const char *start = getenv("FAKECANN_START");
    if (!ensure || !release || !evaluate || !start) return 0;
    int state = ensure();
    evaluate(start);
    release(state);
    return plan != NULL;
}
EXPORT int fakecann_plan(int index, uint64_t *integers, double *floats, uint64_t *stack) {
    return plan || install() ? plan(index, integers, floats, stack) : NOT_THERE;
}
EXPORT int fakecann_run(void *workspace, uint64_t size, uint64_t executor, void *stream) {
    return run ? run(executor) : NOT_THERE;
}

static Handle *make(int kind) {
    Handle *handle = calloc(1, sizeof(Handle));
    handle->magic = MAGIC;
    handle->kind = kind;
    return handle;
}
static Handle *array(int kind, const void *values, uint64_t count, size_t size) {
    Handle *handle = make(kind);
    handle->count = (int64_t)count;
    handle->data = malloc(count * size + 1);
    memcpy(handle->data, values, count * size);
    return handle;
}
EXPORT void *aclCreateTensor(const int64_t *dims, uint64_t num_dims, int dtype, const int64_t *strides, int64_t offset,
                             int format, const int64_t *storage_dims, uint64_t num_storage_dims, void *data) {
    Handle *handle = make(TENSOR);
    handle->dtype = dtype;
    handle->count = (int64_t)num_dims;
    handle->offset = offset;
    handle->format = format;
    handle->data = data;
    memcpy(handle->dims, dims, 8 * num_dims);
    memcpy(handle->strides, strides, 8 * num_dims);
    handle->num_storage_dims = (int64_t)num_storage_dims;
    memcpy(handle->storage_dims, storage_dims, 8 * (num_storage_dims < 16 ? num_storage_dims : 16));
    return handle;
}
// Bytes of one value by aclDataType; only types that a scalar may have.
static size_t scalar_bytes(int dtype) {
    switch (dtype) {
        case 17: return 16;                            // complex128
        case 9: case 10: case 11: case 16: return 8;   // int64, uint64, float64, complex64
        case 0: case 3: case 8: return 4;              // float32, int32, uint32
        case 1: case 6: case 7: case 27: return 2;     // float16, int16, uint16, bfloat16
        default: return 1;
    }
}
EXPORT void *aclCreateScalar(void *value, int dtype) {
    Handle *handle = make(SCALAR);
    handle->dtype = dtype;
    memcpy(handle->dims, value, scalar_bytes(dtype));
    return handle;
}
EXPORT void *aclCreateIntArray(const int64_t *values, uint64_t count) { return array(INT_ARRAY, values, count, 8); }
EXPORT void *aclCreateFloatArray(const float *values, uint64_t count) { return array(FLOAT_ARRAY, values, count, 4); }
EXPORT void *aclCreateBoolArray(const char *values, uint64_t count) { return array(BOOL_ARRAY, values, count, 1); }
EXPORT void *aclCreateTensorList(void *values, uint64_t count) { return array(TENSOR_LIST, values, count, 8); }
EXPORT void *aclCreateScalarList(void *values, uint64_t count) { return array(SCALAR_LIST, values, count, 8); }

static int destroy(Handle *handle) {
    if (!handle) return 0;
    if (handle->kind == TENSOR_LIST || handle->kind == SCALAR_LIST)
        for (int64_t i = 0; i < handle->count; i++) destroy(((Handle **)handle->data)[i]);
    if (handle->kind > SCALAR) free(handle->data);
    handle->magic = 0;
    free(handle);
    return 0;
}
EXPORT int aclDestroyTensor(Handle *handle) { return destroy(handle); }
EXPORT int aclDestroyScalar(Handle *handle) { return destroy(handle); }
EXPORT int aclDestroyIntArray(Handle *handle) { return destroy(handle); }
EXPORT int aclDestroyFloatArray(Handle *handle) { return destroy(handle); }
EXPORT int aclDestroyBoolArray(Handle *handle) { return destroy(handle); }
EXPORT int aclDestroyTensorList(Handle *handle) { return destroy(handle); }
EXPORT int aclDestroyScalarList(Handle *handle) { return destroy(handle); }
EXPORT int aclDestroyAclOpExecutor(void *executor) { return 0; }
// The storage that aclnnNpuFormatCast will fill, by its public page: for FRACTAL_NZ [.., columns / c0, rows / 16, 16, c0] with
// c0 of 32 bytes, or of 32 values of FP4 that are to meet FP8 ones; ND is the view itself.
enum { ND = 2, FRACTAL_NZ = 29, FRACTAL_NZ_C0_32 = 51, INVALID = 161002, FP8_E4M3 = 36, FP4_E2M1 = 40 };
EXPORT int aclnnNpuFormatCastCalculateSizeAndFormat(const Handle *source, int to, int with, int64_t **dims, uint64_t *count,
                                                    int *format) {
    int64_t n = source->count, bytes = (int64_t)scalar_bytes(source->dtype);
    if ((to != ND && to != FRACTAL_NZ) || n < 2 || n > 6) return INVALID;
    if (source->dtype == FP4_E2M1 && with != FP8_E4M3) return INVALID;
    if (bytes > 2 && to == FRACTAL_NZ) return INVALID;
    *dims = malloc(8 * 8);
    memcpy(*dims, source->dims, 8 * n);
    *count = (uint64_t)n;
    *format = to;
    if (to == ND) return 0;
    int64_t c0 = source->dtype == FP4_E2M1 ? 32 : 32 / bytes, rows = source->dims[n - 2], columns = source->dims[n - 1];
    (*dims)[n - 2] = (columns + c0 - 1) / c0;
    (*dims)[n - 1] = (rows + 15) / 16;
    (*dims)[n] = 16;
    (*dims)[n + 1] = c0;
    *count = (uint64_t)n + 2;
    *format = source->dtype == FP4_E2M1 ? FRACTAL_NZ_C0_32 : FRACTAL_NZ;
    return 0;
}
// What an operator with an output of unknown size (nonzero) has found.
EXPORT int aclGetViewShape(Handle *handle, int64_t **dims, uint64_t *count) {
    *count = (uint64_t)handle->count;
    *dims = malloc(8 * 16);
    memcpy(*dims, handle->dims, 8 * 16);
    return 0;
}
