// Feature map -> one vector for each code: the sum or mean of the code's cells. One thread adds them in
// raster order in float32, so that every run and every device gives the same bits. Reference:
// dqcore.ops.pack_features.
#include "cuda/vectors.cuh"

namespace dqcore::cuda {
namespace {

template <typename T>
struct Sum {
  float values[Vector<T>::kSize] = {};

  __device__ void write(const Layout& layout, const Code& code, int64_t total, int64_t channels,
                        int64_t channel, bool mean, int word, T* packed) const {
    const float cells = static_cast<float>(1u << (2 * (layout.shift() - code.grain)));
    const float scale = mean ? 1.0f / cells : 1.0f;
    Vector<T> vector;
    for (int i = 0; i < Vector<T>::kSize; ++i) store(values[i] * scale, &vector.values[i]);
    if (code.packed_index >= total) return;
    vector.save(packed + code.packed_index * channels + channel, channels - channel, word);
  }
};

// A block of threads handles one row of regions, of it kCells columns of cells and kChannels channels, line
// after line. It loads the next line while it adds this one.
template <typename T>
__global__ void pack_planes(Layout layout, const T* __restrict__ features, T* __restrict__ packed,
                            int64_t total, int64_t channels, int plane_word, int row_word, bool mean) {
  __shared__ Tile<T> tile;
  constexpr int kSize = Vector<T>::kSize;
  const uint32_t width = static_cast<uint32_t>(layout.width()),
                 tiles = (width + tile.kCells - 1) / tile.kCells;
  const uint32_t strip = blockIdx.x / tiles, first_x = blockIdx.x % tiles * tile.kCells;
  const int64_t image = strip / layout.rows,
                first_channel = static_cast<int64_t>(blockIdx.y) * tile.kChannels;
  const uint32_t first_y = static_cast<uint32_t>(strip % layout.rows) << layout.shift(),
                 lines = 1u << layout.shift();

  const uint32_t plane = threadIdx.x / tile.kCellVectors, from = threadIdx.x % tile.kCellVectors * kSize;
  const bool reads = first_channel + plane < channels && first_x + from < width;
  const T* line_start =
      features + (image * channels + first_channel + plane) * layout.cells() + first_x + from;
  const auto line = [&](uint32_t y) {
    if (!reads || y >= first_y + lines) return Vector<T>{};
    return Vector<T>::load(line_start + static_cast<int64_t>(y) * width, width - first_x - from, plane_word);
  };

  const uint32_t cell = threadIdx.x / tile.kVectors, column = threadIdx.x % tile.kVectors * kSize;
  const bool adds = first_x + cell < width && first_channel + column < channels;
  Sum<T> sum;
  Vector<T> next = line(first_y);
  for (uint32_t y = first_y; y < first_y + lines; ++y) {
    __syncthreads();
    for (int i = 0; i < kSize; ++i) tile.values[from + i][plane] = next.values[i];
    __syncthreads();
    next = line(y + 1);
    if (!adds) continue;
    const Code code = layout.code_at(image, y, first_x + cell);
    const uint32_t side = 1u << (layout.shift() - code.grain);
    if ((first_x + cell) % side != 0) continue;
    if (code.first) sum = {};
    for (uint32_t x = cell; x < cell + side; ++x) {
      for (int i = 0; i < kSize; ++i) sum.values[i] += to_float(tile.values[x][column + i]);
    }
    if ((y + 1) % side == 0)
      sum.write(layout, code, total, channels, first_channel + column, mean, row_word, packed);
  }
}

// A row of threads for each cell; the row of a code's first cell adds all of them. Also used for planes where
// a code may be wider than a tile.
template <typename T>
__global__ void pack_rows(Layout layout, const T* __restrict__ features, T* __restrict__ packed,
                          int64_t total, int64_t channels, bool channels_last, int word, bool mean) {
  const uint32_t cells = static_cast<uint32_t>(layout.cells()), width = static_cast<uint32_t>(layout.width());
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (index >= layout.images * cells) return;
  const int64_t image = static_cast<uint32_t>(index) / cells, cell = static_cast<uint32_t>(index) % cells;
  const Code code =
      layout.code_at(image, static_cast<uint32_t>(cell) / width, static_cast<uint32_t>(cell) % width);
  if (!code.first) return;
  const int64_t side = int64_t{1} << (layout.shift() - code.grain);
  for (int64_t channel = threadIdx.x * Vector<T>::kSize; channel < channels;
       channel += blockDim.x * Vector<T>::kSize) {
    Sum<T> sum;
    for (int64_t y = 0; y < side; ++y) {
      for (int64_t x = 0; x < side; ++x) {
        const int64_t at = cell + y * width + x;
        Vector<T> vector{};
        if (channels_last) {
          vector =
              Vector<T>::load(features + (image * cells + at) * channels + channel, channels - channel, word);
        } else {
          for (int i = 0; i < Vector<T>::kSize && channel + i < channels; ++i) {
            vector.values[i] = features[(image * channels + channel + i) * cells + at];
          }
        }
        for (int i = 0; i < Vector<T>::kSize; ++i) sum.values[i] += to_float(vector.values[i]);
      }
    }
    sum.write(layout, code, total, channels, channel, mean, word, packed);
  }
}

}  // namespace

int pack_features(const Layout& layout, const Features& in, const Packed& out, bool mean, Stream stream) {
  return with_type(in.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t size = sizeof(T), channels = in.channels;
    const T* features = static_cast<const T*>(in.data);
    T* packed = static_cast<T*>(out.data);
    const int row_word = word_of(packed, channels * size);
    if (in.channels_last || layout.shift() > 5) {
      const dim3 block = block_for<T>(channels);
      return launch(stream, blocks_for(layout.images * layout.cells(), block.y), block, pack_rows<T>, layout,
                    features, packed, out.total, channels, in.channels_last,
                    std::min(row_word, word_of(features, 0)), mean);
    }
    const int plane_word = word_of(features, layout.width() * size);
    const dim3 grid(
        static_cast<unsigned>(layout.images * layout.rows) * blocks_for(layout.width(), Tile<T>::kCells),
        blocks_for(channels, Tile<T>::kChannels));
    return launch(stream, grid, kThreads, pack_planes<T>, layout, features, packed, out.total, channels,
                  plane_word, row_word, mean);
  });
}

}  // namespace dqcore::cuda
