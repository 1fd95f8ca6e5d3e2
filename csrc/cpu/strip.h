// The codes of one row of regions of an image, a strip: a thread works on one strip after the other.
#pragma once

#include <cstdint>
#include <vector>

#include "layout.h"

namespace dqcore::cpu {

// Calls visit(packed_index, y, x, grain) for each code of a row of regions; rows are counted over the whole
// batch. (y, x) is the place of the code in the grid of its granularity, counted from the first code of this
// row of regions.
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

// How many channels are worked on together: so few that the tile of a strip stays in the first-level cache.
constexpr int64_t kChannels = 64;

// The cells that one code fills.
struct Block {
  int64_t packed_index;
  int64_t corner;  // its top-left cell, counted from the first cell of the strip
  int64_t side;    // in cells

  // What each cell gets of the code's vector where the vector is divided among them.
  float share() const { return 1.0f / static_cast<float>(side * side); }
};

struct Strip {
  explicit Strip(const Layout& layout) : layout_(layout) {}

  void move(int64_t row) {
    blocks.clear();
    image = row / layout_.rows;
    first_cell = row % layout_.rows * cells();
    for_codes(layout_, row, [&](int64_t packed_index, int64_t y, int64_t x, int grain) {
      const int down = layout_.shift() - grain;
      blocks.push_back({packed_index, (y << down) * layout_.width() + (x << down), int64_t{1} << down});
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
