#include <tuple>
#include <vector>

#include "bindings.h"

namespace bnb_core {
namespace {

OptimizerRule rule_of(std::string_view name) {
    if (name == "adam" || name == "lamb") return OptimizerRule::adam;
    if (name == "ademamix") return OptimizerRule::ademamix;
    if (name == "momentum" || name == "lars") return OptimizerRule::momentum;
    if (name == "lion") return OptimizerRule::lion;
    if (name == "rmsprop") return OptimizerRule::rmsprop;
    if (name == "adagrad") return OptimizerRule::adagrad;
    throw std::invalid_argument("unknown optimizer '" + std::string(name) + "'");
}

// A list of addresses or sizes, or None. The caster of pybind11 for vectors takes several times as long.
class Numbers {
  public:
    explicit Numbers(const py::object& list) : list_(list.is_none() ? nullptr : list.ptr()) {
        if (list_ != nullptr && !PyList_Check(list_)) throw py::type_error("expected a list");
    }

    bool none() const { return list_ == nullptr; }
    std::int64_t size() const { return list_ == nullptr ? 0 : PyList_GET_SIZE(list_); }

    std::int64_t operator[](std::int64_t i) const {
        const long long number = PyLong_AsLongLong(PyList_GET_ITEM(list_, i));
        if (number == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
        return number;
    }

    template <class T>
    T* pointer(std::int64_t i) const {
        return list_ == nullptr ? nullptr : reinterpret_cast<T*>(static_cast<std::intptr_t>((*this)[i]));
    }

  private:
    PyObject* list_;
};

// A step as Python calls it: a tuple of lists for the fields of Parameter, all of one length or None, and a tuple of
// settings.
class Call {
  public:
    Call(std::string_view rule, std::string_view dtype, const py::tuple& lists, const py::tuple& settings, int threads)
        : parameters_(parameters(lists)) {
        const auto [step, lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros] =
            settings.cast<std::tuple<double, double, double, double, double, double, double, double, double, bool>>();
        const std::int64_t blocks =
            parameters_.empty() ? 0 : parameters_.back().first_block + count(parameters_.back());
        step_ = {rule_of(rule),
                 dtype_of(dtype),
                 {static_cast<float>(step), static_cast<float>(lr), beta1, beta2, beta3, alpha, eps, weight_decay,
                  gnorm_scale, skip_zeros},
                 parameters_.data(),
                 static_cast<std::int64_t>(parameters_.size()),
                 blocks,
                 threads};
    }

    const OptimizerStep& step() const { return step_; }

  private:
    static std::int64_t count(const Parameter& parameter) { return (parameter.n + kStateBlock - 1) / kStateBlock; }

    static std::vector<Parameter> parameters(const py::tuple& lists) {
        constexpr std::size_t kFields = 8;
        if (lists.size() != kFields) throw std::invalid_argument("expected 8 lists");
        const Numbers sizes(lists[0]), g(lists[1]), p(lists[2]), state1(lists[3]), state2(lists[4]), scale1(lists[5]),
            scale2(lists[6]), unorm(lists[7]);
        for (const Numbers* field : {&g, &p, &state1, &state2, &scale1, &scale2, &unorm}) {
            if (!field->none() && field->size() != sizes.size()) throw std::invalid_argument("lists differ in length");
        }
        std::vector<Parameter> found;
        found.reserve(static_cast<std::size_t>(sizes.size()));
        std::int64_t block = 0;
        for (std::int64_t i = 0; i < sizes.size(); ++i) {
            found.push_back({sizes[i], g.pointer<const void>(i), p.pointer<void>(i), state1.pointer<void>(i),
                             state2.pointer<void>(i), scale1.pointer<float>(i), scale2.pointer<float>(i),
                             unorm.pointer<float>(i), block});
            block += count(found.back());
        }
        return found;
    }

    std::vector<Parameter> parameters_;
    OptimizerStep step_;
};

// Addresses and sizes of the codebooks; an address of 0 for none.
using Map = std::pair<Address, std::int64_t>;

Codebook codebook(const Map& map) { return {pointer<const float>(map.first), map.second}; }

}  // namespace

void bind_optimizer(py::module_& m, const Kernels& kernels) {
    m.def(
        "optimizer_step_32bit",
        [&kernels](std::string_view rule, std::string_view dtype, const py::tuple& lists, const py::tuple& settings,
                   double max_unorm, double param_norm, int threads) {
            const Call call(rule, dtype, lists, settings, threads);
            const bool limited = max_unorm > 0;
            std::vector<double> sums(limited ? static_cast<std::size_t>(2 * call.step().blocks) : 0);
            std::vector<float> step_sizes(limited ? static_cast<std::size_t>(call.step().count) : 0);
            const py::gil_scoped_release release;
            kernels.optimizer_step_32bit(call.step(), {max_unorm, param_norm, sums.data(), step_sizes.data()});
        },
        py::arg("rule"), py::arg("dtype"), py::arg("lists"), py::arg("settings"), py::arg("max_unorm"),
        py::arg("param_norm"), py::arg("threads"));
    m.def(
        "optimizer_step_8bit_blockwise",
        [&kernels](std::string_view rule, std::string_view dtype, const py::tuple& lists, const py::tuple& settings,
                   const Map& map1, const Map& map2, int threads) {
            const Call call(rule, dtype, lists, settings, threads);
            const py::gil_scoped_release release;
            kernels.optimizer_step_8bit_blockwise(call.step(), codebook(map1), codebook(map2));
        },
        py::arg("rule"), py::arg("dtype"), py::arg("lists"), py::arg("settings"), py::arg("map1"), py::arg("map2"),
        py::arg("threads"));
    m.def(
        "optimizer_step_8bit",
        [&kernels](std::string_view rule, std::string_view dtype, const py::tuple& lists, const py::tuple& settings,
                   const Map& map1, const Map& map2, int threads) {
            const Call call(rule, dtype, lists, settings, threads);
            std::vector<float> scratch(static_cast<std::size_t>(kScratch8bit * call.step().blocks));
            const py::gil_scoped_release release;
            kernels.optimizer_step_8bit(call.step(), codebook(map1), codebook(map2), scratch.data());
        },
        py::arg("rule"), py::arg("dtype"), py::arg("lists"), py::arg("settings"), py::arg("map1"), py::arg("map2"),
        py::arg("threads"));
}

}  // namespace bnb_core
