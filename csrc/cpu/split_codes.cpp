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
  std::vector<uint16_t> parts(2 * (dim + kSide));
  uint16_t *const first = parts.data(), *const second = first + dim + kSide;
  Lengths largest{};
  for (int64_t code = 0; code < num; ++code) {
    const Lengths own = split(codebook + code * dim, -2 * scale, mean.data(), -2, dim, first, second);
    largest = {std::max(largest.all, own.all), std::max(largest.low, own.low),
               std::max(largest.rest, own.rest)};
    square[code] = own.all / 4;
    Tile* const row = tiles.data() + code / kSide * tiles_each;
    lay_out(*this, first, second, true,
            [&](int64_t tile, int64_t column, const uint16_t* values, int64_t count) {
              for (int64_t index = 0, here; index < count; index += here) {
                const int64_t channel = column + index;
                uint16_t* const to = row[tile].rows[channel / 2] + code % kSide * 2 + channel % 2;
                here = channel % 2 == 0 && index + 1 < count ? 2 : 1;
                here == 2 ? std::copy_n(values + index, 2, to)
                          : std::copy_n(values + index, 1, to);  // fixed sizes
              }
            });
  }
  radius = length(largest.all, dim) / 2;
  low = length(largest.low, dim);
  rest = length(largest.rest, dim);
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
