// Feature map -> one vector a code: the sum or mean of the code's cells, added in raster order in float32.
// Reference: dqcore.ops.pack_features.
#include <algorithm>
#include <vector>

#include "cpu/floats.h"
#include "cpu/parallel.h"
#include "cpu/strip.h"
#include "ops.h"

namespace dqcore::cpu {
namespace {

template <typename T>
float block_sum(const T* cells, int64_t side, int64_t width) {
  float sum = 0;
  for (int64_t y = 0; y < side; ++y) {
    for (int64_t x = 0; x < side; ++x) sum += to_float(cells[y * width + x]);
  }
  return sum;
}

// Planes are read one after the other and written kChannels at a time.
template <typename T>
void pack_planes(const Layout& layout, const Strip& strip, const T* features, T* packed, int64_t channels, bool mean) {
  std::vector<float> sums(strip.blocks.size() * kChannels);
  for (int64_t begin = 0; begin < channels; begin += kChannels) {
    const int64_t count = std::min(kChannels, channels - begin);
    for (int64_t channel = 0; channel < count; ++channel) {
      const T* plane = features + (strip.image * channels + begin + channel) * layout.cells() + strip.first_cell;
      float* sum = sums.data() + channel;
      for (const Block& block : strip.blocks) {
        *sum = block_sum(plane + block.corner, block.side, layout.width()) * (mean ? block.share() : 1.0f);
        sum += kChannels;
      }
    }
    const float* sum = sums.data();
    for (const Block& block : strip.blocks) {
      for (int64_t channel = 0; channel < count; ++channel) {
        store(sum[channel], packed + block.slot * channels + begin + channel);
      }
      sum += kChannels;
    }
  }
}

template <typename T>
void pack_rows(const Layout& layout, const Strip& strip, const T* features, T* packed, int64_t channels, bool mean) {
  std::vector<float> sum(channels);
  const T* cells = features + (strip.image * layout.cells() + strip.first_cell) * channels;
  for (const Block& block : strip.blocks) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int64_t cell = 0; cell < block.side * block.side; ++cell) {
      const int64_t index = block.corner + cell / block.side * layout.width() + cell % block.side;
      const T* vector = cells + index * channels;
      for (int64_t channel = 0; channel < channels; ++channel) sum[channel] += to_float(vector[channel]);
    }
    const float scale = mean ? block.share() : 1.0f;
    for (int64_t channel = 0; channel < channels; ++channel) {
      store(sum[channel] * scale, packed + block.slot * channels + channel);
    }
  }
}

}  // namespace

void pack_features(const Layout& layout, const Features& in, const Packed& out, bool mean, int threads) {
  const int64_t bytes = (layout.width() << layout.shift()) * in.channels * 8;
  parallel_for(layout.images * layout.rows, bytes, threads, [&](int64_t begin, int64_t end) {
    Strip strip(layout);
    for (int64_t row = begin; row < end; ++row) {
      strip.move(row);
      with_type(in.dtype, [&](auto type) {
        using T = decltype(type);
        const auto pack = in.channels_last ? pack_rows<T> : pack_planes<T>;
        pack(layout, strip, static_cast<const T*>(in.data), static_cast<T*>(out.data), in.channels, mean);
      });
    }
  });
}

}  // namespace dqcore::cpu
