// Code sequence -> (code map, grain map): each thread fills the block of one code. No cell has two writers.
// Reference: dqcore.ops.unpack_codes.
#include <algorithm>

#include "cuda/launch.cuh"

namespace dqcore::cuda {
namespace {

// Skips the codes that the CPU would refuse, so that nothing is written outside the maps.
__global__ void unpack(Layout layout, Codes in, int64_t* __restrict__ code_map,
                       int64_t* __restrict__ grain_map) {
  const int64_t image = blockIdx.x, end = min(static_cast<int64_t>(layout.cu_seqlens[image + 1]), in.total);
  code_map += image * layout.cells();
  grain_map += image * layout.rows * layout.columns;
  int64_t index = max(layout.cu_seqlens[image], 0);
  index += static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  for (; index < end; index += static_cast<int64_t>(gridDim.y) * kThreads) {
    const int64_t grain = in.grains[index], position = in.positions[index];
    if (grain < 0 || grain >= layout.granularities) continue;
    if (position < 0 || position >= (layout.rows << grain) * (layout.columns << grain)) continue;
    // 32 bits suffice, as they do for the number of cells.
    const uint32_t width = static_cast<uint32_t>(layout.columns << grain);
    const uint32_t y = static_cast<uint32_t>(position) / width, x = static_cast<uint32_t>(position) % width;
    const int64_t side = int64_t{1} << (layout.shift() - grain), code = in.codes[index];
    int64_t* corner = code_map + y * side * layout.width() + x * side;
    for (int64_t cell = 0; cell < side * side; ++cell) {
      corner[(cell >> (layout.shift() - grain)) * layout.width() + (cell & (side - 1))] = code;
    }
    grain_map[(y >> grain) * layout.columns + (x >> grain)] = grain;
  }
}

}  // namespace

int unpack_codes(const Layout& layout, const Codes& in, int64_t* code_map, int64_t* grain_map,
                 Stream stream) {
  // A thread for each cell: a valid sequence has no more codes than that, and an invalid one need not be
  // fast.
  const unsigned parts = std::min(blocks_for(layout.cells(), kThreads), 65535u);
  const dim3 grid(static_cast<unsigned>(layout.images), parts);
  return launch(stream, grid, kThreads, unpack, layout, in, code_map, grain_map);
}

}  // namespace dqcore::cuda
