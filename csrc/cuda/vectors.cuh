// Reads and writes of sixteen bytes, and the tile that turns planes into vectors and vectors into planes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstring>

#include "cuda/launch.cuh"

namespace dqcore::cuda {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline void store(float value, float* out) { *out = value; }
__device__ inline void store(float value, __half* out) { *out = __float2half_rn(value); }
__device__ inline void store(float value, __nv_bfloat16* out) { *out = __float2bfloat16_rn(value); }

// Writes in one instruction. nvcc may split an assignment, and did so where it had computed the values one by
// one.
__device__ inline void store_16_bytes(const void* values, void* out) {
#ifdef __CUDA_ARCH__
  uint4 bits;
  memcpy(&bits, values, sizeof bits);
  asm("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(out)), "r"(bits.x),
      "r"(bits.y), "r"(bits.z), "r"(bits.w));
#else
  memcpy(out, values, 16);
#endif
}

template <typename T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];

  // Reads the first `count` values at `from`, zeros for the rest, in words of `word` bytes, of which `from`
  // and the whole row are multiples: so a row ends with a whole one.
  __device__ static Vector load(const T* from, int64_t count, int word) {
    if (word == 16 && count >= kSize) return *reinterpret_cast<const Vector*>(from);
    if (word >= 8) return load_words<uint64_t>(from, count);
    if (word >= 4) return load_words<uint32_t>(from, count);
    return load_words<T>(from, count);
  }

  template <typename Word>
  __device__ static Vector load_words(const T* from, int64_t count) {
    constexpr int kStep = sizeof(Word) / sizeof(T);
    Vector vector{};
    for (int i = 0; i < kSize; i += kStep) {
      if (i >= count) continue;
      const Word bits = *reinterpret_cast<const Word*>(from + i);
      memcpy(&vector.values[i], &bits, sizeof bits);
    }
    return vector;
  }

  // Writes the first `count` values to `to`, in words as those of `load`.
  __device__ void save(T* to, int64_t count, int word) const {
    if (word == 16 && count >= kSize) return store_16_bytes(values, to);
    if (word >= 8) return save_words<uint64_t>(to, count);
    if (word >= 4) return save_words<uint32_t>(to, count);
    save_words<T>(to, count);
  }

  template <typename Word>
  __device__ void save_words(T* to, int64_t count) const {
    constexpr int kStep = sizeof(Word) / sizeof(T);
    for (int i = 0; i < kSize; i += kStep) {
      if (i >= count) continue;
      Word bits;
      memcpy(&bits, &values[i], sizeof bits);
      *reinterpret_cast<Word*>(to + i) = bits;
    }
  }

  __device__ void scale(float factor) {
    for (int i = 0; i < kSize; ++i) store(to_float(values[i]) * factor, &values[i]);
  }
};

// kCells cells with kChannels channels; each thread fills one Vector of it and reads one, across or along the
// cells. The four bytes of padding after each cell keep both free of bank conflicts.
template <typename T>
struct Tile {
  static constexpr int kCells = 32;
  static constexpr int kVectors = 8;
  static constexpr int kChannels = kVectors * Vector<T>::kSize;
  static constexpr int kCellVectors = kCells / Vector<T>::kSize;
  static_assert(kCells * kVectors == kThreads && kChannels * kCellVectors == kThreads, "one vector a thread");
  T values[kCells][kChannels + 4 / sizeof(T)];
};

// The widest word, of at most sixteen bytes, of which an address and a row's bytes are multiples.
inline int word_of(const void* data, int64_t row_bytes) {
  const uintptr_t both = reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(row_bytes) | 16;
  return static_cast<int>(both & (~both + 1));
}

// A block of threads where channels are innermost: a row of threads for each cell, as wide as its channels
// need, a power of two.
template <typename T>
dim3 block_for(int64_t channels) {
  unsigned lanes = 1;
  while (lanes < kWarp && lanes * Vector<T>::kSize < channels) lanes *= 2;
  return dim3(lanes, kThreads / lanes);
}

// Calls body with a value of the CUDA type that a DType names.
template <typename Body>
int with_type(int dtype, const Body& body) {
  if (dtype == kFloat16) return body(__half{});
  if (dtype == kBFloat16) return body(__nv_bfloat16{});
  return body(float{});
}

}  // namespace dqcore::cuda
