/* A stub of libamdhip64.so with the functions that Triton looks up, by dlsym or by
   hipGetProcAddress, to load and launch kernels. */
#define __HIP_PLATFORM_AMD__
#include "state.h"
#include <hip/hip_runtime.h>
#include <hip/hip_deprecated.h>

/* the header gives this name to the newer layout; libamdhip64.so itself to the older one */
#undef hipGetDeviceProperties

const char *hipGetErrorString(hipError_t error) {
  switch (error) {
  case hipErrorLaunchFailure: return reason;
  case hipErrorInvalidValue: return "invalid argument";
  case hipErrorInvalidDevice: return "invalid device ordinal";
  case hipErrorInvalidImage: return "device kernel image is invalid";
  case hipErrorNotInitialized: return "nobody takes the launches";
  case hipErrorNotSupported: return "not supported by the stub";
  default: return "another error";
  }
}

hipError_t hipGetLastError(void) { return hipSuccess; }

hipError_t hipDriverGetVersion(int *version) {
  *version = HIP_VERSION;
  return hipSuccess;
}

/* the fields that Triton reads, in either layout */
#define SET_PROPERTIES(properties)                                                                 \
  memset(properties, 0, sizeof(*properties));                                                      \
  strcpy(properties->gcnArchName, ARCH);                                                           \
  properties->sharedMemPerBlock = 64 << 10;                                                        \
  properties->regsPerBlock = 65536;                                                                \
  properties->multiProcessorCount = 304;                                                           \
  properties->warpSize = 64;                                                                       \
  properties->maxThreadsPerMultiProcessor = 2048;                                                  \
  properties->cooperativeLaunch = 1

hipError_t hipGetDevicePropertiesR0600(hipDeviceProp_tR0600 *properties, int device) {
  if (device < 0 || device >= DEVICES) return hipErrorInvalidDevice;
  SET_PROPERTIES(properties);
  return hipSuccess;
}

hipError_t hipGetDeviceProperties(hipDeviceProp_tR0000 *properties, int device) {
  if (device < 0 || device >= DEVICES) return hipErrorInvalidDevice;
  SET_PROPERTIES(properties);
  return hipSuccess;
}

hipError_t hipModuleLoadDataEx(hipModule_t *module, const void *image, unsigned count,
                               hipJitOption *options, void **values) {
  if (!is_elf(image)) return hipErrorInvalidImage;
  if (current_device < 0) current_device = 0; /* HIP begins with the first device */
  *module = (hipModule_t)loaded_on(current_device);
  return hipSuccess;
}

hipError_t hipModuleUnload(hipModule_t module) { return hipSuccess; }

hipError_t hipModuleGetFunction(hipFunction_t *function, hipModule_t module, const char *name) {
  *function = (hipFunction_t)loaded_on(((loaded_t *)module)->device);
  return hipSuccess;
}

hipError_t hipFuncGetAttribute(int *value, hipFunction_attribute attribute,
                               hipFunction_t function) {
  *value = attribute == HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return hipSuccess;
}

hipError_t hipPointerGetAttribute(void *data, hipPointer_attribute attribute,
                                  hipDeviceptr_t pointer) {
  if (attribute != HIP_POINTER_ATTRIBUTE_DEVICE_POINTER) return hipErrorInvalidValue;
  *(hipDeviceptr_t *)data = pointer;
  return hipSuccess;
}

hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned grid_x, unsigned grid_y,
                                 unsigned grid_z, unsigned block_x, unsigned block_y,
                                 unsigned block_z, unsigned shared, hipStream_t stream,
                                 void **parameters, void **extra) {
  if (!receiver) return hipErrorNotInitialized;
  launch_t launch = {
      .function = (uint64_t)function,
      .stream = (uint64_t)stream,
      .current_device = current_device,
      .function_device = ((loaded_t *)function)->device,
      .grid = {grid_x, grid_y, grid_z},
      .block = {block_x, block_y, block_z},
      .shared = shared,
      .parameters = parameters,
  };
  return receiver(&launch, reason) ? hipErrorLaunchFailure : hipSuccess;
}

hipError_t hipModuleLaunchCooperativeKernel(hipFunction_t function, unsigned grid_x,
                                            unsigned grid_y, unsigned grid_z, unsigned block_x,
                                            unsigned block_y, unsigned block_z, unsigned shared,
                                            hipStream_t stream, void **parameters) {
  return hipErrorNotSupported;
}

/* clusters of blocks; what it is given is in no older header */
static hipError_t launch_clusters(const void *config, hipFunction_t function, void **parameters,
                                  void **extra) {
  return hipErrorNotSupported;
}

static const struct {
  const char *name;
  void *function;
} table[] = {
    {"hipGetErrorString", hipGetErrorString},
    {"hipGetLastError", hipGetLastError},
    {"hipGetDeviceProperties", hipGetDevicePropertiesR0600},
    {"hipModuleLoadDataEx", hipModuleLoadDataEx},
    {"hipModuleUnload", hipModuleUnload},
    {"hipModuleGetFunction", hipModuleGetFunction},
    {"hipFuncGetAttribute", hipFuncGetAttribute},
    {"hipPointerGetAttribute", hipPointerGetAttribute},
    {"hipModuleLaunchKernel", hipModuleLaunchKernel},
    {"hipModuleLaunchCooperativeKernel", hipModuleLaunchCooperativeKernel},
    {"hipDrvLaunchKernelEx", launch_clusters},
};

hipError_t hipGetProcAddress(const char *name, void **function, int version, uint64_t flags,
                             hipDriverProcAddressQueryResult *status) {
  for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
    if (strcmp(name, table[i].name) == 0) {
      *function = table[i].function;
      return hipSuccess;
    }
  }
  return hipErrorInvalidValue;
}
