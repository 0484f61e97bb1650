#include <vector>

#include "../optimizer/optimizer_32bit.h"
#include "../optimizer/optimizer_8bit.h"
#include "../optimizer/optimizer_8bit_blockwise.h"
#include "bindings.h"
#include "native/optimizer_arguments.h"

namespace bnb_core {
namespace {

// A step with the parameters that it is for.
class Call {
  public:
    // step_at, lr_at: where the two stand on the device; 0 where they are step and lr.
    Call(Address stream, std::string_view rule, std::string_view dtype, const Lists& lists, Address step_at,
         Address lr_at, double step, double lr, Settings settings) {
        parameters_.reserve(lists.sizes.size());
        for (std::size_t i = 0; i < lists.sizes.size(); ++i) {
            parameters_.push_back({lists.sizes[i], lists.at<const void>(Lists::g, i), lists.at<void>(Lists::p, i),
                                   lists.at<void>(Lists::state1, i), lists.at<void>(Lists::state2, i),
                                   lists.at<float>(Lists::scale1, i), lists.at<float>(Lists::scale2, i),
                                   lists.at<float>(Lists::unorm, i)});
        }
        settings.step = static_cast<float>(step);
        settings.lr = static_cast<float>(lr);
        step_ = {rule_of(rule),
                 dtype_of(dtype),
                 settings,
                 pointer<const float>(step_at),
                 pointer<const float>(lr_at),
                 parameters_.data(),
                 static_cast<std::int64_t>(parameters_.size()),
                 stream_of(stream)};
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    const OptimizerStep& step() const { return step_; }

  private:
    std::vector<Parameter> parameters_;
    OptimizerStep step_;
};

}  // namespace

void bind_optimizer(py::module_& m) {
    m.attr("SUMMED") = kSummed;
    m.attr("SCRATCH_8BIT") = kScratch8bit;
    define(m, "optimizer_step_32bit",
           [](std::int64_t device, Address stream, std::string_view rule, std::string_view dtype, Lists lists,
              Address step_at, Address lr_at, double step, double lr, Settings settings, double max_unorm,
              double param_norm, Address scratch) {
               const DeviceGuard guard(static_cast<int>(device));
               const Call call(stream, rule, dtype, lists, step_at, lr_at, step, lr, settings);
               optimizer_step_32bit(call.step(), {max_unorm, param_norm, pointer<float>(scratch)});
           });
    define(m, "optimizer_step_8bit_blockwise",
           [](std::int64_t device, Address stream, std::string_view rule, std::string_view dtype, Lists lists,
              Address step_at, Address lr_at, double step, double lr, Settings settings, Address map1,
              std::int64_t size1, Address map2, std::int64_t size2) {
               const DeviceGuard guard(static_cast<int>(device));
               const Call call(stream, rule, dtype, lists, step_at, lr_at, step, lr, settings);
               optimizer_step_8bit_blockwise(call.step(), codebook(map1, size1), codebook(map2, size2));
           });
    define(m, "optimizer_step_8bit",
           [](std::int64_t device, Address stream, std::string_view rule, std::string_view dtype, Lists lists,
              Address step_at, Address lr_at, double step, double lr, Settings settings, Address map1,
              std::int64_t size1, Address map2, std::int64_t size2, Address scratch) {
               const DeviceGuard guard(static_cast<int>(device));
               const Call call(stream, rule, dtype, lists, step_at, lr_at, step, lr, settings);
               optimizer_step_8bit(call.step(), codebook(map1, size1), codebook(map2, size2),
                                   pointer<std::int32_t>(scratch));
           });
}

}  // namespace bnb_core
