// Activations `x · share(x)`; `back` is `d` times the derivative at `x`. `factor` is the other
// factor of a gated product, `factor_back` is `d` times its derivative.

// A factor as it is.
struct Plain {
    static DEVICE float factor(float x) {
        return x;
    }
    static DEVICE float factor_back(float d, float) {
        return d;
    }
};

struct Silu : Plain {
    static DEVICE float share(float x) {
        return sigmoid(x);
    }
    static DEVICE float back(float d, float x, float share) {
        return d * share * (1.0f + x * (1.0f - share));
    }
};

struct Gelu : Plain {
    static DEVICE float share(float x) {
        return 0.5f * erfcf(-0.70710678f * x);
    }
    static DEVICE float back(float d, float x, float share) {
        return d * (share + 0.39894228f * expf(-0.5f * x * x) * x);
    }
};

// A sigmoid of `2 √(2/π) (x + 0.044715 x³)`, with `x` clamped so that its cube stays finite; it is
// already saturated there.
struct GeluTanh : Plain {
    static constexpr float linear = 1.5957691f, cubic = linear * 0.044715f, saturated = 16.0f;
    static DEVICE float clamped(float x) {
        return x > saturated ? saturated : x < -saturated ? -saturated : x;
    }
    static DEVICE float share(float x) {
        x = clamped(x);
        return sigmoid(x * (linear + cubic * x * x));
    }
    static DEVICE float back(float d, float x, float share) {
        x = clamped(x);
        float slope = x * (linear + 3.0f * cubic * x * x);
        return d * share * (1.0f + slope * (1.0f - share));
    }
};

struct ClampedSilu {
    static constexpr float slope = 1.702f, limit = 7.0f;
    static DEVICE float share(float x) {
        float clamped = fminf(x, limit), share = sigmoid(slope * clamped);
        return x > limit ? clamped * share / x : share;
    }
    static DEVICE float back(float d, float x, float share) {
        return x > limit ? 0.0f : d * share * (1.0f + slope * x * (1.0f - share));
    }
    // Not by `fminf` and `fmaxf`, for which what is no number is the limit.
    static DEVICE float factor(float x) {
        return (x > limit ? limit : x < -limit ? -limit : x) + 1.0f;
    }
    static DEVICE float factor_back(float d, float x) {
        return fabsf(x) > limit ? 0.0f : d;
    }
};
