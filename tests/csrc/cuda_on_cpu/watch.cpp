// The turns that the threads of a block take; and notes of what the CUDA kernels load and store, where they are compiled
// with -fsanitize=thread: the compiler then calls these functions before each access to memory. Nothing of that library
// is linked.
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

namespace cuda_on_cpu {

void barrier(size_t begin, size_t end) {
  const int mine = ++block.fibers[block.current].waits;
  const auto behind = [&](const Fiber& fiber) { return !fiber.done && fiber.waits < mine; };
  end = std::min(end, block.fibers.size());
  while (block.passed < mine && std::any_of(block.fibers.begin() + begin, block.fibers.begin() + end, behind)) yield();
  if (end - begin == block.fibers.size()) block.passed = std::max(block.passed, mine);
}

static void run_fiber() {
  block.body();
  block.fibers[block.current].done = true;
  yield();
  std::abort();  // a fiber that is done never runs again
}

void run_block(const std::function<void()>& body) {
  block.body = body;
  block.passed = 0;
  block.fibers.resize(blockDim.x * blockDim.y);
  for (size_t i = 0; i < block.fibers.size(); ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.stack.resize(1 << 16);
    fiber.index = dim3(i % blockDim.x, i / blockDim.x);
    fiber.waits = 0;
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.context, run_fiber, 0);
  }
  for (size_t left = block.fibers.size(); left > 0;) {
    left = 0;
    for (size_t i = block.fibers.size(); i-- > 0;) {  // from the last: an order that no kernel may rely on
      if (block.fibers[i].done) continue;
      block.current = i;
      threadIdx = block.fibers[i].index;
      swapcontext(&block.scheduler, &block.fibers[i].context);
      left += !block.fibers[i].done;
    }
  }
}

}  // namespace cuda_on_cpu

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
