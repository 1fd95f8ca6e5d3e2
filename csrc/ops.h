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

}  // namespace cuda
}  // namespace dqcore
