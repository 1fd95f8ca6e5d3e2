// (code map, grain map) -> code sequence: a thread for each cell of the finest grid; that of a code's first
// cell writes. Reference: dqcore.ops.pack_codes.
#include "cuda/launch.cuh"

namespace dqcore::cuda {
namespace {

__global__ void pack(Layout layout, const int64_t* __restrict__ code_map, Codes out) {
  const uint32_t cell = blockIdx.x * kThreads + threadIdx.x;
  const uint32_t cells = static_cast<uint32_t>(layout.cells()), width = static_cast<uint32_t>(layout.width());
  if (cell >= layout.images * cells) return;
  const Code code = layout.code_at(cell / cells, cell % cells / width, cell % width);
  if (!code.first || code.packed_index >= out.total) return;
  out.codes[code.packed_index] = code_map[cell];
  out.positions[code.packed_index] = code.position;
  out.grains[code.packed_index] = code.grain;
}

}  // namespace

int pack_codes(const Layout& layout, const int64_t* code_map, const Codes& out, Stream stream) {
  const unsigned blocks = blocks_for(layout.images * layout.cells(), kThreads);
  return launch(stream, blocks, kThreads, pack, layout, code_map, out);
}

}  // namespace dqcore::cuda
