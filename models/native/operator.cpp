// Batch normalisation in training mode with what stands behind it in a network, the residual sum and ReLU, as one operator for the CPU.
//
//   y = relu(weight * (x - mean) / sqrt(variance + eps) + bias + add)        over (N, H, W), Ioffe and Szegedy, ICML 2015
//
// Maps (N, C, H, W) lie channels-last in float32 or bfloat16; parameters and statistics are float32. Forward reads x twice and writes y;
// backward reads (x, y, dy) twice and writes dx. Sums are taken image by image and then over images in double, so the bits do not depend
// on the number of threads. What does not fit (another layout or type, C without a common multiple with 64) goes through ATen's operators.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

namespace {

using at::BFloat16;
using at::Tensor;
using Floats = std::vector<float>;

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef uint16_t H16 __attribute__((vector_size(32)));

constexpr int WIDTH = 64, LANES = 16, PARTS = WIDTH / LANES;  // floats side by side in a pass: four vectors
#define EACH for (int j = 0; j < PARTS; j++)

inline F16 load(const float* p) {
  F16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline F16 load(const BFloat16* p) {
  H16 h;
  std::memcpy(&h, p, sizeof h);
  return (F16)(__builtin_convertvector(h, U16) << 16);
}
inline void store(float* p, F16 v) { std::memcpy(p, &v, sizeof v); }
inline void store(BFloat16* p, F16 v) {
  U16 bits = (U16)v;
  U16 even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // round to nearest, ties to even
  I16 number = v == v;
  H16 h = __builtin_convertvector((even & (U16)number) | (0x7fc0u & ~(U16)number), H16);  // rounding may not carry a NaN into infinity
  std::memcpy(p, &h, sizeof h);
}
inline F16 where_positive(F16 v, F16 y) { return (F16)((I16)v & ~(I16)(y <= 0)); }  // a NaN stays

// An image as rows that are a multiple of WIDTH values long: a pixel where it has as many channels, else several pixels.
struct Shape {
  int64_t images, channels, size, rows, row;

  explicit Shape(const Tensor& x) : images(x.size(0)), channels(x.size(1)), size(channels * x.size(2) * x.size(3)) {
    row = channels < WIDTH ? WIDTH : channels;
    rows = size / row;
  }
  double count() const { return double(images) * pixels(); }
  int64_t pixels() const { return size / channels; }
  Floats wide(const float* values) const {  // one value a channel, repeated along a row
    Floats out(row);
    for (int64_t k = 0; k < row; k++) out[k] = values[k % channels];
    return out;
  }
  void narrow(const float* sums, float* out) const {  // a row of sums -> one sum a channel
    for (int64_t c = 0; c < channels; c++) {
      float sum = 0;
      for (int64_t k = c; k < row; k += channels) sum += sums[k];
      out[c] = sum;
    }
  }
  // work(image, column, offset of the column's first value): every image, WIDTH columns at a time.
  template <class Work> void each(const Work& work) const {
    at::parallel_for(0, images, 1, [&](int64_t first, int64_t last) {
      for (int64_t image = first; image < last; image++)
        for (int64_t column = 0; column < row; column += WIDTH) work(image, column, image * size + column);
    });
  }
};

// Mean and biased variance (C,): within an image about the image's own mean, then over images (Chan, Golub and LeVeque 1983).
template <class T> void statistics(const T* x, const Shape& s, float* mean, float* variance) {
  Floats means(s.images * s.row), squares(s.images * s.row);
  s.each([&](int64_t image, int64_t column, int64_t start) {  // every column of a row for itself: a channel of several columns is joined below
    F16 sum[PARTS] = {}, square[PARTS] = {};
    for (int64_t r = 0, at = start; r < s.rows; r++, at += s.row) EACH sum[j] += load(x + at + LANES * j);
    EACH sum[j] /= float(s.rows);
    for (int64_t r = 0, at = start; r < s.rows; r++, at += s.row)
      EACH {
        F16 d = load(x + at + LANES * j) - sum[j];
        square[j] += d * d;
      }
    EACH {
      store(&means[image * s.row + column + LANES * j], sum[j]);
      store(&squares[image * s.row + column + LANES * j], square[j]);
    }
  });
  for (int64_t c = 0; c < s.channels; c++) {
    double sum = 0, square = 0;
    for (int64_t k = c; k < s.images * s.row; k += s.channels) sum += means[k];
    double middle = sum * double(s.rows) / s.count();
    for (int64_t k = c; k < s.images * s.row; k += s.channels) {
      double d = means[k] - middle;
      square += squares[k] + double(s.rows) * d * d;
    }
    mean[c] = float(middle);
    variance[c] = float(square / s.count());
  }
}

// y = scale * x + shift + add, through ReLU.
template <bool ADD, bool RELU, class T> void transform(const T* x, const T* add, T* y, const Shape& s, const float* scale, const float* shift) {
  Floats scales = s.wide(scale), shifts = s.wide(shift);
  s.each([&](int64_t, int64_t column, int64_t start) {
    F16 a[PARTS], b[PARTS];
    EACH {
      a[j] = load(&scales[column + LANES * j]);
      b[j] = load(&shifts[column + LANES * j]);
    }
    for (int64_t r = 0, at = start; r < s.rows; r++, at += s.row)
      EACH {
        F16 v = load(x + at + LANES * j) * a[j] + b[j];
        if constexpr (ADD) v += load(add + at + LANES * j);
        if constexpr (RELU) v = where_positive(v, v);
        store(y + at + LANES * j, v);
      }
  });
}

// With g = dy where y > 0 (without ReLU: dy): the sums of g and of g (x - mean) (C,), and, where asked for, g itself.
template <bool KEEP, bool RELU, class T>
void sums(const T* x, const T* y, const T* dy, T* g, const Shape& s, const float* mean, float* plain, float* product) {
  Floats middle = s.wide(mean), first(s.images * s.row), second(s.images * s.row);
  s.each([&](int64_t image, int64_t column, int64_t start) {
    F16 m[PARTS], one[PARTS] = {}, two[PARTS] = {};
    EACH m[j] = load(&middle[column + LANES * j]);
    for (int64_t r = 0, at = start; r < s.rows; r++, at += s.row)
      EACH {
        F16 v = load(dy + at + LANES * j);
        if constexpr (RELU) v = where_positive(v, load(y + at + LANES * j));
        if constexpr (KEEP) store(g + at + LANES * j, v);
        one[j] += v;
        two[j] += v * (load(x + at + LANES * j) - m[j]);
      }
    EACH {
      store(&first[image * s.row + column + LANES * j], one[j]);
      store(&second[image * s.row + column + LANES * j], two[j]);
    }
  });
  for (int64_t c = 0; c < s.channels; c++) {
    double a = 0, b = 0;
    for (int64_t k = c; k < s.images * s.row; k += s.channels) {
      a += first[k];
      b += second[k];
    }
    plain[c] = float(a);
    product[c] = float(b);
  }
}

// dx = a g + b x + c, g as above.
template <bool RELU, class T>
void gradient(const T* x, const T* y, const T* dy, T* dx, const Shape& s, const float* a, const float* b, const float* c) {
  Floats as = s.wide(a), bs = s.wide(b), cs = s.wide(c);
  s.each([&](int64_t, int64_t column, int64_t start) {
    F16 p[PARTS], q[PARTS], o[PARTS];
    EACH {
      p[j] = load(&as[column + LANES * j]);
      q[j] = load(&bs[column + LANES * j]);
      o[j] = load(&cs[column + LANES * j]);
    }
    for (int64_t r = 0, at = start; r < s.rows; r++, at += s.row)
      EACH {
        F16 v = load(dy + at + LANES * j);
        if constexpr (RELU) v = where_positive(v, load(y + at + LANES * j));
        store(dx + at + LANES * j, p[j] * v + (q[j] * load(x + at + LANES * j) + o[j]));
      }
  });
}

// f(T()) for the type of x; f(true_type or false_type) for a condition known at run time.
template <class F> void of_type(const Tensor& x, const F& f) { x.scalar_type() == at::kFloat ? f(float()) : f(BFloat16()); }
template <class F> void of_case(bool b, const F& f) { b ? f(std::true_type()) : f(std::false_type()); }

struct Normalise : torch::autograd::Function<Normalise> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& add, const Tensor& weight,
                        const Tensor& bias, const Tensor& running_mean, const Tensor& running_var, double momentum, double eps, bool relu) {
    at::AutoDispatchBelowADInplaceOrView plain;
    Shape s(x);
    Tensor mean = at::empty_like(weight), inverse = at::empty_like(weight), y = at::empty_like(x);
    float *m = mean.data_ptr<float>(), *inv = inverse.data_ptr<float>();
    float *rm = running_mean.data_ptr<float>(), *rv = running_var.data_ptr<float>();
    const float *w = weight.data_ptr<float>(), *b = bias.data_ptr<float>();
    Floats scale(s.channels), shift(s.channels);
    of_type(x, [&](auto t) {
      using T = decltype(t);
      statistics(x.data_ptr<T>(), s, m, inv);
      for (int64_t c = 0; c < s.channels; c++) {
        double unbiased = double(inv[c]) * s.count() / (s.count() - 1);
        rm[c] = float((1 - momentum) * rm[c] + momentum * m[c]);
        rv[c] = float((1 - momentum) * rv[c] + momentum * unbiased);
        inv[c] = float(1 / std::sqrt(double(inv[c]) + eps));
        scale[c] = w[c] * inv[c];
        shift[c] = float(b[c] - double(m[c]) * scale[c]);
      }
      const T* more = add ? add->data_ptr<T>() : nullptr;
      of_case(add.has_value(), [&](auto a) {
        of_case(relu, [&](auto r) {
          transform<a.value, r.value>(x.data_ptr<T>(), more, y.data_ptr<T>(), s, scale.data(), shift.data());
        });
      });
    });
    ctx->save_for_backward({x, weight, mean, inverse, relu ? y : Tensor()});
    ctx->saved_data["add"] = add.has_value();
    ctx->saved_data["relu"] = relu;
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, torch::autograd::variable_list incoming) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "kd_bench::normalise has no second derivative: use --engine eager");
    auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &mean = saved[2], &inverse = saved[3], &y = saved[4];
    bool add = ctx->saved_data["add"].toBool(), relu = ctx->saved_data["relu"].toBool();
    Tensor dy = incoming[0].to(x.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
    Shape s(x);
    Tensor dx = at::empty_like(x), dweight = at::empty_like(weight), dbias = at::empty_like(weight);
    Tensor g = relu && add ? at::empty_like(x) : dy;  // the gradient of the sum, which `add` takes as it is
    const float *m = mean.data_ptr<float>(), *inv = inverse.data_ptr<float>(), *w = weight.data_ptr<float>();
    float *dw = dweight.data_ptr<float>(), *db = dbias.data_ptr<float>();
    of_type(x, [&](auto t) {
      using T = decltype(t);
      const T *px = x.data_ptr<T>(), *pdy = dy.data_ptr<T>(), *py = relu ? y.data_ptr<T>() : nullptr;
      T* pg = g.data_ptr<T>();
      of_case(relu, [&](auto r) {
        of_case(relu && add, [&](auto keep) { sums<keep.value, r.value>(px, py, pdy, pg, s, m, db, dw); });
      });
      Floats a(s.channels), b(s.channels), c(s.channels);
      for (int64_t k = 0; k < s.channels; k++) {
        dw[k] *= inv[k];
        double slope = double(w[k]) * inv[k], tilt = -slope * inv[k] * dw[k] / s.count();
        a[k] = float(slope);
        b[k] = float(tilt);
        c[k] = float(-slope * db[k] / s.count() - tilt * m[k]);
      }
      of_case(relu && !add, [&](auto r) { gradient<r.value>(px, py, pg, dx.data_ptr<T>(), s, a.data(), b.data(), c.data()); });
    });
    return {dx, add ? g : Tensor(), dweight, dbias, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

bool map_fits(const Tensor& x) {
  if (x.dim() != 4 || !x.is_cpu() || !x.is_contiguous(at::MemoryFormat::ChannelsLast)) return false;
  if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kBFloat16) return false;
  int64_t channels = x.size(1), size = channels * x.size(2) * x.size(3);
  return channels % WIDTH == 0 || (WIDTH % channels == 0 && size % WIDTH == 0);
}
bool is_float(const Tensor& t) { return t.is_cpu() && t.scalar_type() == at::kFloat && t.is_contiguous(); }

Tensor normalise(const Tensor& x, const std::optional<Tensor>& add, const Tensor& weight, const Tensor& bias, const Tensor& running_mean,
                 const Tensor& running_var, double momentum, double eps, bool relu) {
  TORCH_CHECK_VALUE(x.numel() > x.size(1), "Expected more than 1 value per channel when training, got input size ", x.sizes());
  bool fits = map_fits(x) && is_float(weight) && is_float(bias) && is_float(running_mean) && is_float(running_var) &&
              (!add || (map_fits(*add) && add->sizes() == x.sizes() && add->scalar_type() == x.scalar_type()));
  if (fits) return Normalise::apply(x, add, weight, bias, running_mean, running_var, momentum, eps, relu);
  Tensor y = at::batch_norm(x, weight, bias, running_mean, running_var, true, momentum, eps, false);
  if (add) y.add_(*add);
  return relu ? y.relu_() : y;
}

}  // namespace

TORCH_LIBRARY(kd_bench, m) {
  m.def(
      "normalise(Tensor x, Tensor? add, Tensor weight, Tensor bias, Tensor(a!) running_mean, Tensor(b!) running_var, float momentum, float eps, "
      "bool relu) -> Tensor",
      normalise);
}
