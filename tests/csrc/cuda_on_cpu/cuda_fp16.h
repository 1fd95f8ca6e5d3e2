// float16 and bfloat16 of CUDA over the conversions of csrc/cpu.
#pragma once

#include "cpu/floats.h"

struct __half {
  dqcore::cpu::Half value;
};

struct __nv_bfloat16 {
  dqcore::cpu::BFloat16 value;
};

inline float __half2float(__half half) { return dqcore::cpu::to_float(half.value); }
inline float __bfloat162float(__nv_bfloat16 half) { return dqcore::cpu::to_float(half.value); }

inline __half __float2half_rn(float value) {
  __half half;
  dqcore::cpu::store(value, &half.value);
  return half;
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  __nv_bfloat16 half;
  dqcore::cpu::store(value, &half.value);
  return half;
}
