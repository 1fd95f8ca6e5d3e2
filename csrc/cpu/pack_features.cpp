// Feature map -> one vector for each code: the sum or mean of the code's cells, added in raster order in
// float32. Reference: dqcore.ops.pack_features.
#include <algorithm>
#include <vector>

#include "cpu/floats.h"
#include "cpu/parallel.h"
#include "cpu/strip.h"
#include "cpu/transpose.h"
#include "ops.h"

namespace dqcore::cpu {
namespace {

// Writes `count` channels of every block of a strip. `cells` is the vector of the strip's first cell, `pitch`
// values before that of the next. The innermost loops run over channels, so that the compiler turns them into
// vector instructions.
template <typename T>
void pack_rows(const Layout& layout, const Strip& strip, const T* cells, int64_t pitch, int64_t count,
               bool mean, float* sums, T* packed, int64_t packed_pitch) {
  for (const Block& block : strip.blocks) {
    const T* corner = cells + block.corner * pitch;
    T* out = packed + block.packed_index * packed_pitch;
    if (block.side == 1) {
      for (int64_t channel = 0; channel < count; ++channel)
        store(0.0f + to_float(corner[channel]), out + channel);
      continue;
    }
    std::fill_n(sums, count, 0.0f);
    for (int64_t y = 0; y < block.side; ++y) {
      for (int64_t x = 0; x < block.side; ++x) {
        const T* vector = corner + (y * layout.width() + x) * pitch;
        for (int64_t channel = 0; channel < count; ++channel) sums[channel] += to_float(vector[channel]);
      }
    }
    const float scale = mean ? block.share() : 1.0f;
    for (int64_t channel = 0; channel < count; ++channel) store(sums[channel] * scale, out + channel);
  }
}

// Memory that a thread uses for one strip after the other.
template <typename T>
struct Scratch {
  std::vector<T> tile;
  std::vector<float> sums;
};

// Reads a feature map whose cells are innermost, through a tile of vectors with kChannels values each.
template <typename T>
void pack_planes(const Layout& layout, const Strip& strip, const T* features, int64_t channels, bool mean,
                 Scratch<T>& scratch, T* packed) {
  scratch.tile.resize(strip.cells() * kChannels);
  T* tile = scratch.tile.data();
  for (int64_t begin = 0; begin < channels; begin += kChannels) {
    const int64_t count = std::min(kChannels, channels - begin);
    const T* planes = features + (strip.image * channels + begin) * layout.cells() + strip.first_cell;
    planes_to_vectors<T>(
        count, strip.cells(), [&](int64_t channel) { return planes + channel * layout.cells(); },
        [&](int64_t cell) { return tile + cell * kChannels; });
    pack_rows(layout, strip, tile, kChannels, count, mean, scratch.sums.data(), packed + begin, channels);
  }
}

template <typename T>
void pack_strips(const Layout& layout, const Features& in, T* packed, bool mean, int64_t begin, int64_t end) {
  const T* features = static_cast<const T*>(in.data);
  Strip strip(layout);
  Scratch<T> scratch;
  scratch.sums.resize(std::max(in.channels, kChannels));
  for (int64_t row = begin; row < end; ++row) {
    strip.move(row);
    if (in.channels_last) {
      const T* cells = features + (strip.image * layout.cells() + strip.first_cell) * in.channels;
      pack_rows(layout, strip, cells, in.channels, in.channels, mean, scratch.sums.data(), packed,
                in.channels);
    } else {
      pack_planes(layout, strip, features, in.channels, mean, scratch, packed);
    }
  }
}

}  // namespace

void pack_features(const Layout& layout, const Features& in, const Packed& out, bool mean, int threads) {
  const int64_t bytes = (layout.width() << layout.shift()) * in.channels * 8;
  parallel_for(layout.images * layout.rows, bytes, threads, [&](int64_t begin, int64_t end) {
    with_type(in.dtype, [&](auto type) {
      using T = decltype(type);
      pack_strips(layout, in, static_cast<T*>(out.data), mean, begin, end);
    });
  });
}

}  // namespace dqcore::cpu
