/* A stand-in for libcuda.so.1: cuDNN plans and compiles with it where there is no driver; nothing can be launched.
 *
 * Its GPU is an H100, unless a plan is asked for with the properties of another. The images of kernels that are loaded,
 * and the names of kernels that are fetched, go into the folder $STUB_IMAGES. What else is asked for does nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int ok(void) { return 0; }

static size_t size_of(const void *image) { /* an ELF, a fat binary or text */
  const unsigned char *b = image;
  if (b[0] == 0x7f && b[1] == 'E') {
    const Elf64_Ehdr *h = image;
    size_t sections = h->e_shoff + (size_t)h->e_shentsize * h->e_shnum;
    size_t programs = h->e_phoff + (size_t)h->e_phentsize * h->e_phnum;
    return sections > programs ? sections : programs;
  }
  if (b[0] == 0x50 && b[1] == 0xed)
    return *(const unsigned short *)(b + 6) + *(const unsigned long long *)(b + 8);
  return strlen(image);
}

static FILE *in_folder(const char *name, const char *mode) {
  const char *folder = getenv("STUB_IMAGES");
  char path[4096];
  if (!folder)
    return 0;
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return fopen(path, mode);
}

static int loaded(void **handle, const void *image) {
  static int count;
  char name[32];
  snprintf(name, sizeof name, "%06d.cubin", count++);
  FILE *f = in_folder(name, "wb");
  if (f) {
    fwrite(image, 1, size_of(image), f);
    fclose(f);
  }
  *handle = (void *)0x2000;
  return 0;
}

static int fetched(void **handle, const char *kernel) {
  FILE *f = in_folder("kernels", "a");
  if (f) {
    fprintf(f, "%s\n", kernel);
    fclose(f);
  }
  *handle = (void *)0x4000;
  return 0;
}

int cuDriverGetVersion(int *v) { return *v = 13000, 0; }
int cuDeviceGetCount(int *n) { return *n = 1, 0; }
int cuDeviceGet(int *d, int i) { return *d = 0, 0; }
int cuDeviceGetName(char *s, int n, int d) { return strncpy(s, "stub", n), 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { return *n = 85000000000ull, 0; }
int cuDeviceGetAttribute(int *v, int attribute, int d) {
  static const struct { int attribute, value; } facts[] = {
      {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},        /* threads of a block, and in its dimensions */
      {5, 2147483647}, {6, 65535}, {7, 65535},         /* blocks of a grid */
      {8, 49152}, {81, 233472}, {97, 232448},          /* shared memory: of a block, a multiprocessor, at most */
      {10, 32}, {12, 65536}, {82, 65536}, {39, 2048},  /* a warp; registers; threads of a multiprocessor */
      {16, 132}, {38, 52428800}, {75, 9}, {76, 0},     /* multiprocessors, L2, capability */
  };
  *v = 1;
  for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
    if (facts[i].attribute == attribute)
      *v = facts[i].value;
  return 0;
}
int cuCtxGetCurrent(void **c) { return *c = (void *)0x1000, 0; }
int cuCtxGetDevice(int *d) { return *d = 0, 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { return *c = (void *)0x1000, 0; }
int cuDevicePrimaryCtxGetState(int d, unsigned *flags, int *active) { return *flags = 0, *active = 1, 0; }
int cuGetExportTable(const void **t, const void *id) { return 1; }
int cuGetErrorString(int e, const char **s) { return *s = "stub", 0; }
int cuGetErrorName(int e, const char **s) { return *s = "stub", 0; }

int cuModuleLoadData(void **m, const void *i) { return loaded(m, i); }
int cuModuleLoadDataEx(void **m, const void *i, unsigned n, void *o, void *v) { return loaded(m, i); }
int cuModuleLoadFatBinary(void **m, const void *i) { return loaded(m, i); }
int cuLibraryLoadData(void **l, const void *i, void *a, void *b, unsigned c, void *d, void *e, unsigned f) {
  return loaded(l, i);
}
int cuLibraryGetModule(void **m, void *l) { return *m = (void *)0x2000, 0; }
int cuModuleGetFunction(void **f, void *m, const char *name) { return fetched(f, name); }
int cuLibraryGetKernel(void **k, void *l, const char *name) { return fetched(k, name); }
int cuKernelGetFunction(void **f, void *k) { return *f = (void *)0x4000, 0; }
int cuFuncGetAttribute(int *v, int a, void *f) { return *v = a == 4 ? 128 : 1024, 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *v, void *f, int b, size_t s) { return *v = 1, 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *v, void *f, int b, size_t s, unsigned g) {
  return *v = 1, 0;
}

/* what cuDNN looks up by name */
#define NOTHING(name) int name(void) { return 0; }
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxPopCurrent)
NOTHING(cuCtxPushCurrent)
NOTHING(cuKernelGetAttribute)
NOTHING(cuKernelSetAttribute)
NOTHING(cuLaunchCooperativeKernel)
NOTHING(cuLaunchKernel)
NOTHING(cuLaunchKernelEx)
NOTHING(cuLibraryLoadFromFile)
NOTHING(cuLibraryUnload)
NOTHING(cuLinkAddData)
NOTHING(cuLinkComplete)
NOTHING(cuLinkCreate)
NOTHING(cuLinkDestroy)
NOTHING(cuModuleUnload)
NOTHING(cuOccupancyMaxPotentialClusterSize)
NOTHING(cuStreamGetCtx)
NOTHING(cuTensorMapEncodeIm2col)
NOTHING(cuTensorMapEncodeTiled)

int cuGetProcAddress(const char *name, void **p, int version, unsigned long long flags) {
  void *self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), *found = 0;
  char second[256];
  snprintf(second, sizeof second, "%s_v2", name);
  if (self && !(found = dlsym(self, second)))
    found = dlsym(self, name);
  *p = found ? found : (void *)ok;
  return 0;
}
int cuGetProcAddress_v2(const char *name, void **p, int version, unsigned long long flags, int *status) {
  if (status)
    *status = 0;
  return cuGetProcAddress(name, p, version, flags);
}
