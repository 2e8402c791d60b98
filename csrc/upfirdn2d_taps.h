// upfirdn2d by the FIR core for one number of taps: a file of its own each, so that they compile side by side.
#pragma once

#include "fir_binding.h"

namespace gankern::fir {

void run_4_taps(const Tensor& x, const Tensor& f, const Tensor& y, const Sampling& s, bool columns, void* stream);
void run_8_taps(const Tensor& x, const Tensor& f, const Tensor& y, const Sampling& s, bool columns, void* stream);
void run_12_taps(const Tensor& x, const Tensor& f, const Tensor& y, const Sampling& s, bool columns, void* stream);

template <typename T, typename F>
void run_form(const Tensor& x, const Tensor& f, const Tensor& y, const Sampling& s, bool columns, void* stream) {
    with_tile<T, F>(columns, [&](auto of) {
        using Tile = typename decltype(of)::type;
        const Plan p = plan_of<Tile>(x, y, s, false, {pointer(x)}, {pointer(y)});
        launch_filter<Tile>(PlainLoad<Tile>{reading<T>(x)}, PlainStore<Tile>{writing<T>(y)}, filter_of<T>(f, s), {}, p,
                            stream);
    });
}

template <int TAPS>
void run_taps(const Tensor& x, const Tensor& f, const Tensor& y, const Sampling& s, bool columns, void* stream) {
    with_type(x, [&](auto type) {
        using T = decltype(type);
        if (s.is(1, 1)) run_form<T, Form<1, 1, TAPS>>(x, f, y, s, columns, stream);
        else if (s.is(2, 1)) run_form<T, Form<2, 1, TAPS>>(x, f, y, s, columns, stream);
        else run_form<T, Form<1, 2, TAPS>>(x, f, y, s, columns, stream);
    });
}

}  // namespace gankern::fir
