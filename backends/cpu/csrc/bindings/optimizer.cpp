#include <array>
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

// The tensors of a step, a list for each field of Parameter from g to unorm: sizes, and addresses, or none for None.
struct Lists : Addressed {
    std::vector<std::int64_t> sizes;
    std::array<std::vector<Address>, 7> fields;

    template <class F>
    void each(F f) {
        for (std::vector<Address>& field : fields) {
            for (Address& place : field) f(place);
        }
    }
};

template <class T>
void numbers(PyObject* list, std::vector<T>& result) {
    if (PyList_Check(list) == 0) throw py::type_error("expected a list");
    result.resize(static_cast<std::size_t>(PyList_GET_SIZE(list)));
    for (std::size_t i = 0; i < result.size(); ++i) {
        detail::from_python(PyList_GET_ITEM(list, static_cast<Py_ssize_t>(i)), result[i]);
    }
}

// Called by Function: a tuple of lists, of which all but the first can be None.
void from_python(PyObject* tuple, Lists& result) {
    if (PyTuple_Check(tuple) == 0 || PyTuple_GET_SIZE(tuple) != 8) throw py::type_error("expected 8 lists");
    numbers(PyTuple_GET_ITEM(tuple, 0), result.sizes);
    for (std::size_t i = 0; i < result.fields.size(); ++i) {
        PyObject* list = PyTuple_GET_ITEM(tuple, static_cast<Py_ssize_t>(i + 1));
        if (list == Py_None) continue;
        numbers(list, result.fields[i]);
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
void from_python(PyObject* tuple, Settings& result) {
    if (PyTuple_Check(tuple) == 0 || PyTuple_GET_SIZE(tuple) != 8) throw py::type_error("expected 8 settings");
    Py_ssize_t next = 0;
    result.each_number([&](double& number) { detail::from_python(PyTuple_GET_ITEM(tuple, next++), number); });
    detail::from_python(PyTuple_GET_ITEM(tuple, next), result.skip_zeros);
}

// A step with the parameters that it is for.
class Call {
  public:
    // step, lr: where the two stand, as float.
    Call(std::string_view rule, std::string_view dtype, const Lists& lists, Address step, Address lr, Settings settings,
         int threads) {
        std::int64_t block = 0;
        parameters_.reserve(lists.sizes.size());
        for (std::size_t i = 0; i < lists.sizes.size(); ++i) {
            const auto at = [&](std::size_t field) { return lists.fields[field].empty() ? 0 : lists.fields[field][i]; };
            parameters_.push_back({lists.sizes[i], pointer<const void>(at(0)), pointer<void>(at(1)),
                                   pointer<void>(at(2)), pointer<void>(at(3)), pointer<float>(at(4)),
                                   pointer<float>(at(5)), pointer<float>(at(6)), block});
            block += (lists.sizes[i] + kStateBlock - 1) / kStateBlock;
        }
        settings.step = *pointer<const float>(step);
        settings.lr = *pointer<const float>(lr);
        const auto count = static_cast<std::int64_t>(parameters_.size());
        step_ = {rule_of(rule), dtype_of(dtype), settings, parameters_.data(), count, block, threads};
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    const OptimizerStep& step() const { return step_; }

  private:
    std::vector<Parameter> parameters_;
    OptimizerStep step_;
};

// An address of 0 for none.
Codebook codebook(Address values, std::int64_t size) { return {pointer<const float>(values), size}; }

}  // namespace

void bind_optimizer(py::module_& m, const Kernels& kernels) {
    define(m, "optimizer_step_32bit",
           [&kernels](std::string_view rule, std::string_view dtype, Lists lists, Address step, Address lr,
                      Settings settings, double max_unorm, double param_norm, int threads) {
               const Call call(rule, dtype, lists, step, lr, settings, threads);
               const bool limited = max_unorm > 0;
               std::vector<double> sums(limited ? static_cast<std::size_t>(2 * call.step().blocks) : 0);
               std::vector<float> step_sizes(limited ? static_cast<std::size_t>(call.step().count) : 0);
               kernels.optimizer_step_32bit(call.step(), {max_unorm, param_norm, sums.data(), step_sizes.data()});
           });
    define(
        m, "optimizer_step_8bit_blockwise",
        [&kernels](std::string_view rule, std::string_view dtype, Lists lists, Address step, Address lr,
                   Settings settings, Address map1, std::int64_t size1, Address map2, std::int64_t size2, int threads) {
            const Call call(rule, dtype, lists, step, lr, settings, threads);
            kernels.optimizer_step_8bit_blockwise(call.step(), codebook(map1, size1), codebook(map2, size2));
        });
    define(
        m, "optimizer_step_8bit",
        [&kernels](std::string_view rule, std::string_view dtype, Lists lists, Address step, Address lr,
                   Settings settings, Address map1, std::int64_t size1, Address map2, std::int64_t size2, int threads) {
            const Call call(rule, dtype, lists, step, lr, settings, threads);
            std::vector<float> scratch(static_cast<std::size_t>(kScratch8bit * call.step().blocks));
            kernels.optimizer_step_8bit(call.step(), codebook(map1, size1), codebook(map2, size2), scratch.data());
        });
}

}  // namespace bnb_core
