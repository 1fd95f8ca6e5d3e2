// One vector for each code -> feature map: the vector, or a share of it, fills the code's cells.
// Reference: dqcore.ops.expand_features.
#include <algorithm>
#include <vector>

#include "cpu/floats.h"
#include "cpu/parallel.h"
#include "cpu/strip.h"
#include "cpu/transpose.h"
#include "ops.h"

namespace dqcore::cpu {
namespace {

template <typename T>
void copy(const T* vector, int64_t count, float scale, T* out) {
  if (scale == 1.0f) {
    std::copy_n(vector, count, out);
  } else {
    for (int64_t channel = 0; channel < count; ++channel)
      store(to_float(vector[channel]) * scale, out + channel);
  }
}

// For each cell of the strip the index of the block that fills it.
std::vector<int32_t> owners(const Layout& layout, const Strip& strip) {
  std::vector<int32_t> owner(strip.cells());
  for (size_t index = 0; index < strip.blocks.size(); ++index) {
    const Block& block = strip.blocks[index];
    for (int64_t y = 0; y < block.side; ++y) {
      std::fill_n(owner.begin() + block.corner + y * layout.width(), block.side, static_cast<int32_t>(index));
    }
  }
  return owner;
}

// Writes a feature map whose cells are innermost: reads kChannels of all vectors, then writes plane after
// plane.
template <typename T>
void expand_planes(const Layout& layout, const Strip& strip, const T* packed, T* features, int64_t channels,
                   bool divide) {
  const std::vector<int32_t> owner = owners(layout, strip);
  std::vector<T> tile(strip.blocks.size() * kChannels);
  for (int64_t begin = 0; begin < channels; begin += kChannels) {
    const int64_t count = std::min(kChannels, channels - begin);
    for (size_t index = 0; index < strip.blocks.size(); ++index) {
      const Block& block = strip.blocks[index];
      const T* vector = packed + block.packed_index * channels + begin;
      copy(vector, count, divide ? block.share() : 1.0f, tile.data() + index * kChannels);
    }
    T* planes = features + (strip.image * channels + begin) * layout.cells() + strip.first_cell;
    vectors_to_planes<T>(
        count, strip.cells(), [&](int64_t cell) { return tile.data() + owner[cell] * kChannels; },
        [&](int64_t channel) { return planes + channel * layout.cells(); });
  }
}

template <typename T>
void expand_rows(const Layout& layout, const Strip& strip, const T* packed, T* features, int64_t channels,
                 bool divide) {
  T* cells = features + (strip.image * layout.cells() + strip.first_cell) * channels;
  for (const Block& block : strip.blocks) {
    T* corner = cells + block.corner * channels;
    copy(packed + block.packed_index * channels, channels, divide ? block.share() : 1.0f, corner);
    for (int64_t cell = 1; cell < block.side * block.side; ++cell) {
      const int64_t index = cell / block.side * layout.width() + cell % block.side;
      std::copy_n(corner, channels, corner + index * channels);
    }
  }
}

}  // namespace

void expand_features(const Layout& layout, const Packed& in, const Features& out, bool divide, int threads) {
  const int64_t bytes = (layout.width() << layout.shift()) * out.channels * 8;
  parallel_for(layout.images * layout.rows, bytes, threads, [&](int64_t begin, int64_t end) {
    Strip strip(layout);
    for (int64_t row = begin; row < end; ++row) {
      strip.move(row);
      with_type(out.dtype, [&](auto type) {
        using T = decltype(type);
        const auto expand = out.channels_last ? expand_rows<T> : expand_planes<T>;
        expand(layout, strip, static_cast<const T*>(in.data), static_cast<T*>(out.data), out.channels,
               divide);
      });
    }
  });
}

}  // namespace dqcore::cpu
