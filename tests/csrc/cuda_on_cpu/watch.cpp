// Notes what the CUDA kernels load and store, where they are compiled with -fsanitize=thread: the compiler then calls
// these functions before each access to memory. Nothing of that library is linked.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda_runtime.h"

namespace {

struct Access {
  uint64_t address, instruction;
  int64_t size, block, thread, barriers;
};

std::vector<Access> accesses;
uint64_t places[4];  // where what is noted begins and ends, twice
bool watching = false;

void note(const void* address, int64_t size, void* instruction) {
  const auto at = reinterpret_cast<uint64_t>(address);
  const bool inside = (places[0] <= at && at < places[1]) || (places[2] <= at && at < places[3]);
  if (!watching || !inside) return;
  watching = false;  // what is called from here may be compiled in the same way
  const auto& block = cuda_on_cpu::block;
  if (block.current < block.fibers.size()) {
    const int64_t index = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    accesses.push_back({at, reinterpret_cast<uint64_t>(instruction), size, index,
                        static_cast<int64_t>(block.current), block.fibers[block.current].waits});
  }
  watching = true;
}

}  // namespace

#define SEEN extern "C" __attribute__((visibility("default")))
#define ONE(name, size) \
  SEEN void __tsan_##name##size(void* at) { note(at, size, __builtin_return_address(0)); }
#define OF_SIZE(size) ONE(read, size) ONE(write, size) ONE(unaligned_read, size) ONE(unaligned_write, size)

OF_SIZE(1)
OF_SIZE(2)
OF_SIZE(4)
OF_SIZE(8)
OF_SIZE(16)
SEEN void __tsan_read_range(void* at, size_t size) { note(at, size, __builtin_return_address(0)); }
SEEN void __tsan_write_range(void* at, size_t size) { note(at, size, __builtin_return_address(0)); }
SEEN void __tsan_vptr_update(void*, void*) {}
SEEN void __tsan_vptr_read(void*) {}
SEEN void __tsan_func_entry(void*) {}
SEEN void __tsan_func_exit(void*) {}
SEEN void __tsan_init() {}

SEEN void watch_begin(uint64_t first, uint64_t end, uint64_t second, uint64_t last) {
  accesses.clear();
  places[0] = first, places[1] = end, places[2] = second, places[3] = last;
  watching = true;
}
SEEN int64_t watch_end() {
  watching = false;
  return static_cast<int64_t>(accesses.size());
}
SEEN const void* watch_found() { return accesses.data(); }
