// (code map, grain map) -> code sequence. Reference: dqcore.ops.pack_codes.
#include "cpu/parallel.h"
#include "ops.h"

namespace dqcore::cpu {

void pack_codes(const Layout& layout, const int64_t* code_map, const Codes& out, int threads) {
  const int64_t height = layout.height(), width = layout.width();
  parallel_for(layout.images * height, width * 32, threads, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      for (int64_t x = 0; x < width; ++x) {
        const Code code = layout.code_at(line / height, line % height, x);
        if (!code.first) continue;
        out.codes[code.slot] = code_map[line * width + x];
        out.positions[code.slot] = code.position;
        out.grains[code.slot] = code.grain;
      }
    }
  });
}

}  // namespace dqcore::cpu
