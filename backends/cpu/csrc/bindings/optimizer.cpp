#include <vector>

#include "bindings.h"
#include "native/optimizer_arguments.h"

namespace bnb_core {
namespace {

// A step with the parameters that it is for.
class Call {
  public:
    // step, lr: where the two stand, as float.
    Call(std::string_view rule, std::string_view dtype, const Lists& lists, Address step, Address lr, Settings settings,
         int threads) {
        std::int64_t block = 0;
        parameters_.reserve(lists.sizes.size());
        for (std::size_t i = 0; i < lists.sizes.size(); ++i) {
            parameters_.push_back({lists.sizes[i], lists.at<const void>(Lists::g, i), lists.at<void>(Lists::p, i),
                                   lists.at<void>(Lists::state1, i), lists.at<void>(Lists::state2, i),
                                   lists.at<float>(Lists::scale1, i), lists.at<float>(Lists::scale2, i),
                                   lists.at<float>(Lists::unorm, i), block});
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
