// What ends an exchange, in one pass: the mean of the workers' deltas, the outer optimiser's step, the new anchor, and the
// parameters. The formulas are those of `src/policy/outer.rs` and `src/policy/replica.rs`. `Element` is defined by whoever
// puts the files together.

typedef WideOf<Element>::Type Wide;

static const int WIDTH = 16 / sizeof(Element);

// How the anchor moves.
// 0, SGD: w + rate * mean
static const u32 NESTEROV = 1; // v = momentum * v + mean, w + rate * (mean + momentum * v)
static const u32 REPLACE = 2;  // mean: for statistics, which are averaged by value

struct Step {
    Vector<Element> anchor, velocity, sum;
    Share<Element> share;
    bool average;
    u32 rule;
    Wide learning_rate, momentum;

    // The new anchor, which is stored.
    template <int N> __device__ __forceinline__ Lanes<Element, N> at(Count first) const {
        Lanes<Element, N> mean, moved, speed;
        sum.load(first, mean);
        if (average) {
#pragma unroll
            for (int i = 0; i < N; i++) mean.lane[i] = share.of(mean.lane[i]);
        }
        if (rule == REPLACE) {
            moved = mean;
        } else {
            anchor.load(first, moved);
            if (rule == NESTEROV) {
                velocity.load(first, speed);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    Wide delta = widen(mean.lane[i]), next = momentum * widen(speed.lane[i]) + delta;
                    speed.lane[i] = narrow<Element>(next);
                    moved.lane[i] =
                        narrow<Element>(widen(moved.lane[i]) + learning_rate * (delta + momentum * next));
                }
                velocity.store(first, speed);
            } else {
#pragma unroll
                for (int i = 0; i < N; i++)
                    moved.lane[i] = narrow<Element>(widen(moved.lane[i]) + learning_rate * widen(mean.lane[i]));
            }
        }
        anchor.store(first, moved);
        return moved;
    }
};

__device__ __forceinline__ Step step(Element *anchor, Element *velocity, const Element *sum, Count head, u32 ranks,
                                     u32 rule, double learning_rate, double momentum) {
    Step step = {Vector<Element>(anchor, head, 16),
                 Vector<Element>(velocity, head, 16),
                 Vector<Element>((Element *)sum, head, 16),
                 Share<Element>(ranks),
                 ranks > 1,
                 rule,
                 (Wide)learning_rate,
                 (Wide)momentum};
    return step;
}

// The parameters become the anchor.
struct Rebase {
    Step step;
    Vector<Element> params;

    template <int N> __device__ __forceinline__ void at(Count first) const { params.store(first, step.at<N>(first)); }
};

extern "C" __global__ void outer_update_rebase(Element *anchor, Element *velocity, const Element *sum,
    Element *params, Count count, u32 ranks, u32 rule, double learning_rate, double momentum) {
    Count head = elements_before_alignment(anchor, count);
    Rebase body = {step(anchor, velocity, sum, head, ranks, rule, learning_rate, momentum),
                   Vector<Element>(params, head, 16)};
    for_each<WIDTH>(head, count, body);
}

// The parameters become the anchor, and the steps that were taken since they were submitted.
struct Merge {
    Step step;
    Vector<Element> params, submitted;

    template <int N> __device__ __forceinline__ void at(Count first) const {
        Lanes<Element, N> anchor = step.at<N>(first), param, before;
        params.load(first, param);
        submitted.load(first, before);
#pragma unroll
        for (int i = 0; i < N; i++) {
            Wide since = widen(param.lane[i]) - widen(before.lane[i]);
            param.lane[i] = narrow<Element>(widen(anchor.lane[i]) + since);
        }
        params.store(first, param);
    }
};

extern "C" __global__ void outer_update_merge(Element *anchor, Element *velocity, const Element *sum, Element *params,
    const Element *submitted, Count count, u32 ranks, u32 rule, double learning_rate, double momentum) {
    Count head = elements_before_alignment(anchor, count);
    Merge body = {step(anchor, velocity, sum, head, ranks, rule, learning_rate, momentum),
                  Vector<Element>(params, head, 16), Vector<Element>((Element *)submitted, head, 16)};
    for_each<WIDTH>(head, count, body);
}

// The parameters become (1 - alpha) * anchor + alpha * parameters.
struct Mix {
    Step step;
    Vector<Element> params;
    Wide global, local;

    template <int N> __device__ __forceinline__ void at(Count first) const {
        Lanes<Element, N> anchor = step.at<N>(first), param;
        params.load(first, param);
#pragma unroll
        for (int i = 0; i < N; i++)
            param.lane[i] = narrow<Element>(global * widen(anchor.lane[i]) + local * widen(param.lane[i]));
        params.store(first, param);
    }
};

extern "C" __global__ void outer_update_mix(Element *anchor, Element *velocity, const Element *sum, Element *params,
    double alpha, Count count, u32 ranks, u32 rule, double learning_rate, double momentum) {
    Count head = elements_before_alignment(anchor, count);
    Mix body = {step(anchor, velocity, sum, head, ranks, rule, learning_rate, momentum),
                Vector<Element>(params, head, 16), (Wide)(1.0 - alpha), (Wide)alpha};
    for_each<WIDTH>(head, count, body);
}

// weight * (parameters - anchor), which begins an exchange; without an anchor, weight * parameters.
struct Delta {
    Vector<Element> into, params, anchor;
    bool anchored;
    Wide weight;

    template <int N> __device__ __forceinline__ void at(Count first) const {
        Lanes<Element, N> param, before;
        params.load(first, param);
        if (anchored) anchor.load(first, before);
#pragma unroll
        for (int i = 0; i < N; i++) {
            Wide value = widen(param.lane[i]);
            param.lane[i] = narrow<Element>(weight * (anchored ? value - widen(before.lane[i]) : value));
        }
        into.store(first, param);
    }
};

extern "C" __global__ void delta(Element *into, const Element *params, const Element *anchor, Count count,
    double weight) {
    Count head = elements_before_alignment(into, count);
    Delta body = {Vector<Element>(into, head, 16), Vector<Element>((Element *)params, head, 16),
                  Vector<Element>((Element *)anchor, head, 16), anchor != nullptr, (Wide)weight};
    for_each<WIDTH>(head, count, body);
}
