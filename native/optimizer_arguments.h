// What lists and tuples from Python stand for in an optimizer step.
#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "native/arguments.h"
#include "native/optimizer.h"

namespace bnb_core {

inline OptimizerRule rule_of(std::string_view name) {
    if (name == "adam" || name == "lamb") return OptimizerRule::adam;
    if (name == "ademamix") return OptimizerRule::ademamix;
    if (name == "momentum" || name == "lars") return OptimizerRule::momentum;
    if (name == "lion") return OptimizerRule::lion;
    if (name == "rmsprop") return OptimizerRule::rmsprop;
    if (name == "adagrad") return OptimizerRule::adagrad;
    throw std::invalid_argument("unknown optimizer '" + std::string(name) + "'");
}

namespace detail {

template <class T>
void numbers(PyObject* list, std::vector<T>& result) {
    if (PyList_Check(list) == 0) throw py::type_error("expected a list");
    result.resize(static_cast<std::size_t>(PyList_GET_SIZE(list)));
    for (std::size_t i = 0; i < result.size(); ++i) {
        from_python(PyList_GET_ITEM(list, static_cast<Py_ssize_t>(i)), result[i]);
    }
}

}  // namespace detail

// The tensors of a step, as lists over the parameters: sizes, then addresses, or none for None.
struct Lists : Addressed {
    enum Field { g, p, state1, state2, scale1, scale2, unorm, count };

    std::vector<std::int64_t> sizes;
    std::array<std::vector<Address>, count> fields;

    // Of parameter i; null for none.
    template <class T>
    T* at(Field field, std::size_t i) const {
        return fields[field].empty() ? nullptr : pointer<T>(fields[field][i]);
    }

    template <class F>
    void each(F f) {
        for (std::vector<Address>& field : fields) {
            for (Address& place : field) f(place);
        }
    }
};

// Called by Function: a tuple of lists, of which all but the first can be None.
inline void from_python(PyObject* tuple, Lists& result) {
    if (PyTuple_Check(tuple) == 0 || PyTuple_GET_SIZE(tuple) != 8) throw py::type_error("expected 8 lists");
    detail::numbers(PyTuple_GET_ITEM(tuple, 0), result.sizes);
    for (std::size_t i = 0; i < result.fields.size(); ++i) {
        PyObject* list = PyTuple_GET_ITEM(tuple, static_cast<Py_ssize_t>(i + 1));
        if (list == Py_None) continue;
        detail::numbers(list, result.fields[i]);
        if (result.fields[i].size() != result.sizes.size()) throw std::invalid_argument("lists differ in length");
    }
}

// All settings but the step and the learning rate.
struct Settings : OptimizerSettings, Numbered {
    template <class F>
    void each_number(F f) {
        for (double* number : {&beta1, &beta2, &beta3, &alpha, &eps, &weight_decay, &gnorm_scale}) f(*number);
    }
};

// Called by Function: a tuple.
inline void from_python(PyObject* tuple, Settings& result) {
    if (PyTuple_Check(tuple) == 0 || PyTuple_GET_SIZE(tuple) != 8) throw py::type_error("expected 8 settings");
    Py_ssize_t next = 0;
    result.each_number([&](double& number) { detail::from_python(PyTuple_GET_ITEM(tuple, next++), number); });
    detail::from_python(PyTuple_GET_ITEM(tuple, next), result.skip_zeros);
}

// An address of 0 for none.
inline Codebook codebook(Address values, std::int64_t size) { return {pointer<const float>(values), size}; }

}  // namespace bnb_core
