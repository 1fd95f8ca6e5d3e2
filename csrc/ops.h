// Every function that csrc offers, once for the CPU and once for CUDA.
#pragma once

#include <cstdint>

#include "layout.h"

namespace dqcore {

// The arrays of a code sequence, each of `total` rows.
struct Codes {
  int64_t* codes;
  int64_t* positions;
  int64_t* grains;
  int64_t total;
};

namespace cpu {

// line_starts: scratch, (images, granularities * rows + 1).
void layout(const Layout&, bool row_first, int32_t* line_starts, int threads);
void pack_codes(const Layout&, const int64_t* code_map, const Codes& out, int threads);
// False where the sequence does not cover every region exactly once; the maps are then unspecified.
bool unpack_codes(const Layout&, const Codes&, int64_t* code_map, int64_t* grain_map, int threads);
void pack_features(const Layout&, const Features&, const Packed& out, bool mean, int threads);
void expand_features(const Layout&, const Packed&, const Features& out, bool divide, int threads);

}  // namespace cpu

namespace cuda {

// Each launches on `stream` of `device` without waiting and returns a cudaError_t.
struct Stream {
  int device;
  uintptr_t handle;
};

const char* error_name(int error);
int layout(const Layout&, bool row_first, int32_t* line_starts, Stream);
int pack_codes(const Layout&, const int64_t* code_map, const Codes& out, Stream);
// The maps must hold zeros; cells that no code covers keep them.
int unpack_codes(const Layout&, const Codes&, int64_t* code_map, int64_t* grain_map, Stream);
int pack_features(const Layout&, const Features&, const Packed& out, bool mean, Stream);
int expand_features(const Layout&, const Packed&, const Features& out, bool divide, Stream);

}  // namespace cuda
}  // namespace dqcore
