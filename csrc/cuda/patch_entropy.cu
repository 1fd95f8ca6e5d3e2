// Entropy of each patch's soft histogram, where a pixel gives weight to few bins. A warp has a patch, and each of its
// lanes a histogram of its own in shared memory, in a bank of its own: no atomics, and sums in one order. Wide kernels
// are left to Triton's. Reference: dqcore.ops.patch_entropy.
#include "cuda/vectors.cuh"

namespace dqcore::cuda {
namespace {

constexpr unsigned kTogether = 4;  // patches of a block
constexpr unsigned kMostReach = 4;

// All patches of a batch, image after image, and how a lane goes from a pixel to its next one, kWarp further on.
struct Patches {
  uint32_t total, rows, columns, side;
  uint32_t more_rows, more_columns;
  int64_t step, wrap;  // in memory; `wrap` on top where a line ends
};

__device__ float warp_sum(float value) {
  for (unsigned distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// 2^-x; subnormal results may be 0.
__device__ float power_of_half(float x) {
#ifdef __CUDA_ARCH__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-x));
  return power;
#else
  return exp2f(-x);
#endif
}

// Where a warp's patch begins, in numbers from the first of the images.
__device__ int64_t corner_of(const Images& images, const Patches& patches, uint32_t patch) {
  const uint32_t line = patch / patches.columns, column = patch % patches.columns;
  const uint32_t image = line / patches.rows, row = line % patches.rows;
  return image * images.strides[0] + row * patches.side * images.strides[2] +
         column * patches.side * images.strides[3];
}

// A pixel as it is stored.
template <typename T>
struct Pixel {
  T values[3];

  __device__ static Pixel load(const Images& images, const T* from) {
    if (images.channels == 1) return {from[0]};  // and zeros, whose weights are 0
    return {from[0], from[images.strides[1]], from[2 * images.strides[1]]};
  }

  // Its place among the bins, in float64: 0 at the first one's centre, 1 at the next one's.
  __device__ double place(const Bins& bins) const {
    double place = bins.start;
    for (int i = 0; i < 3; ++i) place = fma(bins.weights[i], static_cast<double>(to_float(values[i])), place);
    return place;
  }
};

// Adds what a pixel gives to `kReach` bins on either side of it; those of a lane lie kWarp apart. There are kReach - 1
// rows before the first bin and kReach after the last one for what falls beside them.
template <int kReach>
__device__ void add_pixel(const Bins& bins, double place, float* own) {
  const int nearest = min(max(__double2int_rd(place), 0), bins.count - 1);
  const float rest = static_cast<float>(place - nearest);
  own += nearest * static_cast<int>(kWarp);
#pragma unroll
  for (int i = 0; i < 2 * kReach; ++i) {
    const float apart = fmaf(rest, bins.rate, static_cast<float>(kReach - 1 - i) * bins.rate);
    own[i * kWarp] += power_of_half(apart * apart);
  }
}

// The sum of a row of 32 lanes' numbers. Lanes that read rows together begin at different places, and so in different
// banks.
__device__ float row_sum(const float* row, unsigned lane) {
  float total = 0;
#pragma unroll
  for (unsigned i = 0; i < kWarp / 4; ++i) {
    const auto some = *reinterpret_cast<const Vector<float>*>(row + (i + lane) % (kWarp / 4) * 4);
    total += (some.values[0] + some.values[1]) + (some.values[2] + some.values[3]);
  }
  return total;
}

// From `mass`, the sum of the shares of all bins, and `spread`, sum_b p_b ln p_b; a lane has every 32nd bin.
__device__ float entropy_of(const Bins& bins, const float* rows, uint32_t pixels, unsigned lane) {
  float mass = 0, spread = 0;
  for (int bin = static_cast<int>(lane); bin < bins.count; bin += kWarp) {
    const float share = row_sum(rows + bin * kWarp, lane) / static_cast<float>(pixels);
    mass += share;
    spread += share == 0 ? 0.0f : share * logf(share);
  }
  mass = warp_sum(mass);
  spread = warp_sum(spread);
  if (mass < bins.no_mass) return 0.0f;
  const float result = logf(mass) - spread / mass;
  return result < 0 ? 0.0f : result;
}

template <typename T, int kBins, int kReach>
__global__ void patch_entropy_kernel(Images images, Patches patches, Bins bins, const T* __restrict__ pixels,
                                     float* __restrict__ entropy) {
  constexpr unsigned kRows = kBins + 2 * kReach - 1;
  __shared__ Vector<float> histograms[kTogether][kRows * kWarp / 4];
  const unsigned lane = threadIdx.x;
  const uint32_t patch = blockIdx.x * kTogether + threadIdx.y;
  if (patch >= patches.total) return;
#pragma unroll
  for (unsigned i = 0; i < kRows; i += 4) {  // a lane clears four numbers of one of four rows
    if (4 * lane + i * kWarp < kRows * kWarp) histograms[threadIdx.y][lane + i * kWarp / 4] = {};
  }
  __syncwarp();
  float* rows = histograms[threadIdx.y][0].values;
  uint32_t row = lane / patches.side, column = lane % patches.side;
  const T* pixel = pixels + corner_of(images, patches, patch) + row * images.strides[2] +
                   column * images.strides[3];
  Pixel<T> next = row < patches.side ? Pixel<T>::load(images, pixel) : Pixel<T>{};
  while (row < patches.side) {
    const Pixel<T> own = next;
    row += patches.more_rows, column += patches.more_columns, pixel += patches.step;
    if (column >= patches.side) column -= patches.side, ++row, pixel += patches.wrap;
    if (row < patches.side) next = Pixel<T>::load(images, pixel);  // on its way while this one is added
    add_pixel<kReach>(bins, own.place(bins), rows + lane);
  }
  __syncwarp();
  const float result =
      entropy_of(bins, rows + (kReach - 1) * kWarp, patches.side * patches.side, lane);
  if (lane == 0) entropy[patch] = result;
}

template <typename T>
auto kernel_for(const Bins& bins) {
  if (bins.count > 32) return patch_entropy_kernel<T, 64, kMostReach>;
  return bins.reach == 1 ? patch_entropy_kernel<T, 32, 1> : patch_entropy_kernel<T, 32, kMostReach>;
}

Patches patches_of(const Images& images) {
  const auto number = [](int64_t value) { return static_cast<uint32_t>(value); };
  const int64_t side = images.patch_size, rows = images.height / side, columns = images.width / side;
  const int64_t down = kWarp / side, right = kWarp % side, *strides = images.strides;
  return {number(images.batch * rows * columns), number(rows),  number(columns),
          number(side),                          number(down),  number(right),
          down * strides[2] + right * strides[3], strides[2] - side * strides[3]};
}

}  // namespace

int patch_entropy(const Images& images, const Bins& bins, float* entropy, Stream stream) {
  const Patches patches = patches_of(images);
  return with_type(images.dtype, [&](auto type) {
    using T = decltype(type);
    return launch(stream, blocks_for(patches.total, kTogether), dim3(kWarp, kTogether), kernel_for<T>(bins),
                  images, patches, bins, static_cast<const T*>(images.data), entropy);
  });
}

}  // namespace dqcore::cuda
