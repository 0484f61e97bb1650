// What a call looks like, as bytes that can be a key: all that a check or a limit may read of its arguments, as
// ops_registry/signature.py has it in Python.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dlpack.h"
#include "native/function.h"

namespace bnb_core {

inline bool contiguous(const dlpack::Tensor& tensor) {
    std::int64_t stride = 1;
    bool dense = true;
    for (std::int32_t i = tensor.ndim - 1; i >= 0; --i) {
        if (tensor.shape[i] == 0) return true;
        dense = dense && (tensor.shape[i] == 1 || tensor.strides[i] == stride);
        stride *= tensor.shape[i];
    }
    return dense;
}

inline Address address(const dlpack::Tensor& tensor) {
    return tensor.data == nullptr ? 0 : reinterpret_cast<Address>(tensor.data) + tensor.byte_offset;
}

// Knows contiguous tensors in the memory of the CPU and lists of them, numbers, strings, dtypes, None and lists of
// whole numbers.
class Reader {
  public:
    explicit Reader(const py::object& torch) : tensor_(torch.attr("Tensor")), dtype_(torch.attr("dtype")) {
        if (!py::hasattr(tensor_, "__dlpack_c_exchange_api__")) return;
        const py::object capsule = tensor_.attr("__dlpack_c_exchange_api__");
        const void* api = PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule);
        if (api == nullptr) throw py::error_already_set();
        const auto* found = static_cast<const dlpack::ExchangeApi*>(api);
        if (found->major == dlpack::kMajorVersion) read_ = found->tensor_from_object;
    }

    // False for a torch that is older than this way to read tensors.
    bool available() const { return read_ != nullptr; }

    bool is_tensor(PyObject* object) const {
        return PyType_IsSubtype(Py_TYPE(object), reinterpret_cast<PyTypeObject*>(tensor_.ptr())) != 0;
    }

    bool tensor(PyObject* object, dlpack::Tensor& result) const {
        if (read_(object, &result) == 0) return true;
        PyErr_Clear();
        return false;
    }

    // Appends the signature of an argument, and the addresses of its tensors. False for what has no signature.
    bool argument(PyObject* object, std::string& signature, std::vector<Address>& places) const {
        if (is_tensor(object)) return placed_tensor(object, signature, places);
        if (object == Py_None) {
            signature += 'N';
            return true;
        }
        if (PyLong_CheckExact(object)) return whole(object, signature);
        if (PyBool_Check(object)) {
            signature += object == Py_True ? '1' : '0';
            return true;
        }
        if (PyUnicode_CheckExact(object)) {
            Py_ssize_t size = 0;
            const char* data = PyUnicode_AsUTF8AndSize(object, &size);
            if (data == nullptr) throw py::error_already_set();
            append(signature, 's', size);
            signature.append(data, static_cast<std::size_t>(size));
            return true;
        }
        if (reinterpret_cast<PyObject*>(Py_TYPE(object)) == dtype_.ptr()) {
            append(signature, 'd', object);  // there is one of each
            return true;
        }
        if (PyFloat_CheckExact(object)) {
            append(signature, 'f', PyFloat_AS_DOUBLE(object));
            return true;
        }
        if (!PyList_CheckExact(object)) return false;
        const bool of_tensors = PyList_GET_SIZE(object) > 0 && is_tensor(PyList_GET_ITEM(object, 0));
        return of_tensors ? placed_tensors(object, signature, places) : whole_numbers(object, signature);
    }

  private:
    bool placed_tensor(PyObject* object, std::string& signature, std::vector<Address>& places) const {
        dlpack::Tensor found{};
        if (!tensor(object, found) || found.device_type != dlpack::kCpu || !contiguous(found)) return false;
        append(signature, 'T', found.dtype, found.ndim);
        signature.append(reinterpret_cast<const char*>(found.shape), sizeof(std::int64_t) * found.ndim);
        places.push_back(address(found));
        return true;
    }

    bool placed_tensors(PyObject* list, std::string& signature, std::vector<Address>& places) const {
        const Py_ssize_t size = PyList_GET_SIZE(list);
        append(signature, 'L', size);
        for (Py_ssize_t i = 0; i < size; ++i) {
            PyObject* item = PyList_GET_ITEM(list, i);
            if (!is_tensor(item) || !placed_tensor(item, signature, places)) return false;
        }
        return true;
    }

    template <class... T>
    static void append(std::string& signature, char kind, const T&... values) {
        signature += kind;
        (signature.append(reinterpret_cast<const char*>(&values), sizeof values), ...);
    }

    static bool whole(PyObject* object, std::string& signature) {
        int overflow = 0;
        const long long number = PyLong_AsLongLongAndOverflow(object, &overflow);
        append(signature, 'i', number);
        return overflow == 0;
    }

    static bool whole_numbers(PyObject* list, std::string& signature) {
        const Py_ssize_t size = PyList_GET_SIZE(list);
        append(signature, 'l', size);
        for (Py_ssize_t i = 0; i < size; ++i) {
            PyObject* item = PyList_GET_ITEM(list, i);
            if (!PyLong_CheckExact(item) || !whole(item, signature)) return false;
        }
        return true;
    }

    py::object tensor_, dtype_;
    int (*read_)(void*, dlpack::Tensor*) = nullptr;
};

}  // namespace bnb_core
