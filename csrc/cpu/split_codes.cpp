// The codebook's side: parts in tiles, made once for many vectors, and the margin that their rounding asks
// for.
#include "cpu/split_codes.h"

#include <algorithm>
#include <cmath>
#include <limits>

#ifdef DQCORE_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/split.h"

namespace dqcore::cpu {
namespace {

constexpr int64_t kStacked = 16;  // channels of which stacked parts take fewer products
constexpr int kLargest = 120;     // exponents of the scale, so that float32 can hold it

// Transposes a square of pairs, 16 rows of 16: first the squares of four within each quarter of the
// registers, then the quarters.
DQ_TILES void transpose_pairs(const uint16_t* const* from, Tile& to) {
  __m512 x[kSide], a[kSide];
  for (int64_t i = 0; i < kSide; ++i) x[i] = _mm512_loadu_ps(from[i]);
  for (int64_t i = 0; i < kSide; i += 4) {
    const __m512 low = _mm512_unpacklo_ps(x[i], x[i + 1]), low2 = _mm512_unpacklo_ps(x[i + 2], x[i + 3]);
    const __m512 high = _mm512_unpackhi_ps(x[i], x[i + 1]), high2 = _mm512_unpackhi_ps(x[i + 2], x[i + 3]);
    a[i] = _mm512_shuffle_ps(low, low2, 0x44);
    a[i + 1] = _mm512_shuffle_ps(low, low2, 0xee);
    a[i + 2] = _mm512_shuffle_ps(high, high2, 0x44);
    a[i + 3] = _mm512_shuffle_ps(high, high2, 0xee);
  }
  for (int64_t j = 0; j < 4; ++j) {
    const __m512 even = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88);
    const __m512 even2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
    const __m512 odd = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
    const __m512 odd2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
    _mm512_store_ps(to.rows[j], _mm512_shuffle_f32x4(even, even2, 0x88));
    _mm512_store_ps(to.rows[4 + j], _mm512_shuffle_f32x4(odd, odd2, 0x88));
    _mm512_store_ps(to.rows[8 + j], _mm512_shuffle_f32x4(even, even2, 0xdd));
    _mm512_store_ps(to.rows[12 + j], _mm512_shuffle_f32x4(odd, odd2, 0xdd));
  }
}

bool ask_for_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & d >> 24 & 1))
    return false;  // AMX-BF16, AMX-TILE
  if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw")) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;  // AVX512-BF16
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Numbers whose square underflows may be missing from a length.
double missing(int64_t dim) { return std::sqrt(static_cast<double>(dim)) * 0x1p-62; }

double length(double squares, int64_t dim) { return 1.0001 * std::sqrt(squares) + missing(dim); }

}  // namespace

bool has_tiles() {
  static const bool has = ask_for_tiles();
  return has;
}

SplitCodes::SplitCodes(const float* codebook, int64_t num, int64_t dim)
    : codebook(codebook),
      num(num),
      dim(dim),
      stacked(dim <= kStacked),
      tiles_each(stacked ? (3 * dim + kWidth - 1) / kWidth : 2 * ((dim + kWidth - 1) / kWidth)),
      products_each(stacked ? tiles_each : 3 * tiles_each / 2) {
  centre();
  usable = std::all_of(mean.begin(), mean.end(), [](float value) { return std::isfinite(value); });
  if (usable) split_all();
}

// Finds the mean of the codes, and the power of two that brings the farthest number near 1.
void SplitCodes::centre() {
  std::vector<double> sums(dim);
  for (int64_t code = 0; code < num; ++code) {
    for (int64_t channel = 0; channel < dim; ++channel) sums[channel] += codebook[code * dim + channel];
  }
  mean.assign(dim, 0);
  for (int64_t channel = 0; channel < dim; ++channel) mean[channel] = static_cast<float>(sums[channel] / num);
  float largest = 0;
  for (int64_t code = 0; code < num; ++code) {
    for (int64_t channel = 0; channel < dim; ++channel)
      largest = std::max(largest, std::abs(codebook[code * dim + channel] - mean[channel]));
  }
  int exponent = 0;
  if (std::isfinite(largest)) std::frexp(largest, &exponent);
  scale = std::ldexp(1.0f, std::isfinite(largest) ? -std::clamp(exponent, -kLargest, kLargest) : -kLargest);
  for (float& value : mean) value *= scale;
}

void SplitCodes::split_all() {
  const int64_t padded = (num + 2 * kSide - 1) / (2 * kSide) * 2 * kSide;
  tiles.resize(padded / kSide * tiles_each);
  square.assign(padded, std::numeric_limits<float>::infinity());
  const int64_t pitch = (dim + kWidth - 1) / kWidth * kWidth;
  std::vector<uint16_t> high(kSide * pitch), low_parts(kSide * pitch);
  Lengths largest{};
  for (int64_t start = 0; start < num; start += kSide) {
    const int64_t count = std::min(kSide, num - start);
    for (int64_t index = 0; index < count; ++index) {
      const Lengths own = split(codebook + (start + index) * dim, -2 * scale, mean.data(), -2, dim,
                                high.data() + index * pitch, low_parts.data() + index * pitch);
      largest = {std::max(largest.all, own.all), std::max(largest.low, own.low),
                 std::max(largest.rest, own.rest)};
      square[start + index] = own.all / 4;
    }
    Tile* const row = tiles.data() + start / kSide * tiles_each;
    stacked ? stack(high.data(), low_parts.data(), count, pitch, row)
            : take_turns(high.data(), low_parts.data(), count, pitch, row);
  }
  radius = length(largest.all, dim) / 2;
  low = length(largest.low, dim);
  rest = length(largest.rest, dim);
}

// The parts of `count` codes into tiles, pair by pair.
void SplitCodes::stack(const uint16_t* high, const uint16_t* low_parts, int64_t count, int64_t pitch,
                       Tile* row) const {
  for (int64_t code = 0; code < count; ++code) {
    lay_out(*this, high + code * pitch, low_parts + code * pitch, true,
            [&](int64_t tile, int64_t column, const uint16_t* values, int64_t size) {
              for (int64_t index = 0; index < size; ++index) {
                const int64_t channel = column + index;
                row[tile].rows[channel / 2][code * 2 + channel % 2] = values[index];
              }
            });
  }
}

// The same where tiles of high and low parts take turns: a tile is 16 rows of 16 pairs, transposed.
void SplitCodes::take_turns(const uint16_t* high, const uint16_t* low_parts, int64_t count, int64_t pitch,
                            Tile* row) const {
  static const Tile none{};
  for (int64_t tile = 0; tile < tiles_each; ++tile) {
    const uint16_t* const parts = (tile % 2 == 0 ? high : low_parts) + tile / 2 * kWidth;
    const uint16_t* from[kSide];
    for (int64_t index = 0; index < kSide; ++index)
      from[index] = index < count ? parts + index * pitch : none.rows[index];
    transpose_pairs(from, row[tile]);
  }
}

double SplitCodes::margin(const Lengths& vector, bool high) const {
  constexpr double kUnit = 0x1p-24;
  const double norm = length(vector.all, dim), sum = norm + radius;
  const double vector_low = length(vector.low, dim), vector_rest = length(vector.rest, dim);
  const double tiles = 1.04 * (products_each + 33) * kUnit * 2 * norm * radius;
  const double others = 8 * kUnit * 2 * norm * radius + (16 + dim / 16) * kUnit * radius * radius;
  const double parts = high ? (vector_low + vector_rest) * (2 * radius + low + rest) + norm * (low + rest)
                            : vector_low * low + vector_rest * (2 * radius + rest) + norm * rest;
  const double underflow = 0x1p-118 * (dim + kWidth) * (1 + sum);
  return 2.02 * (tiles + others + parts + underflow + 0x1p-47 * sum * sum);
}

}  // namespace dqcore::cpu

#else

namespace dqcore::cpu {

bool has_tiles() { return false; }

}  // namespace dqcore::cpu

#endif
