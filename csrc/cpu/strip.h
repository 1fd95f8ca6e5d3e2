// The codes of one row of regions: what a thread works on at a time in the feature ops.
#pragma once

#include <cstdint>
#include <vector>

#include "layout.h"

namespace dqcore::cpu {

// Channels gathered at a time: one cache line of float32.
constexpr int64_t kChannels = 16;

struct Block {
  int64_t slot;    // row of the packed batch
  int64_t corner;  // top-left cell, from the first cell of the strip
  int64_t side;    // in cells

  float share() const { return 1.0f / static_cast<float>(side * side); }
};

struct Strip {
  explicit Strip(const Layout& layout) : layout_(layout) {}

  // Moves to a row of regions, counted through the batch.
  void move(int64_t row) {
    blocks.clear();
    image = row / layout_.rows;
    first_cell = row % layout_.rows * cells();
    const uint32_t y0 = static_cast<uint32_t>(row % layout_.rows) << layout_.shift();
    const uint32_t height = 1u << layout_.shift(), width = static_cast<uint32_t>(layout_.width());
    for (uint32_t y = 0; y < height; ++y) {
      for (uint32_t x = 0; x < width; ++x) {
        const Code code = layout_.code_at(image, y0 + y, x);
        if (!code.first) continue;
        blocks.push_back({code.slot, static_cast<int64_t>(y) * width + x, int64_t{1} << (layout_.shift() - code.grain)});
      }
    }
  }

  int64_t cells() const { return layout_.width() << layout_.shift(); }

  std::vector<Block> blocks;
  int64_t image = 0;
  int64_t first_cell = 0;  // of the strip in its image

 private:
  const Layout& layout_;
};

}  // namespace dqcore::cpu
