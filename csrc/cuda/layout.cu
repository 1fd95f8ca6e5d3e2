// The prefix scan that all ops of csrc start from: a block for each image, in it a warp for each line, which
// is a (granularity, row of regions). Reference: dqcore/ops/layout.py.
#include "cuda/launch.cuh"
#include "layout.h"

namespace dqcore::cuda {
namespace {

// The sum of `value` over the lanes of this warp, from the first to this one.
__device__ int32_t warp_inclusive_sum(int32_t value) {
  const unsigned lane = threadIdx.x % kWarp;
  for (unsigned distance = 1; distance < kWarp; distance *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += other;
  }
  return value;
}

// Replaces values[0..count) by their exclusive sums and writes the total to values[count]. Every thread of
// the block must call it.
__device__ void block_exclusive_sum(int32_t* values, int64_t count) {
  __shared__ int32_t warp_sums[kThreads / kWarp];
  int32_t before = 0;
  for (int64_t begin = 0; begin < count; begin += kThreads) {
    const int64_t index = begin + threadIdx.x;
    const int32_t value = index < count ? values[index] : 0;
    const int32_t sum = warp_inclusive_sum(value);
    if (threadIdx.x % kWarp == kWarp - 1) warp_sums[threadIdx.x / kWarp] = sum;
    __syncthreads();
    int32_t start = before;
    for (unsigned warp = 0; warp < kThreads / kWarp; ++warp) {
      if (warp < threadIdx.x / kWarp) start += warp_sums[warp];
      before += warp_sums[warp];
    }
    if (index < count) values[index] = start + sum - value;
    __syncthreads();
  }
  if (threadIdx.x == 0) values[count] = before;
}

// The granularity of a region, or -1 where the row of regions has ended.
__device__ int grain_of(const Layout& layout, int64_t regions, int64_t column) {
  return column < layout.columns ? layout.grain_at(regions + column) : -1;
}

// A warp takes a row of regions through all granularities; lane g counts those of granularity g. So a row is read from
// memory once, and found in the cache when its codes get their places.
__global__ void lay_out_images(Layout layout, bool row_first, int32_t* line_starts) {
  const int64_t rows = layout.rows, columns = layout.columns, lines = layout.granularities * rows;
  const int64_t first = blockIdx.x * rows * columns;
  const unsigned lane = threadIdx.x % kWarp, warps = kThreads / kWarp;
  const bool counts = lane < static_cast<unsigned>(layout.granularities);
  line_starts += blockIdx.x * (lines + 1);

  for (int64_t row = threadIdx.x / kWarp; row < rows; row += warps) {
    int32_t count = 0;
    for (int64_t column = lane; column - lane < columns; column += kWarp) {
      const int grain = grain_of(layout, first + row * columns, column);
      for (int other = 0; other < layout.granularities; ++other) {
        const unsigned mask = __ballot_sync(kAllLanes, grain == other);
        if (lane == static_cast<unsigned>(other)) count += __popc(mask);
      }
    }
    if (counts) line_starts[lane * rows + row] = count << (2 * lane);
  }
  __syncthreads();
  block_exclusive_sum(line_starts, lines);
  __syncthreads();

  for (int64_t row = threadIdx.x / kWarp; row < rows; row += warps) {
    const int64_t regions = first + row * columns;
    int32_t before = 0;
    for (int64_t column = lane; column - lane < columns; column += kWarp) {
      const int grain = grain_of(layout, regions, column);
      int32_t rank = 0;
      for (int other = 0; other < layout.granularities; ++other) {
        const unsigned mask = __ballot_sync(kAllLanes, grain == other);
        const int32_t past = __shfl_sync(kAllLanes, before, other);
        if (grain == other) rank = past + __popc(mask & ((1u << lane) - 1));
        if (lane == static_cast<unsigned>(other)) before += __popc(mask);
      }
      if (grain < 0) continue;
      const int32_t* line = line_starts + grain * rows + row;
      layout.starts[regions + column] = line[0] + (rank << (row_first ? grain : 2 * grain));
      layout.steps[regions + column] = row_first ? (line[1] - line[0]) >> grain : 1 << grain;
    }
  }
}

__global__ void add_up_images(Layout layout, const int32_t* line_starts) {
  const int64_t lines = layout.granularities * layout.rows;
  for (int64_t image = threadIdx.x; image < layout.images; image += kThreads) {
    layout.cu_seqlens[image] = line_starts[image * (lines + 1) + lines];
  }
  __syncthreads();
  block_exclusive_sum(layout.cu_seqlens, layout.images);
}

}  // namespace

int layout(const Layout& layout, bool row_first, int32_t* line_starts, Stream stream) {
  const unsigned images = static_cast<unsigned>(layout.images);
  const int error = launch(stream, images, kThreads, lay_out_images, layout, row_first, line_starts);
  return error != cudaSuccess ? error : launch(stream, 1, kThreads, add_up_images, layout, line_starts);
}

bool driver_suffices() {
  int driver = 0, runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || cudaRuntimeGetVersion(&runtime) != cudaSuccess) return true;
  return driver == 0 || driver / 1000 >= runtime / 1000;  // within a major version older drivers run newer code
}

const char* error_name(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }

}  // namespace dqcore::cuda
