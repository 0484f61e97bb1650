// Functions for Python that cost little to call: positional arguments, numbers and strings only. The dispatcher of
// pybind11, which also knows keywords and overloads, allocates for each call and takes 0.6 µs more.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace bnb_core {

using Address = std::uintptr_t;

// Base of types of arguments that hold addresses: each(f) calls f with every one of them, always in the same order.
struct Addressed {};

// Base of types of arguments that hold numbers which change from call to call: each_number(f), likewise.
struct Numbered {};

// A call of a function, to be made again with other addresses and numbers. Of its arguments those of type Address are
// addresses, Addressed ones hold some, and Numbered ones numbers; the one of type int is the number of threads; all
// others stay as they were.
class RecordedCall {
  public:
    virtual ~RecordedCall() = default;

    // The call again, with these addresses and numbers in the order of the arguments. Called with the GIL, runs
    // without.
    virtual void repeat(const Address* addresses, const double* numbers, int threads) const = 0;

    const std::vector<Address>& addresses() const { return addresses_; }
    const std::vector<double>& numbers() const { return numbers_; }

  protected:
    std::vector<Address> addresses_;
    std::vector<double> numbers_;
};

// Receives the calls of one thread while it is that thread's recorder.
struct Recorder {
    Recorder() : previous(current) { current = this; }
    ~Recorder() { current = previous; }
    Recorder(const Recorder&) = delete;
    Recorder& operator=(const Recorder&) = delete;

    int count = 0;
    std::unique_ptr<RecordedCall> last;  // none for a function that returns something

    Recorder* previous;
    static inline thread_local Recorder* current = nullptr;
};

namespace detail {

inline void throw_if(bool error) {
    if (error && PyErr_Occurred() != nullptr) throw py::error_already_set();
}

// from_python(value, result): the argument as a C++ value; throws the error of Python where it is of another type.
inline void from_python(PyObject* value, double& result) {
    result = PyFloat_AsDouble(value);
    throw_if(result == -1.0);
}

inline void from_python(PyObject* value, bool& result) {
    const int truth = PyObject_IsTrue(value);
    throw_if(truth == -1);
    result = truth != 0;
}

inline void from_python(PyObject* value, std::string_view& result) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(value, &size);
    throw_if(data == nullptr);
    result = {data, static_cast<std::size_t>(size)};
}

template <class T, std::enable_if_t<std::is_integral_v<T>, int> = 0>
void from_python(PyObject* value, T& result) {
    if constexpr (std::is_signed_v<T>) {
        const long long number = PyLong_AsLongLong(value);
        throw_if(number == -1);
        if (number < std::numeric_limits<T>::min() || number > std::numeric_limits<T>::max()) {
            throw std::overflow_error("an argument is too large");
        }
        result = static_cast<T>(number);
    } else {
        static_assert(sizeof(T) == sizeof(unsigned long long));
        const unsigned long long number = PyLong_AsUnsignedLongLong(value);
        throw_if(number == std::numeric_limits<unsigned long long>::max());
        result = number;
    }
}

class WithoutGil {
  public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    ~WithoutGil() { PyEval_RestoreThread(state_); }
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

  private:
    PyThreadState* state_;
};

template <class F, class... Args>
class CallOf final : public RecordedCall {
  public:
    CallOf(const F& f, const std::tuple<Args...>& values, PyObject* const* args) : f_(f), values_(values) {
        for (std::size_t i = 0; i < sizeof...(Args); ++i) {
            if (PyUnicode_CheckExact(args[i])) kept_.push_back(py::reinterpret_borrow<py::object>(args[i]));
        }
        std::apply([this](auto&... value) { (note(value), ...); }, values_);
    }

    void repeat(const Address* addresses, const double* numbers, int threads) const override {
        std::tuple<Args...> values = values_;
        std::apply([&](auto&... value) { (renew(value, addresses, numbers, threads), ...); }, values);
        const WithoutGil without_gil;
        std::apply(f_, std::move(values));
    }

  private:
    template <class T>
    void note(T& value) {
        if constexpr (std::is_same_v<T, Address>) addresses_.push_back(value);
        if constexpr (std::is_base_of_v<Addressed, T>) value.each([this](Address x) { addresses_.push_back(x); });
        if constexpr (std::is_base_of_v<Numbered, T>) value.each_number([this](double x) { numbers_.push_back(x); });
    }

    template <class T>
    static void renew(T& value, const Address*& addresses, const double*& numbers, int threads) {
        if constexpr (std::is_same_v<T, Address>) value = *addresses++;
        if constexpr (std::is_base_of_v<Addressed, T>) value.each([&](Address& place) { place = *addresses++; });
        if constexpr (std::is_base_of_v<Numbered, T>) value.each_number([&](double& x) { x = *numbers++; });
        if constexpr (std::is_same_v<T, int>) value = threads;
    }

    F f_;
    std::tuple<Args...> values_;
    std::vector<py::object> kept_;  // strings, whose characters the values refer to
};

// `F` takes Args and returns nothing or a number.
template <class F, class Signature = decltype(&F::operator())>
class Function;

template <class F, class Result, class... Args>
class Function<F, Result (F::*)(Args...) const> {
  public:
    Function(const char* name, F f) : name_(name), f_(std::move(f)) {}

    py::object operator()(PyObject* const* args, Py_ssize_t count) const {
        if (count != static_cast<Py_ssize_t>(sizeof...(Args))) {
            throw py::type_error(std::string(name_) + "() takes " + std::to_string(sizeof...(Args)) + " arguments, " +
                                 std::to_string(count) + " were given");
        }
        return run(args, std::index_sequence_for<Args...>());
    }

  private:
    template <std::size_t... i>
    py::object run(PyObject* const* args, std::index_sequence<i...>) const {
        std::tuple<Args...> values;
        (from_python(args[i], std::get<i>(values)), ...);
        if (Recorder::current != nullptr) record(*Recorder::current, values, args);
        if constexpr (std::is_void_v<Result>) {
            const WithoutGil without_gil;
            std::apply(f_, std::move(values));
        } else {
            return py::int_([&] {
                const WithoutGil without_gil;
                return std::apply(f_, std::move(values));
            }());
        }
        return py::none();
    }

    void record(Recorder& recorder, const std::tuple<Args...>& values, PyObject* const* args) const {
        ++recorder.count;
        if constexpr (std::is_void_v<Result>) {
            recorder.last = std::make_unique<CallOf<F, Args...>>(f_, values, args);
        }
    }

    const char* name_;
    F f_;
};

template <class Callable>
struct Callee {
    std::unique_ptr<Callable> callable;
    PyMethodDef definition;

    static PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t count) {
        auto& callee = *static_cast<Callee*>(PyCapsule_GetPointer(self, nullptr));
        try {
            return (*callee.callable)(args, count).release().ptr();
        } catch (py::error_already_set& error) {
            error.restore();
        } catch (const py::builtin_exception& error) {
            error.set_error();
        } catch (const std::invalid_argument& error) {
            PyErr_SetString(PyExc_ValueError, error.what());
        } catch (const std::overflow_error& error) {
            PyErr_SetString(PyExc_OverflowError, error.what());
        } catch (const std::bad_alloc& error) {
            PyErr_SetString(PyExc_MemoryError, error.what());
        } catch (const std::exception& error) {
            PyErr_SetString(PyExc_RuntimeError, error.what());
        }
        return nullptr;
    }
};

}  // namespace detail

// A function of Python that is `callable(args, count)`, with the GIL. `name` has to last.
template <class Callable>
py::object function(const char* name, std::unique_ptr<Callable> callable) {
    using Callee = detail::Callee<Callable>;
    auto callee = std::make_unique<Callee>(Callee{std::move(callable), {}});
    auto* call = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&Callee::call));
    callee->definition = {name, call, METH_FASTCALL, nullptr};
    PyMethodDef* definition = &callee->definition;
    // Lives as long as the function, which holds it as its `self`.
    const py::capsule self(callee.release(), [](void* object) { delete static_cast<Callee*>(object); });
    return py::reinterpret_steal<py::object>(PyCFunction_NewEx(definition, self.ptr(), nullptr));
}

// The function `name` of a module. `f` runs without the GIL; ValueError for the std::invalid_argument that it throws.
template <class F>
void define(py::module_& m, const char* name, F f) {
    m.attr(name) = function(name, std::make_unique<detail::Function<F>>(name, std::move(f)));
}

}  // namespace bnb_core
