// Arithmetic on sixteen floats, and the norm of a row.

#pragma once

#include <immintrin.h>

#include <cmath>

#include "layout.h"

namespace {

// e^x for x <= 88: Cody-Waite reduction and a polynomial of degree 6, about 2 units in the last place.
inline __m512 exp(__m512 x) {
    x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.0f)), _mm512_set1_ps(-104.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

inline __m512 tanh(__m512 x) {
    const __m512 e = exp(_mm512_max_ps(_mm512_min_ps(_mm512_add_ps(x, x), _mm512_set1_ps(40.0f)), _mm512_set1_ps(-40.0f)));
    return _mm512_div_ps(_mm512_sub_ps(e, _mm512_set1_ps(1.0f)), _mm512_add_ps(e, _mm512_set1_ps(1.0f)));
}

inline __m512 silu(__m512 x) {
    const __m512 e = exp(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

inline __m512 gelu_tanh(__m512 x) {
    const __m512 cubed = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    const __m512 inner = _mm512_mul_ps(_mm512_set1_ps(0.7978845608028654f), _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), cubed, x));
    return _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(0.5f), x), _mm512_add_ps(_mm512_set1_ps(1.0f), tanh(inner)));
}

inline __mmask16 tail_mask(int left) { return left >= LANES ? __mmask16(0xffff) : __mmask16((1u << left) - 1); }

inline float sum_of_squares(const float* x, int n) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < n; i += LANES) {
        const __m512 v = _mm512_maskz_loadu_ps(tail_mask(n - i), x + i);
        sum = _mm512_fmadd_ps(v, v, sum);
    }
    return _mm512_reduce_add_ps(sum);
}

inline void rms_norm(const float* x, const float* weight, float eps, int n, float* out) {
    const __m512 inverse = _mm512_set1_ps(1.0f / std::sqrt(sum_of_squares(x, n) / float(n) + eps));
    for (int i = 0; i < n; i += LANES) {
        const __mmask16 m = tail_mask(n - i);
        const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), inverse);
        _mm512_mask_storeu_ps(out + i, m, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, weight + i)));
    }
}

}  // namespace
