// What the bindings of the operators with a filter share.
#pragma once

#include "binding.h"
#include "upfirdn2d.cuh"

namespace gankern::fir {

inline Image image_of(const Tensor& x, const Tensor& y) {
    return {x.size(0), x.size(1), x.size(2), x.size(3), y.size(2), y.size(3)};
}

// f [taps] as the kernels read it; Python gives it in the type of sums.
template <typename T>
Filter<Acc<T>> filter_of(const Tensor& f, const Sampling& s) {
    return {reading<Acc<T>>(f), static_cast<int>(f.numel()), s.flip, Acc<T>(s.gain)};
}

// Calls fn(Of<Tile>()) with the tile of this memory format.
template <typename T>
struct Of {
    using type = T;
};

template <typename T, typename F, typename Fn>
void with_tile(bool columns, Fn fn) {
    if (columns) fn(Of<ColumnTile<T, F>>());
    else fn(Of<PixelTile<T, F>>());
}

// How a filter from x to y is laid out; `in` and `out`: whatever is accessed in the shape of x, and in that of y.
template <typename Tile>
Plan plan_of(const Tensor& x, const Tensor& y, const Sampling& s, bool own, std::initializer_list<const void*> in,
             std::initializer_list<const void*> out) {
    return plan_for<Tile>(image_of(x, y), s.pad_x, s.pad_y, own, aligned(x, VECTOR<typename Tile::Type>, in),
                          aligned(y, y.size(3), out));
}

}  // namespace gankern::fir
