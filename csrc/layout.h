// Where each code of a batch lies in its packed sequence: the one thing that CPU and GPU must agree on.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DQ_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DQ_HOST_DEVICE inline
#endif

namespace dqcore {

// The code that fills a cell of the finest grid.
struct Code {
  int64_t packed_index;  // in the arrays of the packed batch
  int64_t position;      // in the row-major grid of its own granularity
  int grain;
  bool first;  // this cell is the top-left one of the code's block
};

// The codes of a region.
struct Region {
  int64_t start;  // packed index of its first code
  int64_t step;   // from the packed index of a code to that of the code below it
  int grain;
};

// Where the codes of a batch of grain maps lie.
// The tensors behind the pointers are made by lay_out in dqcore/ops/extension.py.
struct Layout {
  const int64_t* grain;  // (images, rows, columns)
  int32_t* starts;       // (images, rows, columns): packed index of the first code, from its image's first
  int32_t* steps;        // (images, rows, columns): Region::step
  int32_t* cu_seqlens;   // (images + 1)
  int64_t images, rows, columns;
  int granularities;

  DQ_HOST_DEVICE int shift() const { return granularities - 1; }
  DQ_HOST_DEVICE int64_t height() const { return rows << shift(); }
  DQ_HOST_DEVICE int64_t width() const { return columns << shift(); }
  DQ_HOST_DEVICE int64_t cells() const { return height() * width(); }

  // Values out of range are an error that only the CPU reports; clamped, they stay inside every buffer.
  DQ_HOST_DEVICE int grain_at(int64_t region) const {
    const int64_t value = grain[region];
    return value < 0 ? 0 : value >= granularities ? granularities - 1 : static_cast<int>(value);
  }

  DQ_HOST_DEVICE Region region_at(int64_t image, int64_t region) const {
    return {static_cast<int64_t>(cu_seqlens[image]) + starts[region], steps[region], grain_at(region)};
  }

  DQ_HOST_DEVICE Code code_at(int64_t image, uint32_t y, uint32_t x) const {
    const Region region = region_at(image, (image * rows + (y >> shift())) * columns + (x >> shift()));
    const int grain = region.grain, down = shift() - grain;
    const uint32_t inside = (1u << shift()) - 1;
    const int64_t index = region.start + ((y & inside) >> down) * region.step + ((x & inside) >> down);
    const int64_t position = static_cast<int64_t>(y >> down) * (columns << grain) + (x >> down);
    return {index, position, grain, ((y | x) & ((1u << down) - 1)) == 0};
  }
};

// Element types of features, numbered by their place in FEATURES of dqcore/ops/extension.py.
enum DType { kFloat16 = 0, kBFloat16 = 1, kFloat32 = 2 };

// A feature map (images, channels, height, width), dense, with cells or channels innermost.
struct Features {
  void* data;
  int64_t channels;
  bool channels_last;
  int dtype;
};

// The packed counterpart of a feature map, (total, channels), dense.
struct Packed {
  void* data;
  int64_t total;
};

}  // namespace dqcore
