// Code sequence -> (code map, grain map), driven by positions alone. Reference: dqcore.ops.unpack_codes.
#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/parallel.h"
#include "ops.h"

namespace dqcore::cpu {
namespace {

struct Maps {
  int64_t* codes;
  int64_t* grain;
};

// Writes one code's block. False if it does not fit what is there: the region's granularity, or a cell twice.
bool place(const Layout& layout, int64_t code, int64_t position, int64_t grain, Maps maps, std::vector<char>& seen) {
  if (grain < 0 || grain >= layout.granularities) return false;
  const int64_t width = layout.columns << grain;
  if (position < 0 || position >= (layout.rows << grain) * width) return false;
  const int64_t y = position / width, x = position % width;
  int64_t& region = maps.grain[(y >> grain) * layout.columns + (x >> grain)];
  if (region >= 0 && region != grain) return false;
  region = grain;
  const int64_t side = int64_t{1} << (layout.shift() - grain);
  const int64_t corner = y * side * layout.width() + x * side;
  if (seen[corner]) return false;
  seen[corner] = 1;
  for (int64_t line = 0; line < side; ++line) {
    int64_t* cells = maps.codes + corner + line * layout.width();
    std::fill(cells, cells + side, code);
  }
  return true;
}

bool unpack_image(const Layout& layout, const Codes& in, int64_t image, Maps maps, std::vector<char>& seen) {
  const int64_t begin = layout.cu_seqlens[image], end = layout.cu_seqlens[image + 1];
  if (begin < 0 || end < begin || end > in.total) return false;
  std::fill(seen.begin(), seen.end(), 0);
  std::fill(maps.grain, maps.grain + layout.rows * layout.columns, -1);
  int64_t missing = layout.cells();
  for (int64_t slot = begin; slot < end; ++slot) {
    if (!place(layout, in.codes[slot], in.positions[slot], in.grains[slot], maps, seen)) return false;
    missing -= int64_t{1} << (2 * (layout.shift() - in.grains[slot]));
  }
  return missing == 0;  // no cell twice, and as many cells as there are: each exactly once
}

}  // namespace

bool unpack_codes(const Layout& layout, const Codes& in, int64_t* code_map, int64_t* grain_map, int threads) {
  const int64_t cells = layout.cells(), regions = layout.rows * layout.columns;
  std::atomic<bool> valid{true};
  parallel_for(layout.images, cells * 32, threads, [&](int64_t begin, int64_t end) {
    std::vector<char> seen(cells);
    for (int64_t image = begin; image < end; ++image) {
      const Maps maps{code_map + image * cells, grain_map + image * regions};
      if (!unpack_image(layout, in, image, maps, seen)) valid = false;
    }
  });
  return valid;
}

}  // namespace dqcore::cpu
