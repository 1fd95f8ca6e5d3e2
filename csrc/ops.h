// The functions of csrc. Each exists for the CPU and for CUDA, except two: dropout is part of the GPU's attention, and
// PyTorch adds up patches' histograms on a CPU.
#pragma once

#include <cstdint>

#include "layout.h"

namespace dqcore {

// Raised, here and in dqcore/backends.py, with every change of what module.cpp binds: sources may be newer than a build.
constexpr int kInterface = 3;

// The arrays of a code sequence, each with `total` elements.
struct Codes {
  int64_t* codes;
  int64_t* positions;
  int64_t* grains;
  int64_t total;
};

// A part of the weights of packed attention: `rows` packed rows of each head, `columns` keys of each of them.
struct Dropout {
  uint64_t seed;
  uint32_t offset;
  int keep;  // a weight survives if its byte is less
  int64_t heads, first_row, rows;
  int64_t first_column, columns;  // first_column is a multiple of 64
};

// Images (batch, channels, height, width) of 1 or 3 channels.
struct Images {
  const void* data;
  int dtype;
  int64_t batch, channels, height, width;
  int64_t strides[4];
  int64_t patch_size;
};

// Bins of a soft histogram. A pixel lies at the place `start + sum_c weights[c] value[c]` among them, where the centre of
// bin b is b, and gives the weight 2^-(rate^2 distance^2) to `reach` bins on either side of it.
struct Bins {
  double start, weights[3];
  int count, reach;  // 2 to 64, and 1 to 4
  float rate;
  float no_mass;  // a histogram with less is empty
};

namespace cpu {

// Sets to 0 the weights (heads, rows, columns) that do not survive.
void dropout_mask(const Dropout&, float* weights, int threads);
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

// Whether the driver runs what this was built with, whose CUDA may be newer than torch's; true where there is none.
bool driver_suffices();
const char* error_name(int error);
int layout(const Layout&, bool row_first, int32_t* line_starts, Stream);
int pack_codes(const Layout&, const int64_t* code_map, const Codes& out, Stream);
// The maps must hold zeros, which stay in the cells that no code covers.
int unpack_codes(const Layout&, const Codes&, int64_t* code_map, int64_t* grain_map, Stream);
int pack_features(const Layout&, const Features&, const Packed& out, bool mean, Stream);
int expand_features(const Layout&, const Packed&, const Features& out, bool divide, Stream);
// Fewer than 2^31 patches.
int patch_entropy(const Images&, const Bins&, float* entropy, Stream);

}  // namespace cuda
}  // namespace dqcore
