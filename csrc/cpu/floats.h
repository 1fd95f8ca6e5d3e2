// float16 and bfloat16 as bits: sums are made in float32, and rounded once, to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

#include "layout.h"

namespace dqcore::cpu {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }

inline float to_float(Half value) {
  // Exponent and mantissa move to float32's place; 2^112 corrects the bias and makes subnormals normal.
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const bool finite = magnitude < 0x0f800000;
  const uint32_t bits = finite ? to_bits(from_bits(magnitude) * from_bits(0x77800000)) : magnitude | 0x7f800000;
  return from_bits(bits | sign);
}

inline void store(float value, float* out) { *out = value; }

inline void store(float value, BFloat16* out) {
  const uint32_t bits = to_bits(value);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  out->bits = nan ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

inline void store(float value, Half* out) {
  const uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;  // NaN
  } else if (magnitude >= 0x477ff000) {
    half = 0x7c00;  // rounds to infinity
  } else if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 puts the bits to keep at the end of the mantissa, rounded by the addition itself.
    half = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
  } else {
    half = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  out->bits = half | sign;
}

// Calls body with a value of the C++ type of a DType.
template <typename Body>
void with_type(int dtype, const Body& body) {
  if (dtype == kFloat16) body(Half{});
  if (dtype == kBFloat16) body(BFloat16{});
  if (dtype == kFloat32) body(float{});
}

}  // namespace dqcore::cpu
