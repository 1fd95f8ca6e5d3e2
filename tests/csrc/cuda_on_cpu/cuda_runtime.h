// Enough of CUDA to run csrc/cuda on a CPU, for tests where there is no GPU: blocks one after the other, the
// threads of a block as fibers that take turns at barriers. Not for speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  dim3 index;
  int waits;  // barriers passed
  bool done;
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  size_t current = 0;
  std::function<void()> body;
  uint64_t lanes[2048];
  int passed;  // barriers that all fibers have reached
};
inline Block block;

inline void yield() { swapcontext(&block.fibers[block.current].context, &block.scheduler); }

// Waits until all fibers of [begin, end) that still run have passed as many barriers as this one. In watch.cpp, where no
// access is noted: each fiber looks at all others.
void barrier(size_t begin, size_t end);

inline void warp_barrier() {
  const size_t warp = block.current / 32 * 32;
  barrier(warp, warp + 32);
}

// Runs the threads of one block.
void run_block(const std::function<void()>& body);

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::barrier(0, SIZE_MAX); }

inline unsigned __ballot_sync(unsigned, bool predicate) {
  using cuda_on_cpu::block;
  const size_t warp = block.current / 32 * 32;
  block.lanes[block.current] = predicate;
  cuda_on_cpu::warp_barrier();
  unsigned mask = 0;
  for (size_t lane = 0; lane < 32; ++lane)
    mask |= static_cast<unsigned>(block.lanes[warp + lane] != 0) << lane;
  cuda_on_cpu::warp_barrier();
  return mask;
}

inline int32_t __shfl_up_sync(unsigned, int32_t value, unsigned distance) {
  using cuda_on_cpu::block;
  const size_t lane = block.current % 32;
  block.lanes[block.current] = static_cast<uint32_t>(value);
  cuda_on_cpu::warp_barrier();
  const int32_t other =
      static_cast<int32_t>(block.lanes[lane < distance ? block.current : block.current - distance]);
  cuda_on_cpu::warp_barrier();
  return other;
}

inline int32_t __shfl_sync(unsigned, int32_t value, unsigned from) {
  using cuda_on_cpu::block;
  block.lanes[block.current] = static_cast<uint32_t>(value);
  cuda_on_cpu::warp_barrier();
  const int32_t other = static_cast<int32_t>(block.lanes[block.current / 32 * 32 + from]);
  cuda_on_cpu::warp_barrier();
  return other;
}

inline void __syncwarp() { cuda_on_cpu::warp_barrier(); }

inline float __shfl_xor_sync(unsigned, float value, unsigned distance) {
  using cuda_on_cpu::block;
  std::memcpy(&block.lanes[block.current], &value, sizeof value);
  cuda_on_cpu::warp_barrier();
  float other;
  std::memcpy(&other, &block.lanes[block.current ^ distance], sizeof other);
  cuda_on_cpu::warp_barrier();
  return other;
}

// Rounds down, and to the nearest number that there is; NaN becomes the smallest.
inline int __double2int_rd(double value) {
  return value > INT32_MIN ? static_cast<int>(std::floor(std::min<double>(value, INT32_MAX))) : INT32_MIN;
}

inline int __popc(unsigned mask) { return __builtin_popcount(mask); }

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidDevice = 101 };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

inline cudaError_t cudaDriverGetVersion(int* version) {
  const char* given = std::getenv("CUDA_ON_CPU_DRIVER");
  *version = given ? std::atoi(given) : 0;
  return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13010;
  return cudaSuccess;
}

inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "cudaErrorInvalidDevice";
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (unsigned y = 0; y < gridDim.y; ++y) {
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx = dim3(x, y);
      cuda_on_cpu::run_block([&] { kernel(arguments...); });
    }
  }
  return cudaSuccess;
}
