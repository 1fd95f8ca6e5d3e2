// Code sequence -> (code map, grain map): one thread a code, which fills its block. Each cell has one writer.
// Reference: dqcore.ops.unpack_codes.
#include <algorithm>

#include "cuda/launch.cuh"

namespace dqcore::cuda {
namespace {

// Codes that the CPU would refuse are left out, so that no write leaves the maps.
__global__ void unpack(Layout layout, Codes in, int64_t* __restrict__ code_map,
                       int64_t* __restrict__ grain_map) {
  const int64_t image = blockIdx.x, end = min(static_cast<int64_t>(layout.cu_seqlens[image + 1]), in.total);
  code_map += image * layout.cells();
  grain_map += image * layout.rows * layout.columns;
  int64_t slot = max(layout.cu_seqlens[image], 0) + static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  for (; slot < end; slot += static_cast<int64_t>(gridDim.y) * kThreads) {
    const int64_t grain = in.grains[slot], position = in.positions[slot];
    if (grain < 0 || grain >= layout.granularities) continue;
    if (position < 0 || position >= (layout.rows << grain) * (layout.columns << grain)) continue;
    // Within 32 bits, as the number of cells is.
    const uint32_t width = static_cast<uint32_t>(layout.columns << grain);
    const uint32_t y = static_cast<uint32_t>(position) / width, x = static_cast<uint32_t>(position) % width;
    const int64_t side = int64_t{1} << (layout.shift() - grain), code = in.codes[slot];
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
  // A valid sequence has at most as many codes as there are cells, and no other needs to be fast.
  const unsigned parts = std::min(blocks_for(layout.cells(), kThreads), 65535u);
  const dim3 grid(static_cast<unsigned>(layout.images), parts);
  return launch(stream, grid, kThreads, unpack, layout, in, code_map, grain_map);
}

}  // namespace dqcore::cuda
