// Feature map -> one vector a code: the sum or mean of the code's cells, added in raster order in float32.
// Reference: dqcore.ops.pack_features.
#include <algorithm>
#include <vector>

#include "cpu/floats.h"
#include "cpu/parallel.h"
#include "cpu/strip.h"
#include "cpu/transpose.h"
#include "ops.h"

namespace dqcore::cpu {
namespace {

// Writes `count` channels of every block of a strip. cells: the strip's first vector; the next one is `pitch` on.
template <typename T>
void pack_rows(const Layout& layout, const Strip& strip, const T* cells, int64_t pitch, int64_t count, bool mean,
               T* packed, int64_t packed_pitch) {
  float sums[kChannels];
  for (const Block& block : strip.blocks) {
    std::fill_n(sums, count, 0.0f);
    for (int64_t y = 0; y < block.side; ++y) {
      for (int64_t x = 0; x < block.side; ++x) {
        const T* vector = cells + (block.corner + y * layout.width() + x) * pitch;
        for (int64_t channel = 0; channel < count; ++channel) sums[channel] += to_float(vector[channel]);
      }
    }
    const float scale = mean ? block.share() : 1.0f;
    T* out = packed + block.slot * packed_pitch;
    for (int64_t channel = 0; channel < count; ++channel) store(sums[channel] * scale, out + channel);
  }
}

template <typename T>
void pack(const Layout& layout, const Strip& strip, const Features& in, T* packed, bool mean, std::vector<T>& tile) {
  const T* features = static_cast<const T*>(in.data);
  for (int64_t begin = 0; begin < in.channels; begin += kChannels) {
    const int64_t count = std::min(kChannels, in.channels - begin);
    if (in.channels_last) {
      const T* cells = features + (strip.image * layout.cells() + strip.first_cell) * in.channels + begin;
      pack_rows(layout, strip, cells, in.channels, count, mean, packed + begin, in.channels);
      continue;
    }
    const T* planes = features + (strip.image * in.channels + begin) * layout.cells() + strip.first_cell;
    tile.resize(strip.cells() * kChannels);
    planes_to_vectors<T>(
        count, strip.cells(), [&](int64_t channel) { return planes + channel * layout.cells(); },
        [&](int64_t cell) { return tile.data() + cell * kChannels; });
    pack_rows(layout, strip, tile.data(), kChannels, count, mean, packed + begin, in.channels);
  }
}

}  // namespace

void pack_features(const Layout& layout, const Features& in, const Packed& out, bool mean, int threads) {
  const int64_t bytes = (layout.width() << layout.shift()) * in.channels * 8;
  parallel_for(layout.images * layout.rows, bytes, threads, [&](int64_t begin, int64_t end) {
    with_type(in.dtype, [&](auto type) {
      using T = decltype(type);
      Strip strip(layout);
      std::vector<T> tile;
      for (int64_t row = begin; row < end; ++row) {
        strip.move(row);
        pack(layout, strip, in, static_cast<T*>(out.data), mean, tile);
      }
    });
  });
}

}  // namespace dqcore::cpu
