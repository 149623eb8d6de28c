// The kernels that runtime.py compiles for CPUs: Mish, BatchNorm with an activation, the gradients of depthwise convolutions, blur
// pooling, and the work on the pixels of a batch. Images are channels-last: rows of channels, a multiple of LANES or, of pixels, three.
// The vector types are GCC's and clang's.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
struct bfloat16 { uint16_t bits; };

static const int64_t LANES = 16;
static const int64_t CHUNK = 32768;  // elements that one thread takes at a time: they stay in its cache

static inline Floats load(const float* p) { Floats v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float* p, Floats v) { memcpy(p, &v, sizeof v); }
static inline Floats load(const bfloat16* p) {
    Halves h;
    memcpy(&h, p, sizeof h);
    return (Floats)(__builtin_convertvector(h, Bits) << 16);
}
static inline void store(bfloat16* p, Floats v) {  // rounds to nearest, ties to even; NaN as arithmetic makes it stays NaN
    Bits b = (Bits)v;
    Halves h = __builtin_convertvector((b + 0x7fff + ((b >> 16) & 1)) >> 16, Halves);
    memcpy(p, &h, sizeof h);
}
static inline Floats splat(float x) { return x - Floats{}; }

// Cephes' expf, up to 87 and 0 below -87: exp(x) = 2^n exp(r), |r| <= ln(2) / 2.
static inline Floats exponential(Floats x) {
    const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    Floats shifted = x * 1.44269504088896341f + magic;
    Floats n = shifted - magic;
    Floats r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Floats p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    p = (Floats)((Bits)p + ((Bits)shifted << 23));  // the low bits of shifted are n
    return x > -87.0f ? p : Floats{};
}

// With e = exp(x), tanh(log(1 + e)) is n / (n + 2), n = e (e + 2); from 20 on the quotient is 1.
static inline Floats limited(Floats x) { return x < 20.0f ? x : splat(20.0f); }
static inline Floats mish(Floats x) {
    Floats e = exponential(limited(x));
    Floats n = e * (e + 2.0f);
    return x * (n / (n + 2.0f));
}
static inline Floats mish_slope(Floats x) {
    Floats low = limited(x);
    Floats e = exponential(low);
    Floats n = e * (e + 2.0f);
    Floats q = 1.0f / (n + 2.0f);
    return n * q + low * (4.0f * e * (e + 1.0f)) * (q * q) + (x - x);
}

// Activations: their value, and the gradient of their input.
struct Identity {
    static Floats value(Floats x) { return x; }
    static Floats gradient(Floats grad, Floats) { return grad; }
};
struct ReLU {
    static Floats value(Floats x) { return x < 0.0f ? Floats{} : x; }
    static Floats gradient(Floats grad, Floats x) { return x <= 0.0f ? Floats{} : grad; }
};
struct ReLU6 {
    static Floats value(Floats x) { return x < 0.0f ? Floats{} : x > 6.0f ? splat(6.0f) : x; }
    static Floats gradient(Floats grad, Floats x) { return (x <= 0.0f) | (x >= 6.0f) ? Floats{} : grad; }
};
struct Mish {
    static Floats value(Floats x) { return mish(x); }
    static Floats gradient(Floats grad, Floats x) { return grad * mish_slope(x); }
};
struct SiLU {
    static Floats sigmoid(Floats x) { return x > -87.0f ? 1.0f / (1.0f + exponential(-x)) : Floats{}; }
    static Floats value(Floats x) { return x * sigmoid(x); }
    static Floats gradient(Floats grad, Floats x) {
        const Floats s = sigmoid(x);
        return grad * (s + x * (s * (1.0f - s)));
    }
};
struct Hardswish {
    static Floats value(Floats x) { return x * (ReLU6::value(x + 3.0f) * (1.0f / 6.0f)); }
    static Floats gradient(Floats grad, Floats x) {
        return x <= -3.0f ? Floats{} : x >= 3.0f ? grad : grad * (x * (1.0f / 3.0f) + 0.5f);
    }
};

// Calls with the activation of that number, as norm_act.py counts them.
template <typename F>
static void with_activation(int64_t number, F f) {
    switch (number) {
        case 0: return f(Identity());
        case 1: return f(ReLU());
        case 2: return f(ReLU6());
        case 3: return f(Mish());
        case 4: return f(SiLU());
        case 5: return f(Hardswish());
    }
}

// Element by element; what is left of a multiple of LANES goes through a buffer.
template <typename T>
static void mish_forward(int64_t size, int threads, const T* x, T* y) {
    const int64_t whole = size / LANES * LANES;
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < whole; i += LANES) store(y + i, mish(load(x + i)));
    if (whole < size) {
        T in[LANES] = {}, out[LANES];
        memcpy(in, x + whole, (size - whole) * sizeof(T));
        store(out, mish(load(in)));
        memcpy(y + whole, out, (size - whole) * sizeof(T));
    }
}

template <typename T>
static void mish_backward(int64_t size, int threads, const T* grad, const T* x, T* dx) {
    const int64_t whole = size / LANES * LANES;
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < whole; i += LANES) store(dx + i, load(grad + i) * mish_slope(load(x + i)));
    if (whole < size) {
        T in[LANES] = {}, grads[LANES] = {}, out[LANES];
        memcpy(in, x + whole, (size - whole) * sizeof(T));
        memcpy(grads, grad + whole, (size - whole) * sizeof(T));
        store(out, load(grads) * mish_slope(load(in)));
        memcpy(dx + whole, out, (size - whole) * sizeof(T));
    }
}

static int64_t rows_of_chunk(int64_t channels) { return channels < CHUNK ? CHUNK / channels : 1; }

// Mean and biased variance of each channel: two passes over a chunk, chunks merged in order (Chan et al. 1979), so that
// the result does not depend on the number of threads.
template <typename T>
static void norm_stats(int64_t rows, int64_t channels, int threads, const T* x, float* mean, float* var) {
    const int64_t size = rows_of_chunk(channels), chunks = (rows + size - 1) / size;
    std::vector<float> means(chunks * channels), squares(chunks * channels);
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < chunks; k++) {
        const int64_t first = k * size, end = first + size < rows ? first + size : rows;
        for (int64_t c = 0; c < channels; c += LANES) {
            Floats a = {}, b = {};
            int64_t r = first;
            for (; r + 1 < end; r += 2) {
                a += load(x + r * channels + c);
                b += load(x + (r + 1) * channels + c);
            }
            if (r < end) a += load(x + r * channels + c);
            Floats m = (a + b) / (float)(end - first);
            a = b = Floats{};
            for (r = first; r + 1 < end; r += 2) {
                Floats d = load(x + r * channels + c) - m, e = load(x + (r + 1) * channels + c) - m;
                a += d * d;
                b += e * e;
            }
            if (r < end) { Floats d = load(x + r * channels + c) - m; a += d * d; }
            store(&means[k * channels + c], m);
            store(&squares[k * channels + c], a + b);
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        double m = 0, s = 0, n = 0;
        for (int64_t k = 0; k < chunks; k++) {
            const double count = k * size + size <= rows ? size : rows - k * size;
            const double d = means[k * channels + c] - m;
            s += squares[k * channels + c] + d * d * n * count / (n + count);
            m += d * count / (n + count);
            n += count;
        }
        mean[c] = m;
        var[c] = s / n;
    }
}

template <typename A, typename T>
static void norm_act_forward(int64_t rows, int64_t channels, int threads, const T* x, T* y, const float* scale, const float* shift) {
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t i = r * channels + c;
            store(y + i, A::value(load(x + i) * load(scale + c) + load(shift + c)));
        }
}

// dx = a dz + b x + d with dz = grad act'(z), z = scale x + shift; dz is kept in dx in between.
template <typename A, typename T>
static void norm_act_backward(int64_t rows, int64_t channels, int threads, const T* grad, const T* x, T* dx, const float* scale,
                     const float* shift, const float* mean, const float* inverse, float* dweight, float* dbias) {
    const int64_t size = rows_of_chunk(channels), chunks = (rows + size - 1) / size;
    std::vector<float> sums(chunks * channels), products(chunks * channels);
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < chunks; k++) {
        const int64_t first = k * size, end = first + size < rows ? first + size : rows;
        float *sum = &sums[k * channels], *product = &products[k * channels];
        for (int64_t r = first; r < end; r++)
            for (int64_t c = 0; c < channels; c += LANES) {
                const int64_t i = r * channels + c;
                const Floats v = load(x + i), dz = A::gradient(load(grad + i), v * load(scale + c) + load(shift + c));
                store(dx + i, dz);
                store(sum + c, load(sum + c) + dz);
                store(product + c, load(product + c) + dz * (v - load(mean + c)));
            }
    }
    std::vector<float> b(channels), d(channels);
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0, product = 0;
        for (int64_t k = 0; k < chunks; k++) {
            sum += sums[k * channels + c];
            product += products[k * channels + c];
        }
        dbias[c] = sum;
        dweight[c] = product * inverse[c];
        b[c] = -scale[c] * product * inverse[c] * inverse[c] / rows;
        d[c] = -scale[c] * sum / rows - b[c] * mean[c];
    }
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t i = r * channels + c;
            store(dx + i, load(scale + c) * load(dx + i) + load(&b[c]) * load(x + i) + load(&d[c]));
        }
}

struct Geometry {  // of a depthwise convolution over channels-last images
    int64_t images, channels, height, width, out_height, out_width, kernel, stride, padding;
};

// dw[ky][kx] = sum of grad * x; rows of the output one after the other, K sums at a time in registers.
template <typename T, int K>
static void weight_gradient(const Geometry& g, const T* grad, const T* x, float* dw) {
    for (int64_t oy = 0; oy < g.out_height; oy++)
        for (int64_t ky = 0; ky < K; ky++) {
            const int64_t iy = oy * g.stride - g.padding + ky;
            if (iy < 0 || iy >= g.height) continue;
            const T* row = x + iy * g.width * g.channels;
            const T* grads = grad + oy * g.out_width * g.channels;
            for (int64_t c = 0; c < g.channels; c += LANES) {
                Floats sums[K];
                for (int k = 0; k < K; k++) sums[k] = load(dw + (ky * K + k) * g.channels + c);
                for (int64_t ox = 0; ox < g.out_width; ox++) {
                    const Floats v = load(grads + ox * g.channels + c);
                    const int64_t ix = ox * g.stride - g.padding;
                    if (ix >= 0 && ix + K <= g.width) {
                        for (int k = 0; k < K; k++) sums[k] += v * load(row + (ix + k) * g.channels + c);
                    } else {
                        for (int k = 0; k < K; k++)
                            if (ix + k >= 0 && ix + k < g.width) sums[k] += v * load(row + (ix + k) * g.channels + c);
                    }
                }
                for (int k = 0; k < K; k++) store(dw + (ky * K + k) * g.channels + c, sums[k]);
            }
        }
}

// One row of dx: pixels ix of one residue modulo the stride see the same TAPS columns of the kernel, first, first + stride, ...
template <typename T, int TAPS>
static void input_row(const Geometry& g, const T* const* grads, const float* const* weights, int rows, int64_t first,
                      int64_t ix, T* dx) {
    const int64_t channels = g.channels, step = g.stride * channels;
    for (int64_t c = 0; c < channels; c += LANES) {
        int64_t ox = (ix + g.padding - first) / g.stride;
        for (int64_t i = ix; i < g.width; i += g.stride, ox++) {
            Floats sum = {};
            if (ox - TAPS + 1 >= 0 && ox < g.out_width) {
                for (int r = 0; r < rows; r++)
                    for (int t = 0; t < TAPS; t++)
                        sum += load(grads[r] + (ox - t) * channels + c) * load(weights[r] + t * step + c);
            } else {
                for (int r = 0; r < rows; r++)
                    for (int t = 0; t < TAPS; t++)
                        if (ox - t >= 0 && ox - t < g.out_width)
                            sum += load(grads[r] + (ox - t) * channels + c) * load(weights[r] + t * step + c);
            }
            store(dx + i * channels + c, sum);
        }
    }
}

template <typename T>
static void input_gradient(const Geometry& g, const T* grad, const float* w, T* dx) {
    const T* grads[8];
    const float* weights[8];
    const float* from[8];
    for (int64_t iy = 0; iy < g.height; iy++) {
        int rows = 0;
        for (int64_t ky = (iy + g.padding) % g.stride; ky < g.kernel; ky += g.stride) {
            const int64_t oy = (iy + g.padding - ky) / g.stride;
            if (iy + g.padding < ky || oy >= g.out_height) continue;
            grads[rows] = grad + oy * g.out_width * g.channels;
            weights[rows++] = w + ky * g.kernel * g.channels;
        }
        for (int64_t ix = 0; ix < g.stride; ix++) {
            const int64_t first = (ix + g.padding) % g.stride;
            for (int r = 0; r < rows; r++) from[r] = weights[r] + first * g.channels;
            T* row = dx + iy * g.width * g.channels;
            switch ((g.kernel - first + g.stride - 1) / g.stride) {
                case 0: input_row<T, 0>(g, grads, from, rows, first, ix, row); break;
                case 1: input_row<T, 1>(g, grads, from, rows, first, ix, row); break;
                case 2: input_row<T, 2>(g, grads, from, rows, first, ix, row); break;
                case 3: input_row<T, 3>(g, grads, from, rows, first, ix, row); break;
                case 4: input_row<T, 4>(g, grads, from, rows, first, ix, row); break;
                case 5: input_row<T, 5>(g, grads, from, rows, first, ix, row); break;
                case 7: input_row<T, 7>(g, grads, from, rows, first, ix, row); break;
            }
        }
    }
}

template <typename T>
static void depthwise_backward(const Geometry& g, int threads, const T* grad, const T* x, const float* w, T* dx, float* dw) {
    const int64_t in = g.height * g.width * g.channels, out = g.out_height * g.out_width * g.channels;
    const int64_t taps = g.kernel * g.kernel * g.channels;
    std::vector<float> sums(g.images * taps);
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < g.images; n++) {
        input_gradient(g, grad + n * out, w, dx + n * in);
        if (g.kernel == 3) weight_gradient<T, 3>(g, grad + n * out, x + n * in, &sums[n * taps]);
        if (g.kernel == 5) weight_gradient<T, 5>(g, grad + n * out, x + n * in, &sums[n * taps]);
        if (g.kernel == 7) weight_gradient<T, 7>(g, grad + n * out, x + n * in, &sums[n * taps]);
    }
    for (int64_t i = 0; i < taps; i++) {
        double sum = 0;
        for (int64_t n = 0; n < g.images; n++) sum += sums[n * taps + i];
        dw[i] = sum;
    }
}

// Blur pooling: the maximum of 2 x 2 pixels (where it is asked for; at the border of those there are), blurred by 1/4, 1/2, 1/4
// each way and subsampled by 2. Outside the border the blur repeats the outermost pixel, or reflects.
struct Blur { int64_t images, channels, height, width, maximum, reflect; };

static int64_t inside(int64_t i, int64_t size, bool reflect) {
    return i < 0 ? (reflect ? -i : 0) : i < size ? i : reflect ? 2 * size - 2 - i : size - 1;
}

static inline Floats larger(Floats a, Floats b) { return (b > a) | (b != b) ? b : a; }  // NaN if one is, as torch's

template <typename T, bool MAX>
static void blur_forward(const Blur& g, int threads, const T* x, T* y) {
    const int64_t out_height = (g.height + 1) / 2, out_width = (g.width + 1) / 2, row = g.width * g.channels;
    #pragma omp parallel num_threads(threads)
    {
        std::vector<float> mixed(row);
        #pragma omp for schedule(static)
        for (int64_t k = 0; k < g.images * out_height; k++) {
            const T* image = x + k / out_height * g.height * row;
            const T *rows[3], *below[3];
            for (int64_t a = 0; a < 3; a++) {
                const int64_t i = inside(k % out_height * 2 - 1 + a, g.height, g.reflect);
                rows[a] = image + i * row;
                below[a] = i + 1 < g.height ? rows[a] + row : rows[a];
            }
            for (int64_t c = 0; c < g.channels; c += LANES) {
                Floats ahead[3];
                for (int a = 0; a < 3; a++) ahead[a] = MAX ? larger(load(rows[a] + c), load(below[a] + c)) : load(rows[a] + c);
                for (int64_t i = c; i < row; i += g.channels) {
                    const int64_t next = i + g.channels < row ? i + g.channels : i;
                    Floats values[3];
                    for (int a = 0; a < 3; a++) {
                        const Floats here = ahead[a];
                        ahead[a] = MAX ? larger(load(rows[a] + next), load(below[a] + next)) : load(rows[a] + next);
                        values[a] = MAX ? larger(here, ahead[a]) : here;
                    }
                    store(&mixed[i], 0.25f * (values[0] + values[2]) + 0.5f * values[1]);
                }
            }
            T* out = y + k * out_width * g.channels;
            for (int64_t j = 0; j < out_width; j++) {
                const float* left = &mixed[inside(2 * j - 1, g.width, g.reflect) * g.channels];
                const float* right = &mixed[inside(2 * j + 1, g.width, g.reflect) * g.channels];
                const float* middle = &mixed[2 * j * g.channels];
                for (int64_t c = 0; c < g.channels; c += LANES)
                    store(out + j * g.channels + c, 0.25f * (load(left + c) + load(right + c)) + 0.5f * load(middle + c));
            }
        }
    }
}

// Which pixels of the result a pixel is blurred into: two at most, by weight.
struct Taps {
    int64_t first = 0, last = 0;
    float weights[2] = {};
};

static std::vector<Taps> blur_taps(int64_t size, bool reflect) {
    std::vector<Taps> taps(size);
    for (int64_t o = 0; o < (size + 1) / 2; o++)
        for (int64_t a = -1; a < 2; a++) {
            Taps& t = taps[inside(2 * o + a, size, reflect)];
            if (t.weights[0] == 0) t.first = t.last = o;
            t.weights[o != t.first] += a ? 0.25f : 0.5f;
            t.last = o;
        }
    return taps;
}

// A maximum's gradient goes to the first of its pixels that has it, as torch's.
template <typename T, bool MAX>
static void blur_backward(const Blur& g, int threads, const T* grad, const T* x, T* dx) {
    const int64_t out_height = (g.height + 1) / 2, out_width = (g.width + 1) / 2, row = g.width * g.channels;
    const std::vector<Taps> down = blur_taps(g.height, g.reflect), across = blur_taps(g.width, g.reflect);
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < g.images; n++) {
        std::vector<float> mixed(out_width * g.channels), sums(row), below(row);
        for (int64_t p = 0; p < g.height; p++) {
            const T* first = grad + (n * out_height + down[p].first) * out_width * g.channels;
            const T* last = grad + (n * out_height + down[p].last) * out_width * g.channels;
            for (int64_t i = 0; i < out_width * g.channels; i += LANES) {
                Floats d = down[p].weights[0] * load(first + i);
                if (last != first) d += down[p].weights[1] * load(last + i);
                store(&mixed[i], d);
            }
            const T *here = x + (n * g.height + p) * row, *under = p + 1 < g.height ? here + row : here;
            float* deeper = p + 1 < g.height ? below.data() : sums.data();
            for (int64_t c = 0; c < g.channels; c += LANES)
                for (int64_t q = 0; q < g.width; q++) {
                    const Taps& t = across[q];
                    Floats d = t.weights[0] * load(&mixed[t.first * g.channels + c]);
                    if (t.last != t.first) d += t.weights[1] * load(&mixed[t.last * g.channels + c]);
                    const int64_t i = q * g.channels + c, next = q + 1 < g.width ? i + g.channels : i;
                    if (!MAX) {
                        store(&sums[i], d);
                        continue;
                    }
                    Floats most = load(here + i);
                    Floats v = load(here + next);
                    const auto second = (v > most) | (v != v);
                    most = second ? v : most;
                    v = load(under + i);
                    const auto third = (v > most) | (v != v);
                    most = third ? v : most;
                    v = load(under + next);
                    const auto fourth = (v > most) | (v != v);
                    const Floats zero = {};
                    store(&sums[i], load(&sums[i]) + (second | third | fourth ? zero : d));
                    store(&sums[next], load(&sums[next]) + (second & ~third & ~fourth ? d : zero));
                    store(deeper + i, load(deeper + i) + (third & ~fourth ? d : zero));
                    store(deeper + next, load(deeper + next) + (fourth ? d : zero));
                }
            T* out = dx + (n * g.height + p) * row;
            for (int64_t i = 0; i < row; i += LANES) store(out + i, load(&sums[i]));
            if (MAX) {
                sums.swap(below);
                std::fill(below.begin(), below.end(), 0.0f);
            }
        }
    }
}

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(64)));

static const int64_t RGB = 3;
static const int64_t ROWS = 4;  // of an image that are resized at a time: a pixel's three channels and a fourth of each are LANES

static inline Floats load(const uint8_t* p) {
    Bytes b;
    memcpy(&b, p, sizeof b);
    const Halves h = __builtin_convertvector(b, Halves);  // GCC takes bytes to 32 bits one by one
    return __builtin_convertvector(__builtin_convertvector(h, Ints), Floats);
}

// One axis of a resize with antialiasing: each pixel of the result is a weighted sum of as many pixels, from first on.
// The filter, triangle or Keys' cubic with a = -1/2, is as much wider as the image shrinks, and ends at the border, as
// Pillow's does.
struct Axis {
    int64_t taps;
    std::vector<int64_t> first;
    std::vector<float> weights;

    Axis(int64_t length, int64_t size, bool cubic, bool flip) : first(size) {
        const float scale = (float)length / size, wide = scale > 1 ? scale : 1, support = (cubic ? 2 : 1) * wide;
        taps = (int64_t)(2 * support) + 1;
        if (taps > length) taps = length;
        weights.resize(size * taps);
        for (int64_t i = 0; i < size; i++) {
            const float centre = (i + 0.5f) * scale - 0.5f;
            int64_t low = std::ceil(centre - support);
            if (low > length - taps) low = length - taps;
            if (low < 0) low = 0;
            float *w = &weights[(flip ? size - 1 - i : i) * taps], sum = 0;
            for (int64_t k = 0; k < taps; k++) {
                const float x = std::fabs(low + k - centre) / wide;
                if (cubic) w[k] = x < 1 ? (1.5f * x - 2.5f) * x * x + 1 : x < 2 ? ((-0.5f * x + 2.5f) * x - 4) * x + 2 : 0;
                else w[k] = x < 1 ? 1 - x : 0;
                sum += w[k];
            }
            for (int64_t k = 0; k < taps; k++) w[k] /= sum;
            first[flip ? size - 1 - i : i] = low;
        }
    }
};

// A row of the result from rows of `size` bytes.
static void resize_down(const uint8_t* rows, int64_t stride, int64_t size, int64_t taps, const float* weights, float* row) {
    const int64_t whole = size / LANES * LANES, rest = size - whole;
    for (int64_t c = 0; c < whole; c += LANES) {
        Floats sum = {};
        for (int64_t k = 0; k < taps; k++) sum += weights[k] * load(rows + k * stride + c);
        store(row + c, sum);
    }
    if (rest) {  // not to read over the end of the last image
        Floats sum = {};
        for (int64_t k = 0; k < taps; k++) {
            uint8_t last[LANES] = {};
            memcpy(last, rows + k * stride + whole, rest);
            sum += weights[k] * load(last);
        }
        store(row + whole, sum);
    }
}

// ROWS rows of the result, of pixels that lie side by side; TAPS is axis.taps, or 0 for any.
template <int TAPS>
static void resize_across(const Axis& axis, const float* pixels, uint8_t* const* rows) {
    const int64_t taps = TAPS ? TAPS : axis.taps, size = axis.first.size();
    const int64_t* first = axis.first.data();
    const float* weights = axis.weights.data();
    for (int64_t x = 0; x < size; x++, weights += taps) {
        Floats sum = splat(0.5f);
        for (int64_t k = 0; k < taps; k++) sum += weights[k] * load(pixels + (first[x] + k) * LANES);
        sum = sum > 0.0f ? sum : Floats{};
        sum = sum < 255.0f ? sum : splat(255.0f);
        const Bytes b = __builtin_convertvector(__builtin_convertvector(sum, Ints), Bytes);
        uint8_t bytes[LANES];
        memcpy(bytes, &b, sizeof b);
        for (int64_t r = 0; r < ROWS; r++) memcpy(rows[r] + x * RGB, bytes + r * ROWS, ROWS);  // the next overwrites one
    }
}

// Crops, resizes and flips images of size * size pixels, one after the other.
static void crop_resize(int64_t images, int64_t size, int64_t height, int64_t width, const uint8_t* pixels,
                        const int64_t* index, const int64_t* boxes, const bool* flips, const bool* bicubic, uint8_t* out) {
    const int64_t longest = size * RGB + LANES, stride = size * RGB;
    std::vector<float> lines(ROWS * longest), mixed(size * LANES);
    std::vector<uint8_t> results(ROWS * (width * RGB + LANES));
    uint8_t* rows[ROWS];
    for (int64_t r = 0; r < ROWS; r++) rows[r] = &results[r * (width * RGB + LANES)];
    for (int64_t n = 0; n < images; n++, boxes += 4, out += height * width * RGB) {
        const uint8_t* corner = pixels + ((index[n] * size + boxes[0]) * size + boxes[1]) * RGB;
        const Axis down(boxes[2], height, bicubic[n], flips[2 * n]), across(boxes[3], width, bicubic[n], flips[2 * n + 1]);
        for (int64_t y = 0; y < height; y += ROWS) {
            const int64_t count = height - y < ROWS ? height - y : ROWS;
            for (int64_t r = 0; r < count; r++)
                resize_down(corner + down.first[y + r] * stride, stride, boxes[3] * RGB, down.taps,
                            &down.weights[(y + r) * down.taps], &lines[r * longest]);
            for (int64_t x = 0; x < boxes[3]; x++)
                for (int64_t r = 0; r < ROWS; r++)
                    memcpy(&mixed[x * LANES + r * ROWS], &lines[r * longest + x * RGB], ROWS * sizeof(float));
            switch (across.taps) {
                case 3: resize_across<3>(across, mixed.data(), rows); break;
                case 4: resize_across<4>(across, mixed.data(), rows); break;
                case 5: resize_across<5>(across, mixed.data(), rows); break;
                case 6: resize_across<6>(across, mixed.data(), rows); break;
                default: resize_across<0>(across, mixed.data(), rows);
            }
            for (int64_t r = 0; r < count; r++) memcpy(out + (y + r) * width * RGB, rows[r], width * RGB);
        }
    }
}

// Each channel's 256 values are looked up: exact, and as fast as computing them. On one thread: the others crop.
static void look_up(int64_t size, const uint8_t* pixels, const float* table, float* out) {
    for (int64_t i = 0; i < size; i++)
        for (int64_t c = 0; c < RGB; c++) out[i * RGB + c] = table[pixels[i * RGB + c] * RGB + c];
}

extern "C" void crop_resize_uint8(const int64_t* sizes, int, const uint8_t* pixels, const int64_t* index,
                                  const int64_t* boxes, const bool* flips, const bool* bicubic, uint8_t* out) {
    crop_resize(sizes[0], sizes[1], sizes[2], sizes[3], pixels, index, boxes, flips, bicubic, out);
}
extern "C" void look_up_uint8(const int64_t* size, int, const uint8_t* pixels, const float* table, float* out) {
    look_up(*size, pixels, table, out);
}

#define EXPORT(T)                                                                                                      \
    extern "C" void mish_forward_##T(const int64_t* size, int threads, const T* x, T* y) {                             \
        mish_forward(*size, threads, x, y);                                                                            \
    }                                                                                                                  \
    extern "C" void mish_backward_##T(const int64_t* size, int threads, const T* grad, const T* x, T* dx) {            \
        mish_backward(*size, threads, grad, x, dx);                                                                    \
    }                                                                                                                  \
    extern "C" void norm_stats_##T(const int64_t* sizes, int threads, const T* x, float* mean, float* var) {           \
        norm_stats(sizes[0], sizes[1], threads, x, mean, var);                                                         \
    }                                                                                                                  \
    extern "C" void norm_act_forward_##T(const int64_t* sizes, int threads, const T* x, T* y, const float* scale,      \
                                         const float* shift) {                                                         \
        with_activation(sizes[2], [&](auto act) {                                                                      \
            norm_act_forward<decltype(act)>(sizes[0], sizes[1], threads, x, y, scale, shift);                          \
        });                                                                                                            \
    }                                                                                                                  \
    extern "C" void norm_act_backward_##T(const int64_t* sizes, int threads, const T* grad, const T* x, T* dx,         \
                                          const float* scale, const float* shift, const float* mean,                   \
                                          const float* inverse, float* dweight, float* dbias) {                        \
        with_activation(sizes[2], [&](auto act) {                                                                      \
            norm_act_backward<decltype(act)>(sizes[0], sizes[1], threads, grad, x, dx, scale, shift, mean, inverse,    \
                                             dweight, dbias);                                                          \
        });                                                                                                            \
    }                                                                                                                  \
    extern "C" void depthwise_backward_##T(const int64_t* sizes, int threads, const T* grad, const T* x,               \
                                           const float* w, T* dx, float* dw) {                                         \
        depthwise_backward(*(const Geometry*)sizes, threads, grad, x, w, dx, dw);                                      \
    }                                                                                                                  \
    extern "C" void blur_forward_##T(const int64_t* sizes, int threads, const T* x, T* y) {                            \
        const Blur& g = *(const Blur*)sizes;                                                                           \
        g.maximum ? blur_forward<T, true>(g, threads, x, y) : blur_forward<T, false>(g, threads, x, y);                \
    }                                                                                                                  \
    extern "C" void blur_backward_##T(const int64_t* sizes, int threads, const T* grad, const T* x, T* dx) {           \
        const Blur& g = *(const Blur*)sizes;                                                                           \
        g.maximum ? blur_backward<T, true>(g, threads, grad, x, dx) : blur_backward<T, false>(g, threads, grad, x, dx);\
    }
EXPORT(float)
EXPORT(bfloat16)
