// Code sequence -> (code map, grain map); the order of the codes does not matter. Reference:
// dqcore.ops.unpack_codes.
#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/parallel.h"
#include "ops.h"

namespace dqcore::cpu {
namespace {

// The maps of one image while they are filled. Errors are collected without branches, which a processor could
// not predict.
class Maps {
 public:
  Maps(const Layout& layout, int64_t* codes, int64_t* grain, std::vector<uint16_t>& seen)
      : layout_(layout), codes_(codes), grain_(grain), seen_(seen), missing_(layout.cells()) {
    std::fill(seen.begin(), seen.end(), 0);
    std::fill_n(grain, layout.rows * layout.columns, -1);
  }

  // Writes one code's block. False if it lies outside the maps.
  bool place(int64_t code, int64_t position, int64_t grain) {
    if (grain < 0 || grain >= layout_.granularities) return false;
    const int64_t width = layout_.columns << grain;
    if (position < 0 || position >= (layout_.rows << grain) * width) return false;
    // 32 bits suffice, as they do for the number of cells; a division is several times faster there.
    const uint32_t y = static_cast<uint32_t>(position) / static_cast<uint32_t>(width);
    const uint32_t x = static_cast<uint32_t>(position) - y * static_cast<uint32_t>(width);
    const int down = layout_.shift() - static_cast<int>(grain);
    const int64_t corner =
        (static_cast<int64_t>(y) << down) * layout_.width() + (static_cast<int64_t>(x) << down);
    int64_t& region = grain_[(y >> grain) * layout_.columns + (x >> grain)];
    clash_ |=
        static_cast<int>(region >= 0) & static_cast<int>(region != grain);  // a region has two granularities
    clash_ |= seen_[corner];                                                // a cell has two codes
    region = grain;
    seen_[corner] = 1;
    missing_ -= int64_t{1} << (2 * down);
    fill(codes_ + corner, int64_t{1} << down, code);
    return true;
  }

  // No cell has two codes, and none is missing: each has exactly one.
  bool complete() const { return clash_ == 0 && missing_ == 0; }

 private:
  void fill(int64_t* corner, int64_t side, int64_t code) const {
    *corner = code;
    if (side == 1) return;  // most codes
    for (int64_t y = 0; y < side; ++y) {
      for (int64_t x = 0; x < side; ++x) corner[y * layout_.width() + x] = code;
    }
  }

  const Layout& layout_;
  int64_t* codes_;
  int64_t* grain_;
  std::vector<uint16_t>& seen_;
  int64_t missing_;  // cells
  int clash_ = 0;
};

bool unpack_image(const Layout& layout, const Codes& in, int64_t image, Maps maps) {
  const int64_t begin = layout.cu_seqlens[image], end = layout.cu_seqlens[image + 1];
  if (begin < 0 || end < begin || end > in.total) return false;
  for (int64_t index = begin; index < end; ++index) {
    if (!maps.place(in.codes[index], in.positions[index], in.grains[index])) return false;
  }
  return maps.complete();
}

}  // namespace

bool unpack_codes(const Layout& layout, const Codes& in, int64_t* code_map, int64_t* grain_map, int threads) {
  const int64_t cells = layout.cells(), regions = layout.rows * layout.columns;
  std::atomic<bool> valid{true};
  parallel_for(layout.images, cells * 32, threads, [&](int64_t begin, int64_t end) {
    std::vector<uint16_t> seen(cells);
    for (int64_t image = begin; image < end; ++image) {
      const Maps maps(layout, code_map + image * cells, grain_map + image * regions, seen);
      if (!unpack_image(layout, in, image, maps)) valid = false;
    }
  });
  return valid;
}

}  // namespace dqcore::cpu
