// The prefix scan that all ops of csrc start from. Reference: dqcore/ops/layout.py.
#include "layout.h"

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "ops.h"

namespace dqcore::cpu {
namespace {

// Fills the layout of one image and returns its number of codes. `starts` is scratch memory: the packed index
// of the first code of each (granularity, row of regions), counted from the image's first.
int32_t lay_out_image(const Layout& layout, int64_t image, bool row_first, int32_t* starts) {
  const int64_t rows = layout.rows, columns = layout.columns, first = image * rows * columns;
  const int64_t lines = layout.granularities * rows;
  std::fill(starts, starts + lines + 1, 0);
  for (int64_t region = 0; region < rows * columns; ++region) {
    const int grain = layout.grain_at(first + region);
    starts[grain * rows + region / columns + 1] += 1 << (2 * grain);
  }
  for (int64_t line = 0; line < lines; ++line) starts[line + 1] += starts[line];

  std::vector<int32_t> rank(layout.granularities);
  for (int64_t row = 0; row < rows; ++row) {
    std::fill(rank.begin(), rank.end(), 0);
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t region = first + row * columns + column;
      const int grain = layout.grain_at(region);
      const int32_t* start = &starts[grain * rows + row];
      layout.starts[region] = start[0] + (rank[grain]++ << (row_first ? grain : 2 * grain));
      layout.steps[region] = row_first ? (start[1] - start[0]) >> grain : 1 << grain;
    }
  }
  return starts[lines];
}

}  // namespace

void layout(const Layout& layout, bool row_first, int32_t* line_starts, int threads) {
  const int64_t scratch = layout.granularities * layout.rows + 1;
  parallel_for(layout.images, layout.rows * layout.columns * 32, threads, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      layout.cu_seqlens[image + 1] = lay_out_image(layout, image, row_first, line_starts + image * scratch);
    }
  });
  layout.cu_seqlens[0] = 0;
  for (int64_t image = 0; image < layout.images; ++image)
    layout.cu_seqlens[image + 1] += layout.cu_seqlens[image];
}

}  // namespace dqcore::cpu
