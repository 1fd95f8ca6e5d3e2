// What every launch needs: its device, its stream, and the error it may leave.
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

// Every launch goes through here. An empty grid is no error: there is nothing to do.
template <typename... Parameters, typename... Arguments>
int launch(Stream stream, dim3 grid, dim3 block, void (*kernel)(Parameters...), Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  // The static runtime has its own idea of the current device, torch's does not reach it.
  const cudaError_t error = cudaSetDevice(stream.device);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = reinterpret_cast<cudaStream_t>(stream.handle);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace dqcore::cuda
