// csrc for Python: functions of pointers (as integers), sizes and a CUDA stream. dqcore/ops checks the
// arguments; no header of torch is needed here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>

#include "cpu/split_codes.h"
#include "ops.h"

namespace py = pybind11;
using namespace dqcore;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Layout make_layout(uintptr_t grain, uintptr_t starts, uintptr_t steps, uintptr_t cu_seqlens, int64_t images,
                   int64_t rows, int64_t columns, int granularities) {
  return {pointer<const int64_t>(grain),
          pointer<int32_t>(starts),
          pointer<int32_t>(steps),
          pointer<int32_t>(cu_seqlens),
          images,
          rows,
          columns,
          granularities};
}

Codes make_codes(uintptr_t codes, uintptr_t positions, uintptr_t grains, int64_t total) {
  return {pointer<int64_t>(codes), pointer<int64_t>(positions), pointer<int64_t>(grains), total};
}

void bind_arguments(py::module_& m) {
  py::class_<Layout>(m, "Layout", py::module_local()).def(py::init(&make_layout));
  py::class_<Codes>(m, "Codes", py::module_local()).def(py::init(&make_codes));
  py::class_<Features>(m, "Features", py::module_local())
      .def(py::init([](uintptr_t data, int64_t channels, bool last, int dtype) {
        return Features{pointer<void>(data), channels, last, dtype};
      }));
  py::class_<Packed>(m, "Packed", py::module_local()).def(py::init([](uintptr_t data, int64_t total) {
    return Packed{pointer<void>(data), total};
  }));
}

void bind_dropout(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  py::class_<Dropout>(m, "Dropout", py::module_local())
      .def(py::init([](int64_t seed, int64_t offset, int keep, int64_t heads, int64_t first_row, int64_t rows,
                       int64_t first_column, int64_t columns) {
        return Dropout{static_cast<uint64_t>(seed), static_cast<uint32_t>(offset), keep, heads, first_row, rows,
                       first_column, columns};
      }));
  m.def(
      "dropout_mask_cpu",
      [](const Dropout& part, uintptr_t weights, int threads) {
        cpu::dropout_mask(part, pointer<float>(weights), threads);
      },
      no_gil);
}

void bind_cpu(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("has_tiles", &cpu::has_tiles);
#ifdef DQCORE_AMX
  py::class_<cpu::SplitCodes>(m, "SplitCodes", py::module_local())
      .def(py::init([](uintptr_t codebook, int64_t num, int64_t dim) {
        return std::make_unique<cpu::SplitCodes>(pointer<const float>(codebook), num, dim);
      }))
      .def_readonly("usable", &cpu::SplitCodes::usable)
      .def(
          "nearest",
          [](const cpu::SplitCodes& codes, uintptr_t vectors, int64_t count, uintptr_t out, int threads) {
            codes.nearest(pointer<const float>(vectors), count, pointer<int64_t>(out), threads);
          },
          no_gil);
#endif
  m.def(
      "layout_cpu",
      [](const Layout& layout, bool row_first, uintptr_t line_starts, int threads) {
        cpu::layout(layout, row_first, pointer<int32_t>(line_starts), threads);
      },
      no_gil);
  m.def("pack_features_cpu", &cpu::pack_features, no_gil);
  m.def("expand_features_cpu", &cpu::expand_features, no_gil);
  m.def(
      "pack_codes_cpu",
      [](const Layout& layout, uintptr_t code_map, const Codes& out, int threads) {
        cpu::pack_codes(layout, pointer<const int64_t>(code_map), out, threads);
      },
      no_gil);
  m.def(
      "unpack_codes_cpu",
      [](const Layout& layout, const Codes& codes, uintptr_t code_map, uintptr_t grain_map, int threads) {
        return cpu::unpack_codes(layout, codes, pointer<int64_t>(code_map), pointer<int64_t>(grain_map),
                                 threads);
      },
      no_gil);
}

#ifdef DQCORE_CUDA
void bind_patches(py::module_& m) {
  py::class_<Images>(m, "Images", py::module_local())
      .def(py::init([](uintptr_t data, int dtype, std::array<int64_t, 4> sizes, std::array<int64_t, 4> strides,
                       int64_t patch_size) {
        return Images{pointer<const void>(data),
                      dtype,
                      sizes[0],
                      sizes[1],
                      sizes[2],
                      sizes[3],
                      {strides[0], strides[1], strides[2], strides[3]},
                      patch_size};
      }));
  py::class_<Bins>(m, "Bins", py::module_local())
      .def(py::init([](double start, std::array<double, 3> weights, int count, int reach, float rate, float no_mass) {
        return Bins{start, {weights[0], weights[1], weights[2]}, count, reach, rate, no_mass};
      }));
  m.def("patch_entropy_cuda", [](const Images& images, const Bins& bins, uintptr_t entropy, cuda::Stream stream) {
    return cuda::patch_entropy(images, bins, pointer<float>(entropy), stream);
  });
}

void bind_cuda(py::module_& m) {
  py::class_<cuda::Stream>(m, "Stream", py::module_local()).def(py::init([](int device, uintptr_t handle) {
    return cuda::Stream{device, handle};
  }));
  m.def("cuda_error_name", &cuda::error_name);
  m.def("layout_cuda", [](const Layout& layout, bool row_first, uintptr_t line_starts, cuda::Stream stream) {
    return cuda::layout(layout, row_first, pointer<int32_t>(line_starts), stream);
  });
  m.def("pack_features_cuda", &cuda::pack_features);
  m.def("expand_features_cuda", &cuda::expand_features);
  m.def("pack_codes_cuda",
        [](const Layout& layout, uintptr_t code_map, const Codes& out, cuda::Stream stream) {
          return cuda::pack_codes(layout, pointer<const int64_t>(code_map), out, stream);
        });
  m.def("unpack_codes_cuda", [](const Layout& layout, const Codes& codes, uintptr_t code_map,
                                uintptr_t grain_map, cuda::Stream stream) {
    return cuda::unpack_codes(layout, codes, pointer<int64_t>(code_map), pointer<int64_t>(grain_map), stream);
  });
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("interface") = kInterface;
  bind_arguments(m);
  bind_cpu(m);
  bind_dropout(m);
#ifdef DQCORE_CUDA
  bind_cuda(m);
  bind_patches(m);
  m.attr("has_cuda") = cuda::driver_suffices();
#else
  m.attr("has_cuda") = false;
#endif
}
