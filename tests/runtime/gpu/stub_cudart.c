/* A libcudart whose devices are in the host's memory, for tests without a GPU.
 *
 * As on a GPU, copies from memory that is not page-locked, copies within the device and fills are done
 * only when the default stream is waited for, or something is copied to the host.
 */
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *target;
    char *data;
    size_t pitch, width, rows;
} Work;

static struct {
    int devices, driver, runtime;
    size_t memory, used;
    const char *failing;
    int code;
} settings = {1, 13000, 13000, 1 << 20, 0, "", 0};
static Work queue[64];
static int queued, last_error, waits, selections;
static void *locked[64];
static size_t sizes[64], locked_sizes[64];
static void *blocks[64];
static _Thread_local int device;

/* === What tests set and ask === */

void stub_reset(int devices, int driver, int runtime, size_t memory) {
    settings.devices = devices, settings.driver = driver, settings.runtime = runtime;
    settings.memory = memory, settings.used = 0, settings.failing = "", settings.code = 0;
    queued = last_error = waits = selections = device = 0;
}

void stub_fail(const char *function, int code) {
    static char name[64];
    strncpy(name, function, sizeof name - 1);
    settings.failing = name, settings.code = code;
}

int stub_last_error(void) { return last_error; }
int stub_waits(void) { return waits; }
int stub_selections(void) { return selections; }
int stub_device(void) { return device; }
size_t stub_used(void) { return settings.used; }

int stub_locked(void) {
    int count = 0;
    for (int i = 0; i < 64; i++) count += locked[i] != NULL;
    return count;
}

/* === What it is made of === */

static int give(int code) {
    if (code) last_error = code;
    return code;
}

static int failed(const char *function) {
    if (settings.driver == 0 || settings.driver / 1000 < settings.runtime / 1000) return give(35);
    if (settings.devices == 0) return give(100);
    return strcmp(settings.failing, function) ? 0 : give(settings.code);
}

static int is_locked(const char *address) {
    for (int i = 0; i < 64; i++) {
        const char *start = locked[i];
        if (start && address >= start && address < start + locked_sizes[i]) return 1;
    }
    return 0;
}

static void work(void) {
    for (int i = 0; i < queued; i++) {
        Work *w = &queue[i];
        for (size_t row = 0; row < w->rows; row++)
            memcpy(w->target + row * w->pitch, w->data + row * w->width, w->width);
        free(w->data);
    }
    queued = 0;
}

static void later(char *target, size_t pitch, const char *source, size_t stride, size_t width, size_t rows) {
    if (queued == 64) work();
    Work w = {target, malloc(width * rows + 1), pitch, width, rows};
    for (size_t row = 0; row < rows; row++) memcpy(w.data + row * width, source + row * stride, width);
    queue[queued++] = w;
}

static int take(void **address, size_t size, void **table, size_t *lengths) {
    if (posix_memalign(address, 256, size)) return give(2);
    memset(*address, 0xAB, size);
    for (int i = 0; i < 64; i++)
        if (!table[i]) {
            table[i] = *address, lengths[i] = size;
            return 0;
        }
    abort();
}

static int leave(void *address, void **table, size_t *size, size_t *lengths) {
    for (int i = 0; i < 64; i++)
        if (table[i] == address) {
            free(address);
            table[i] = NULL, *size = lengths[i];
            return 0;
        }
    return give(1);
}

/* === CUDA's functions === */

const char *cudaGetErrorName(int code) {
    switch (code) {
    case 1: return "cudaErrorInvalidValue";
    case 2: return "cudaErrorMemoryAllocation";
    case 3: return "cudaErrorInitializationError";
    case 4: return "cudaErrorCudartUnloading";
    case 12: return "cudaErrorInvalidPitchValue";
    case 35: return "cudaErrorInsufficientDriver";
    case 100: return "cudaErrorNoDevice";
    case 101: return "cudaErrorInvalidDevice";
    default: return "cudaErrorUnknown";
    }
}

const char *cudaGetErrorString(int code) {
    switch (code) {
    case 2: return "out of memory";
    case 35: return "CUDA driver version is insufficient for CUDA runtime version";
    case 100: return "no CUDA-capable device is detected";
    default: return "told by the stub";
    }
}

int cudaGetLastError(void) {
    int code = last_error;
    last_error = 0;
    return code;
}

int cudaRuntimeGetVersion(int *version) { return *version = settings.runtime, 0; }
int cudaDriverGetVersion(int *version) { return *version = settings.driver, 0; }

int cudaGetDeviceCount(int *count) {
    int code = failed("cudaGetDeviceCount");
    *count = code ? 0 : settings.devices;
    return code;
}

int cudaGetDeviceProperties(char *properties, int index) {
    int code = failed("cudaGetDeviceProperties");
    if (code) return code;
    if (index < 0 || index >= settings.devices) return give(101);
    memset(properties, 0x7F, 1008);
    strcpy(properties, "Stub GPU 0");
    properties[9] += index;
    memcpy(properties + 288, &settings.memory, sizeof(size_t));
    return 0;
}

int cudaSetDevice(int index) {
    int code = failed("cudaSetDevice");
    if (code) return code;
    if (index < 0 || index >= settings.devices) return give(101);
    selections++;
    device = index;
    return 0;
}

int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    int code = failed("cudaMemGetInfo");
    *free_bytes = settings.memory - settings.used, *total = settings.memory;
    return code;
}

int cudaMalloc(void **address, size_t size) {
    int code = failed("cudaMalloc");
    if (code) return code;
    if (size > settings.memory - settings.used) return give(2);
    settings.used += size;
    return take(address, size, blocks, sizes);
}

int cudaFree(void *address) {
    int code = failed("cudaFree");
    size_t size = 0;
    if (code) return code;
    work();
    code = leave(address, blocks, &size, sizes);
    settings.used -= size;
    return code;
}

int cudaMallocHost(void **address, size_t size) {
    int code = failed("cudaMallocHost");
    return code ? code : take(address, size, locked, locked_sizes);
}

int cudaFreeHost(void *address) {
    int code = failed("cudaFreeHost");
    size_t size;
    return code ? code : leave(address, locked, &size, locked_sizes);
}

int cudaMemset(char *target, int value, size_t size) {
    int code = failed("cudaMemset");
    if (code) return code;
    char *values = malloc(size);
    memset(values, value, size);
    later(target, size, values, size, size, 1);
    free(values);
    return 0;
}

int cudaMemcpy(char *target, const char *source, size_t size, int kind) {
    int code = failed("cudaMemcpy");
    if (code) return code;
    if (kind < 1 || kind > 3) return give(21);
    if (kind == 2) {
        work();
        memcpy(target, source, size);
        return 0;
    }
    later(target, size, source, size, size, 1);
    if (kind == 1 && is_locked(source)) work();
    return 0;
}

int cudaMemcpy2D(char *target, size_t pitch, const char *source, size_t stride, size_t width, size_t rows,
                 int kind) {
    int code = failed("cudaMemcpy2D");
    if (code) return code;
    if (pitch < width || stride < width) return give(12);
    if (kind != 3) return give(21);
    work();
    later(target, pitch, source, stride, width, rows);
    return 0;
}

int cudaStreamSynchronize(void *stream) {
    int code = failed("cudaStreamSynchronize");
    if (code) return code;
    if (stream) return give(1);
    waits++;
    work();
    return 0;
}
