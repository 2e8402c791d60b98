// What the bindings of the operators with a filter share.
#pragma once

#include "binding.h"
#include "upfirdn2d.cuh"

namespace gankern::fir {

inline Image image_of(const Tensor& x, const Tensor& y) {
    return {x.size(0), x.size(1), x.size(2), x.size(3), y.size(2), y.size(3)};
}

// f [taps] as the kernels read it; Python gives it in the type of sums. The gain, not below 0, goes to both axes.
template <typename T>
Filter<Acc<T>> filter_of(const Tensor& f, const Sampling& s) {
    STD_TORCH_CHECK(s.gain >= 0, "gankern: a filter's gain below 0");
    return {reading<Acc<T>>(f), static_cast<int>(f.numel()), s.flip, Acc<T>(std::sqrt(s.gain))};
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

// Partial sums [sums, images, tiles, channels] of a filter that is laid out so.
inline Tensor tile_sums(const Tensor& like, int64_t sums, const Plan& p) {
    return sums_like(like, {sums, p.images, p.tiles(), p.channels});
}

// Adds them up over the tiles: into [sums, images, channels].
template <typename T>
void sum_tiles(const Tensor& partial, const Tensor& totals, int64_t sums, const Plan& p, void* stream) {
    using A = Acc<T>;
    launch_sum_parts<A, A>(reading<A>(partial), writing<A>(totals), sums * p.images, p.tiles(), p.channels, stream);
}

// And over the images: into db [channels], in two steps, since the parts are many.
template <typename T>
void sum_to_bias(const Tensor& partial, const Tensor& db, const Plan& p, void* stream) {
    using A = Acc<T>;
    const Tensor each = sums_like(db, {p.images, p.channels});
    sum_tiles<T>(partial, each, 1, p, stream);
    launch_sum_parts<T, A>(reading<A>(each), writing<T>(db), 1, p.images, p.channels, stream);
}

// How a filter from x to y is laid out; `in` and `out`: whatever is accessed in the shape of x, and in that of y.
template <typename Tile>
Plan plan_of(const Tensor& x, const Tensor& y, const Sampling& s, bool own, std::initializer_list<const void*> in,
             std::initializer_list<const void*> out) {
    return plan_for<Tile>(image_of(x, y), s.pad_x, s.pad_y, own, aligned(x, VECTOR<typename Tile::Type>, in),
                          aligned(y, y.size(3), out));
}

}  // namespace gankern::fir
