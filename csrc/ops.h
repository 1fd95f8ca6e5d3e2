// The functions of csrc: each exists for the CPU and for CUDA.
#pragma once

#include <cstdint>

#include "layout.h"

namespace dqcore {

// The arrays of a code sequence, each with `total` elements.
struct Codes {
  int64_t* codes;
  int64_t* positions;
  int64_t* grains;
  int64_t total;
};

namespace cpu {

// A codebook as nearest_split_code reads it, and how much a score may be off. dqcore/ops/cpu/split_codes.py makes it.
struct SplitCodes {
  const uint16_t* tiles;  // bfloat16, -2 c' in parts: (num / 16, tiles_each, 16 pairs of channels, 16 codes, 2)
  const float* square;    // ||c'||^2, (num,)
  const float* mean;      // a vector times scale, less this, is x', (dim,)
  int64_t num, dim, tiles_each;
  bool stacked;  // the parts of a vector follow one another (high, low, high), rather than tile by tile (high, low)
  float scale;
  double by_norm, by_low, by_rest, by_square, radius, always, smallest;

  // How far apart a vector's two smallest scores must be, given the squared lengths of x', of its low part, and of
  // what both parts leave over.
  double margin(double whole, double low, double rest) const;
};

// Whether nearest_split_code can run on this CPU.
bool has_tiles();
// The nearest codes of float32 vectors (count, dim), -1 for those that rounding might decide.
void nearest_split_code(const SplitCodes&, const float* vectors, int64_t count, int64_t* out, int threads);

// `line_starts` is scratch memory: (images, granularities * rows + 1).
void layout(const Layout&, bool row_first, int32_t* line_starts, int threads);
void pack_codes(const Layout&, const int64_t* code_map, const Codes& out, int threads);
// Returns false if the sequence does not cover every cell exactly once; the maps then hold anything.
bool unpack_codes(const Layout&, const Codes&, int64_t* code_map, int64_t* grain_map, int threads);
void pack_features(const Layout&, const Features&, const Packed& out, bool mean, int threads);
void expand_features(const Layout&, const Packed&, const Features& out, bool divide, int threads);

}  // namespace cpu

namespace cuda {

// The functions below launch on the stream `handle` of `device`, do not wait, and return a cudaError_t.
struct Stream {
  int device;
  uintptr_t handle;
};

const char* error_name(int error);
int layout(const Layout&, bool row_first, int32_t* line_starts, Stream);
int pack_codes(const Layout&, const int64_t* code_map, const Codes& out, Stream);
// The maps must hold zeros, which stay in the cells that no code covers.
int unpack_codes(const Layout&, const Codes&, int64_t* code_map, int64_t* grain_map, Stream);
int pack_features(const Layout&, const Features&, const Packed& out, bool mean, Stream);
int expand_features(const Layout&, const Packed&, const Features& out, bool divide, Stream);

}  // namespace cuda
}  // namespace dqcore
