// The Python face of csrc: plain functions over pointers (as integers), sizes and a CUDA stream.
// Arguments are validated in dqcore/ops; nothing here knows about torch.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
#ifdef DQCORE_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
}
