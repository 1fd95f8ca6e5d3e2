// float16 and bfloat16 as bits: sums are computed in float32 and rounded once, to nearest even.
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

// Conversions between float16 and float32 compute every case and select one, so that the compiler can convert
// many values at a time.
inline float to_float(Half value) {
  // Exponent and mantissa move to float32's place; 2^112 corrects the bias and makes subnormals normal.
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t scaled = to_bits(from_bits(magnitude) * from_bits(0x77800000));
  const uint32_t special = magnitude | 0x7f800000;  // infinity or NaN
  return from_bits((magnitude < 0x0f800000 ? scaled : special) | sign);
}

inline void store(float value, float* out) { *out = value; }

inline void store(float value, BFloat16* out) {
  const uint32_t bits = to_bits(value);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  out->bits = nan ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

inline void store(float value, Half* out) {
  const uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 moves the bits that a subnormal keeps to the end of the mantissa; the addition rounds them.
  const uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
  const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;  // NaN, or rounded to infinity
  out->bits = static_cast<uint16_t>((magnitude < 0x477ff000 ? finite : special) | sign);
}

// Calls body with a value of the C++ type that a DType names.
template <typename Body>
void with_type(int dtype, const Body& body) {
  if (dtype == kFloat16) body(Half{});
  if (dtype == kBFloat16) body(BFloat16{});
  if (dtype == kFloat32) body(float{});
}

}  // namespace dqcore::cpu
