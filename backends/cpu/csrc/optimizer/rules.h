// The mathematics of each optimizer, over vectors. A rule is made of the settings, and called with the gradient and the
// moments, which it replaces by the new ones; the parameter moves by -lr * update. The order of operations is that of
// the reference, each rounded to fp32, so that moments have the same bits there and here.
#pragma once

#include <cmath>
#include <limits>

#include "../simd/simd.h"
#include "optimizer.h"

namespace bnb_core::BNB_LEVEL {

struct Change {
    F32 update;
    F32 measured;  // what a limit to the norm is about
};

BNB_INLINE F32 constant(double x) { return f32(static_cast<float>(x)); }

// 1 - beta^step, without the cancellation.
BNB_INLINE float bias_correction(float step, double beta) {
    const double log = beta > 0 ? std::log(beta) : -std::numeric_limits<double>::infinity();
    return static_cast<float>(-std::expm1(static_cast<double>(step * static_cast<float>(log))));
}

// An average that decays by `kept` a step, and takes in `taken` of the new value.
struct Average {
    F32 kept, taken;

    explicit Average(double beta) : kept(constant(beta)), taken(constant(1 - beta)) {}
    BNB_INLINE F32 operator()(F32 m, F32 g) const { return kept * m + taken * g; }
    BNB_INLINE F32 of_squares(F32 v, F32 g) const { return kept * v + taken * g * g; }
};

// Adam (arXiv:1412.6980); its update is measured without bias correction (LAMB, arXiv:1904.00962).
class Adam {
  public:
    static constexpr int moments = 2;
    static constexpr bool decoupled = true;  // weight decay shrinks the parameter, else it is added to the gradient

    explicit Adam(const OptimizerSettings& s) : first_(s.beta1), second_(s.beta2) {
        const float correction1 = bias_correction(s.step, s.beta1);
        const float correction2 = std::sqrt(bias_correction(s.step, s.beta2));
        eps_ = f32(static_cast<float>(s.eps) * correction2);
        correction_ = f32(correction2 / correction1);
    }

    BNB_INLINE Change operator()(F32 g, F32* moment) const {
        moment[0] = first_(moment[0], g);
        moment[1] = second_.of_squares(moment[1], g);
        const F32 direction = moment[0] / (sqrt(moment[1]) + eps_);
        return {direction * correction_, direction};
    }

  private:
    Average first_, second_;
    F32 eps_, correction_;
};

// AdEMAMix (arXiv:2409.03137).
class Ademamix {
  public:
    static constexpr int moments = 3;
    static constexpr bool decoupled = true;

    explicit Ademamix(const OptimizerSettings& s)
        : fast_(s.beta1),
          slow_(s.beta3),
          second_(s.beta2),
          alpha_(constant(s.alpha)),
          eps_(constant(s.eps)),
          correction1_(f32(bias_correction(s.step, s.beta1))),
          correction2_(f32(std::sqrt(bias_correction(s.step, s.beta2)))) {}

    BNB_INLINE Change operator()(F32 g, F32* moment) const {
        moment[0] = fast_(moment[0], g);
        moment[1] = slow_(moment[1], g);
        moment[2] = second_.of_squares(moment[2], g);
        const F32 root = sqrt(moment[2]) / correction2_;
        const F32 update = (moment[0] / correction1_ + alpha_ * moment[1]) / (root + eps_);
        return {update, update};
    }

  private:
    Average fast_, slow_, second_;
    F32 alpha_, eps_, correction1_, correction2_;
};

// Heavy ball, not damped; the first step starts from the gradient. Also LARS (arXiv:1708.03888).
class Momentum {
  public:
    static constexpr int moments = 1;
    static constexpr bool decoupled = false;

    explicit Momentum(const OptimizerSettings& s) : beta_(constant(s.beta1)), first_(s.step == 1) {}

    BNB_INLINE Change operator()(F32 g, F32* moment) const {
        moment[0] = first_ ? g : beta_ * moment[0] + g;
        return {moment[0], moment[0]};
    }

  private:
    F32 beta_;
    bool first_;
};

// Lion (arXiv:2302.06675).
class Lion {
  public:
    static constexpr int moments = 1;
    static constexpr bool decoupled = true;

    explicit Lion(const OptimizerSettings& s) : direction_(s.beta1), next_(s.beta2) {}

    BNB_INLINE Change operator()(F32 g, F32* moment) const {
        const F32 direction = direction_(moment[0], g), zero = f32(0), one = f32(1);
        moment[0] = next_(moment[0], g);
        const F32 update = select(direction > zero, one, zero) - select(direction < zero, one, zero);
        return {update, update};
    }

  private:
    Average direction_, next_;
};

// RMSprop (Tieleman and Hinton, 2012).
class RMSprop {
  public:
    static constexpr int moments = 1;
    static constexpr bool decoupled = false;

    explicit RMSprop(const OptimizerSettings& s) : second_(s.beta1), eps_(constant(s.eps)) {}

    BNB_INLINE Change operator()(F32 g, F32* moment) const {
        moment[0] = second_.of_squares(moment[0], g);
        const F32 update = g / (sqrt(moment[0]) + eps_);
        return {update, update};
    }

  private:
    Average second_;
    F32 eps_;
};

// Adagrad (Duchi, Hazan and Singer, 2011).
class Adagrad {
  public:
    static constexpr int moments = 1;
    static constexpr bool decoupled = false;

    explicit Adagrad(const OptimizerSettings& s) : eps_(constant(s.eps)) {}

    BNB_INLINE Change operator()(F32 g, F32* moment) const {
        moment[0] = moment[0] + g * g;
        const F32 update = g / (sqrt(moment[0]) + eps_);
        return {update, update};
    }

  private:
    F32 eps_;
};

// Calls visitor(rule) with the rule of a step.
template <class Visitor>
BNB_INLINE void visit_rule(OptimizerRule rule, const OptimizerSettings& settings, Visitor&& visitor) {
    switch (rule) {
        case OptimizerRule::adam:
            visitor(Adam(settings));
            break;
        case OptimizerRule::ademamix:
            visitor(Ademamix(settings));
            break;
        case OptimizerRule::momentum:
            visitor(Momentum(settings));
            break;
        case OptimizerRule::lion:
            visitor(Lion(settings));
            break;
        case OptimizerRule::rmsprop:
            visitor(RMSprop(settings));
            break;
        case OptimizerRule::adagrad:
            visitor(Adagrad(settings));
            break;
    }
}

}  // namespace bnb_core::BNB_LEVEL
