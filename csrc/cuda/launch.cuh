// How kernels are launched: on a device, on a stream, with the error returned.
#pragma once

#include <cuda_runtime.h>

#include "ops.h"

namespace dqcore::cuda {

constexpr int kThreads = 256;
constexpr unsigned kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// Launches a kernel; all launches of csrc go through here. With an empty grid it does nothing.
template <typename... Parameters, typename... Arguments>
int launch(Stream stream, dim3 grid, dim3 block, void (*kernel)(Parameters...), Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  // csrc links a CUDA runtime of its own, which does not see the current device that torch has set.
  const cudaError_t error = cudaSetDevice(stream.device);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = reinterpret_cast<cudaStream_t>(stream.handle);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace dqcore::cuda
