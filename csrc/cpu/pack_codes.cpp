// (code map, grain map) -> code sequence. Reference: dqcore.ops.pack_codes.
#include "cpu/parallel.h"
#include "cpu/strip.h"
#include "ops.h"

namespace dqcore::cpu {

void pack_codes(const Layout& layout, const int64_t* code_map, const Codes& out, int threads) {
  const int64_t strip = layout.width() << layout.shift();
  parallel_for(layout.images * layout.rows, strip * 32, threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t* cells = code_map + row * strip;
      for_codes(layout, row, [&](int64_t packed_index, int64_t y, int64_t x, int grain) {
        const int down = layout.shift() - grain;
        out.codes[packed_index] = cells[(y << down) * layout.width() + (x << down)];
        out.positions[packed_index] = (((row % layout.rows) << grain) + y) * (layout.columns << grain) + x;
        out.grains[packed_index] = grain;
      });
    }
  });
}

}  // namespace dqcore::cpu
