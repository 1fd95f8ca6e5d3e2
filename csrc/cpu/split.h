// How float32 numbers become two bfloat16 parts, and where the parts of a vector or code lie in its row of tiles.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "cpu/split_codes.h"

// On every function that uses these instructions: the rest of the extension runs on any CPU of its kind.
#define DQ_TILES __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")))

namespace dqcore::cpu {

// bfloat16 numbers as float32.
DQ_TILES inline __m512 widen(__m256bh x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16));
}

// Splits `dim` numbers, times `scale` less `factor` times `mean`. Writes up to 15 numbers past the end of both parts.
DQ_TILES inline Lengths split(const float* numbers, float scale, const float* mean, float factor, int64_t dim,
                              uint16_t* high, uint16_t* low) {
  __m512 all = _mm512_setzero_ps(), small = all, rest = all;
  for (int64_t first = 0; first < dim; first += 16) {
    const __mmask16 mask = static_cast<__mmask16>((1u << std::min<int64_t>(16, dim - first)) - 1);
    const __m512 centre = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, mean + first), _mm512_set1_ps(factor));
    const __m512 x = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(mask, numbers + first), _mm512_set1_ps(scale), centre);
    const __m256bh upper = _mm512_cvtneps_pbh(x);
    const __m512 left = _mm512_sub_ps(x, widen(upper));
    const __m256bh lower = _mm512_cvtneps_pbh(left);
    const __m512 over = _mm512_sub_ps(left, widen(lower));
    _mm256_storeu_si256((__m256i*)(high + first), (__m256i)upper);
    _mm256_storeu_si256((__m256i*)(low + first), (__m256i)lower);
    all = _mm512_fmadd_ps(x, x, all);
    small = _mm512_fmadd_ps(widen(lower), widen(lower), small);
    rest = _mm512_fmadd_ps(over, over, rest);
  }
  return {_mm512_reduce_add_ps(all), _mm512_reduce_add_ps(small), _mm512_reduce_add_ps(rest)};
}

// Calls put(tile, column, values, count) for each piece of the parts that lies in one tile.
// Stacked parts are high, low, high of a vector, and high, high, low of a code, so that one product has all three.
template <typename Put>
void lay_out(const SplitCodes& codes, const uint16_t* high, const uint16_t* low, bool code, const Put& put) {
  const auto part = [&put](int64_t start, const uint16_t* values, int64_t count) {
    for (int64_t done = 0, here; done < count; done += here) {
      const int64_t column = (start + done) % kWidth;
      here = std::min(count - done, kWidth - column);
      put((start + done) / kWidth, column, values + done, here);
    }
  };
  if (codes.stacked) {
    part(0, high, codes.dim);
    part(codes.dim, code ? high : low, codes.dim);
    part(2 * codes.dim, code ? low : high, codes.dim);
    return;
  }
  for (int64_t first = 0; first < codes.dim; first += kWidth) {
    part(2 * first, high + first, std::min(kWidth, codes.dim - first));
    part(2 * first + kWidth, low + first, std::min(kWidth, codes.dim - first));
  }
}

}  // namespace dqcore::cpu
