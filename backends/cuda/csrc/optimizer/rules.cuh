// The mathematics of each optimizer. A rule is made of the numbers of a step, and called with the gradient and the
// moments of an element, which it replaces by the new ones; the parameter moves by -lr * update. The order of
// operations is that of the reference, each rounded to fp32, so that moments have the same bits there and here.
#pragma once

#include <cmath>

#include "../platform.cuh"
#include "native/dtype.h"
#include "native/optimizer.h"

namespace bnb_core {

// The settings of a step as the kernels take them.
struct Numbers {
    float beta1, rest1, beta2, rest2, beta3, rest3;  // each with 1 - beta
    float log1, log2;                                // logarithms of beta1 and beta2
    float alpha, eps, weight_decay, gnorm_scale;
    float step, lr;
    const float* step_at;  // where they stand on the device; null where they are the numbers above
    const float* lr_at;
    bool skip_zeros;

    __device__ __forceinline__ float step_now() const { return step_at == nullptr ? step : *step_at; }
    __device__ __forceinline__ float lr_now() const { return lr_at == nullptr ? lr : *lr_at; }
};

struct Change {
    float update;
    float measured;  // what a limit to the norm is about
};

// 1 - beta^step, without the cancellation.
__device__ __forceinline__ float bias_correction(float step, float log_beta) {
    return -expm1f(__fmul_rn(step, log_beta));
}

// Square root and quotient in the update of a parameter, of which nothing else comes: within a few units in the last
// place, and without the branches for rare operands that would part the work on neighbours.
__device__ __forceinline__ float root_of(float x) {
#ifdef __CUDA_ARCH__
    float root;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
    return root;
#else
    return __fsqrt_rn(x);
#endif
}
__device__ __forceinline__ float quotient_of(float a, float b) { return __fdividef(a, b); }

// An average that decays by `kept` a step, and takes in `taken` of the new value.
__device__ __forceinline__ float average(float kept, float taken, float m, float g) { return kept * m + taken * g; }
__device__ __forceinline__ float average_of_squares(float kept, float taken, float v, float g) {
    return kept * v + taken * g * g;
}

// Adam (arXiv:1412.6980); its update is measured without bias correction (LAMB, arXiv:1904.00962).
class Adam {
  public:
    static constexpr int moments = 2;
    static constexpr bool decoupled = true;  // weight decay shrinks the parameter, else it is added to the gradient

    __device__ Adam(const Numbers& s, float step) {
        const float correction2 = __fsqrt_rn(bias_correction(step, s.log2));
        eps_ = s.eps * correction2;
        correction_ = __fdiv_rn(correction2, bias_correction(step, s.log1));
    }

    __device__ __forceinline__ Change operator()(const Numbers& s, float g, float (&moment)[moments]) const {
        moment[0] = average(s.beta1, s.rest1, moment[0], g);
        moment[1] = average_of_squares(s.beta2, s.rest2, moment[1], g);
        const float direction = quotient_of(moment[0], root_of(moment[1]) + eps_);
        return {direction * correction_, direction};
    }

  private:
    float eps_, correction_;
};

// AdEMAMix (arXiv:2409.03137).
class Ademamix {
  public:
    static constexpr int moments = 3;
    static constexpr bool decoupled = true;

    __device__ Ademamix(const Numbers& s, float step) {
        correction1_ = __fdiv_rn(1.0f, bias_correction(step, s.log1));
        correction2_ = __fdiv_rn(1.0f, __fsqrt_rn(bias_correction(step, s.log2)));
    }

    __device__ __forceinline__ Change operator()(const Numbers& s, float g, float (&moment)[moments]) const {
        moment[0] = average(s.beta1, s.rest1, moment[0], g);
        moment[1] = average(s.beta3, s.rest3, moment[1], g);
        moment[2] = average_of_squares(s.beta2, s.rest2, moment[2], g);
        const float root = root_of(moment[2]) * correction2_;
        const float update = quotient_of(moment[0] * correction1_ + s.alpha * moment[1], root + s.eps);
        return {update, update};
    }

  private:
    float correction1_, correction2_;  // reciprocals
};

// Heavy ball, not damped; the first step starts from the gradient. Also LARS (arXiv:1708.03888).
class Momentum {
  public:
    static constexpr int moments = 1;
    static constexpr bool decoupled = false;

    __device__ Momentum(const Numbers&, float step) : first_(step == 1.0f) {}

    __device__ __forceinline__ Change operator()(const Numbers& s, float g, float (&moment)[moments]) const {
        moment[0] = first_ ? g : s.beta1 * moment[0] + g;
        return {moment[0], moment[0]};
    }

  private:
    bool first_;
};

// Lion (arXiv:2302.06675).
class Lion {
  public:
    static constexpr int moments = 1;
    static constexpr bool decoupled = true;

    __device__ Lion(const Numbers&, float) {}

    __device__ __forceinline__ Change operator()(const Numbers& s, float g, float (&moment)[moments]) const {
        const float direction = average(s.beta1, s.rest1, moment[0], g);
        moment[0] = average(s.beta2, s.rest2, moment[0], g);
        const float update = (direction > 0.0f ? 1.0f : 0.0f) - (direction < 0.0f ? 1.0f : 0.0f);
        return {update, update};
    }
};

// RMSprop (Tieleman and Hinton, 2012).
class RMSprop {
  public:
    static constexpr int moments = 1;
    static constexpr bool decoupled = false;

    __device__ RMSprop(const Numbers&, float) {}

    __device__ __forceinline__ Change operator()(const Numbers& s, float g, float (&moment)[moments]) const {
        moment[0] = average_of_squares(s.beta1, s.rest1, moment[0], g);
        const float update = quotient_of(g, root_of(moment[0]) + s.eps);
        return {update, update};
    }
};

// Adagrad (Duchi, Hazan and Singer, 2011).
class Adagrad {
  public:
    static constexpr int moments = 1;
    static constexpr bool decoupled = false;

    __device__ Adagrad(const Numbers&, float) {}

    __device__ __forceinline__ Change operator()(const Numbers& s, float g, float (&moment)[moments]) const {
        moment[0] = moment[0] + g * g;
        const float update = quotient_of(g, root_of(moment[0]) + s.eps);
        return {update, update};
    }
};

// What every state format does around a rule: gradient scaling, weight decay, elements to skip.
template <class Rule>
class Update {
  public:
    static constexpr int moments = Rule::moments;

    __device__ explicit Update(const Numbers& s)
        : rule_(s, s.step_now()), lr_(s.lr_now()), shrink_(1.0f - lr_ * s.weight_decay) {}

    __device__ __forceinline__ float lr() const { return lr_; }

    // The new parameter; `moment` becomes the new moments. SKIP: elements without a gradient stay as they are.
    template <bool SKIP>
    __device__ __forceinline__ float step(const Numbers& s, float g, float p, float (&moment)[moments],
                                          float step_size) const {
        float old[moments];
        for (int k = 0; k < moments; ++k) old[k] = moment[k];
        const float update = rule_(s, gradient(s, g, p), moment).update;
        const float moved = (Rule::decoupled ? p * shrink_ : p) - step_size * update;
        const bool untouched = SKIP && g == 0.0f;
        for (int k = 0; k < moments; ++k) moment[k] = untouched ? old[k] : moment[k];
        return untouched ? p : moved;
    }

    // What a limit to the norm is about.
    __device__ __forceinline__ float measured(const Numbers& s, float g, float p, float (&moment)[moments]) const {
        const float change = rule_(s, gradient(s, g, p), moment).measured;
        return s.skip_zeros && g == 0.0f ? 0.0f : change;
    }

  private:
    static __device__ __forceinline__ float gradient(const Numbers& s, float g, float p) {
        g = g * s.gnorm_scale;
        return !Rule::decoupled && s.weight_decay != 0.0f ? g + s.weight_decay * p : g;
    }

    Rule rule_;
    float lr_, shrink_;
};

// Calls visitor(Type<Rule>{}).
template <class Visitor>
void visit_rule(OptimizerRule rule, Visitor&& visitor) {
    switch (rule) {
        case OptimizerRule::adam:
            return visitor(Type<Adam>{});
        case OptimizerRule::ademamix:
            return visitor(Type<Ademamix>{});
        case OptimizerRule::momentum:
            return visitor(Type<Momentum>{});
        case OptimizerRule::lion:
            return visitor(Type<Lion>{});
        case OptimizerRule::rmsprop:
            return visitor(Type<RMSprop>{});
        case OptimizerRule::adagrad:
            return visitor(Type<Adagrad>{});
    }
}

}  // namespace bnb_core
