// The codes of one row of regions: what a thread works on at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "layout.h"

namespace dqcore::cpu {

// Calls visit(slot, y, x, grain) for each code of a row of regions, counted through the batch; y and x are
// those of the code in its region's own grid, plus the region's offset in that grid along the row.
template <typename Visit>
void for_codes(const Layout& layout, int64_t row, const Visit& visit) {
  for (int64_t column = 0; column < layout.columns; ++column) {
    const Region region = layout.region_at(row / layout.rows, row * layout.columns + column);
    const int64_t side = int64_t{1} << region.grain;
    for (int64_t y = 0; y < side; ++y) {
      for (int64_t x = 0; x < side; ++x) {
        visit(region.start + y * region.step + x, y, column * side + x, region.grain);
      }
    }
  }
}

// Channels worked on at a time, so that a strip's tile stays in the first cache.
constexpr int64_t kChannels = 64;

struct Block {
  int64_t slot;    // row of the packed batch
  int64_t corner;  // top-left cell, from the first cell of the strip
  int64_t side;    // in cells

  float share() const { return 1.0f / static_cast<float>(side * side); }
};

struct Strip {
  explicit Strip(const Layout& layout) : layout_(layout) {}

  void move(int64_t row) {
    blocks.clear();
    image = row / layout_.rows;
    first_cell = row % layout_.rows * cells();
    for_codes(layout_, row, [&](int64_t slot, int64_t y, int64_t x, int grain) {
      const int down = layout_.shift() - grain;
      blocks.push_back({slot, (y << down) * layout_.width() + (x << down), int64_t{1} << down});
    });
  }

  int64_t cells() const { return layout_.width() << layout_.shift(); }

  std::vector<Block> blocks;
  int64_t image = 0;
  int64_t first_cell = 0;  // of the strip in its image

 private:
  const Layout& layout_;
};

}  // namespace dqcore::cpu
