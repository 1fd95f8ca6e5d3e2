// One vector for each code -> feature map: the vector, or a share of it, fills the code's cells. Every cell
// reads its code's vector; if cells are innermost, through a tile in shared memory. Reference:
// dqcore.ops.expand_features.
#include "cuda/vectors.cuh"

namespace dqcore::cuda {
namespace {

template <typename T>
__device__ Vector<T> read(const Layout& layout, const T* packed, int64_t total, int64_t channels,
                          int64_t channel, int64_t image, uint32_t cell, int word, bool divide) {
  const uint32_t width = static_cast<uint32_t>(layout.width());
  const Code code = layout.code_at(image, cell / width, cell % width);
  if (code.packed_index >= total) return {};
  auto vector = Vector<T>::load(packed + code.packed_index * channels + channel, channels - channel, word);
  if (divide) vector.scale(1.0f / static_cast<float>(1u << (2 * (layout.shift() - code.grain))));
  return vector;
}

// A block of threads handles kCells consecutive cells of one image, and of them kChannels channels.
template <typename T>
__global__ void expand_planes(Layout layout, const T* __restrict__ packed, int64_t total,
                              T* __restrict__ features, int64_t channels, int row_word, int plane_word,
                              bool divide) {
  __shared__ Tile<T> tile;
  constexpr int kSize = Vector<T>::kSize;
  const uint32_t cells = static_cast<uint32_t>(layout.cells()),
                 tiles = (cells + tile.kCells - 1) / tile.kCells;
  const int64_t image = blockIdx.x / tiles;
  const uint32_t first_cell = blockIdx.x % tiles * tile.kCells;
  const int64_t first_channel = static_cast<int64_t>(blockIdx.y) * tile.kChannels;
  {
    const uint32_t row = threadIdx.x / tile.kVectors, column = threadIdx.x % tile.kVectors * kSize;
    if (first_cell + row < cells && first_channel + column < channels) {
      const auto vector = read(layout, packed, total, channels, first_channel + column, image,
                               first_cell + row, row_word, divide);
      for (int i = 0; i < kSize; ++i) tile.values[row][column + i] = vector.values[i];
    }
  }
  __syncthreads();
  const uint32_t channel = threadIdx.x / tile.kCellVectors, cell = threadIdx.x % tile.kCellVectors * kSize;
  if (first_cell + cell >= cells || first_channel + channel >= channels) return;
  Vector<T> vector;
  for (int i = 0; i < kSize; ++i) vector.values[i] = tile.values[cell + i][channel];
  T* plane = features + (image * channels + first_channel + channel) * cells;
  vector.save(plane + first_cell + cell, cells - first_cell - cell, plane_word);
}

// A row of threads for each cell.
template <typename T>
__global__ void expand_rows(Layout layout, const T* __restrict__ packed, int64_t total,
                            T* __restrict__ features, int64_t channels, int word, bool divide) {
  const uint32_t cells = static_cast<uint32_t>(layout.cells());
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (cell >= layout.images * cells) return;
  const uint32_t index = static_cast<uint32_t>(cell);
  for (int64_t channel = threadIdx.x * Vector<T>::kSize; channel < channels;
       channel += blockDim.x * Vector<T>::kSize) {
    const auto vector =
        read(layout, packed, total, channels, channel, index / cells, index % cells, word, divide);
    vector.save(features + cell * channels + channel, channels - channel, word);
  }
}

}  // namespace

int expand_features(const Layout& layout, const Packed& in, const Features& out, bool divide, Stream stream) {
  return with_type(out.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t size = sizeof(T), channels = out.channels;
    const T* packed = static_cast<const T*>(in.data);
    T* features = static_cast<T*>(out.data);
    const int row_word = word_of(packed, channels * size);
    if (out.channels_last) {
      const dim3 block = block_for<T>(channels);
      return launch(stream, blocks_for(layout.images * layout.cells(), block.y), block, expand_rows<T>,
                    layout, packed, in.total, features, channels, std::min(row_word, word_of(features, 0)),
                    divide);
    }
    const int plane_word = word_of(features, layout.cells() * size);
    const dim3 grid(static_cast<unsigned>(layout.images) * blocks_for(layout.cells(), Tile<T>::kCells),
                    blocks_for(channels, Tile<T>::kChannels));
    return launch(stream, grid, kThreads, expand_planes<T>, layout, packed, in.total, features, channels,
                  row_word, plane_word, divide);
  });
}

}  // namespace dqcore::cuda
