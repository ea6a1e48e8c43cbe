// A stand-in of CUDA's driver: the GPUs that CUDA_VISIBLE_DEVICES names when cuInit is called, by
// index or UUID, of those whose UUIDs stand in DASK_FABRIC_TEST_UUIDS. A context is a flag.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIMIT = 16, UUID_LENGTH = 40, DIGITS = 16 };
enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, NO_DEVICE = 100 };

static char all[LIMIT][UUID_LENGTH + 1];
static int count = -1;
static int visible[LIMIT];
static int active[LIMIT];
static void *current;

static int number_of(const char *name, int total) {
    if (name[0] >= '0' && name[0] <= '9') return atoi(name) < total ? atoi(name) : -1;
    for (int i = 0; i < total; i++)
        if (strncmp(all[i], name, strlen(name)) == 0) return i;
    return -1;
}

int cuInit(unsigned flags) {
    const char *uuids = getenv("DASK_FABRIC_TEST_UUIDS"), *names = getenv("CUDA_VISIBLE_DEVICES");
    char copy[1024];
    int total = 0;
    if (count >= 0) return SUCCESS;
    snprintf(copy, sizeof copy, "%s", uuids ? uuids : "");
    for (char *one = strtok(copy, ","); one && total < LIMIT; one = strtok(NULL, ","))
        snprintf(all[total++], UUID_LENGTH + 1, "%s", one);
    count = 0;
    if (names == NULL) {
        for (; count < total; count++) visible[count] = count;
    } else {
        snprintf(copy, sizeof copy, "%s", names);
        for (char *one = strtok(copy, ","); one; one = strtok(NULL, ",")) {
            int number = number_of(one, total);
            if (number < 0) break;
            visible[count++] = number;
        }
    }
    if (count == 0) {
        count = -1;
        return NO_DEVICE;
    }
    return flags ? INVALID_VALUE : SUCCESS;
}

int cuDeviceGetCount(int *found) {
    if (count < 0) return NOT_INITIALIZED;
    *found = count;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= count) return INVALID_VALUE;
    *device = ordinal;
    return SUCCESS;
}

int cuDeviceGetUuid_v2(unsigned char *content, int device) {
    const char *text = all[visible[device]] + 4;  // after GPU- or MIG-
    for (int i = 0; i < DIGITS; i++) {
        unsigned digit;
        while (*text == '-') text++;
        if (sscanf(text, "%2x", &digit) != 1) return INVALID_VALUE;
        content[i] = (unsigned char)digit;
        text += 2;
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active) {
    *flags = 0;
    *is_active = active[device];
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    active[device] = 1;
    *context = &active[device];
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    current = context;
    return SUCCESS;
}

int cuCtxGetCurrent(void **context) {
    *context = current;
    return SUCCESS;
}
