// One step of a decoder on a CPU with AVX-512 VNNI: what decoder.py puts together, computed here.
//
// Every row (a token) is computed by the same operations in the same order whatever else is in the step: integer sums
// are exact, float sums run over inputs, ranks and positions in a fixed order, and how rows are grouped only decides
// which loads are shared. So an answer does not depend on its neighbours, nor on how its prompt was cut into chunks.
//
// Numbers: weights are unsigned bytes (value + 128) with a scale per output, adapters' A and B the same with a scale per
// rank row of A and per output of a page of B; activations are signed bytes with a scale per BLOCK inputs of a row, what
// A makes of them with a scale per page; cached keys and values half precision; all else float32.
//
// The C interface is at the end: plain structures filled by Python, no torch, no exceptions.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int LANES = 16;       // floats in a register
constexpr int BLOCK = 64;       // inputs that share an activation scale
constexpr int TILE = 32;        // outputs computed together: two panels of LANES
constexpr int RANK = 16;        // rank rows a page
constexpr int TILE_ROWS = 6;    // rows that share a tile's weights in registers
constexpr int CHUNK_ROWS = 4;   // rows that one thread makes ready at a time

// --- threads -----------------------------------------------------------------------------------------------------------

// Hands the parts of a job to whoever is free: on a machine that others use too, a thread that was put aside holds up
// one part, not half of the job. `ticket` is (job number, next part); only who moves it may run that part.
class Pool {
  public:
    explicit Pool(int num_threads) {
        for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { work(i); });
    }

    ~Pool() {
        stop_.store(true);
        ticket_.fetch_add(uint64_t(1) << 32);
        ticket_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    int size() const { return int(threads_.size()) + 1; }

    template <class F> void run(int count, const F& part) {
        if (count <= 0) return;
        if (count == 1 || threads_.empty()) {
            for (int i = 0; i < count; ++i) part(i, 0);
            return;
        }
        const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
        ticket_.store(job << 32 | CLOSED, std::memory_order_relaxed);  // nobody takes a part while the job is described
        std::atomic_thread_fence(std::memory_order_seq_cst);
        call_.store([](const void* f, int i, int thread) { (*static_cast<const F*>(f))(i, thread); },
                    std::memory_order_relaxed);
        context_.store(&part, std::memory_order_relaxed);
        count_.store(uint32_t(count), std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        ticket_.store(job << 32, std::memory_order_release);
        ticket_.notify_all();
        take_parts(0);
        for (int spins = 0; done_.load(std::memory_order_acquire) != uint32_t(count);) {
            _mm_pause();
            if (++spins > 4000) std::this_thread::yield();
        }
    }

  private:
    static constexpr uint32_t CLOSED = 0xffffffff;

    void take_parts(int thread) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        while (true) {
            const auto call = call_.load(std::memory_order_relaxed);
            const void* const context = context_.load(std::memory_order_relaxed);
            const uint32_t part = uint32_t(ticket);
            if (part == CLOSED || part >= count_.load(std::memory_order_relaxed)) return;
            // Succeeds only if the job is still the one that was read: a part that is not done keeps its job alive.
            if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) {
                call(context, int(part), thread);
                done_.fetch_add(1, std::memory_order_release);
                ticket = ticket_.load(std::memory_order_acquire);
            }
        }
    }

    void work(int thread) {
        uint64_t seen = 0;
        while (!stop_.load(std::memory_order_relaxed)) {
            uint64_t ticket = ticket_.load(std::memory_order_acquire);
            if (ticket >> 32 == seen >> 32) {
                // Between two parts of a step a moment's spinning is quicker than sleep; between steps it is not.
                for (int spins = 0; spins < SPINS && ticket >> 32 == seen >> 32; ++spins) {
                    _mm_pause();
                    ticket = ticket_.load(std::memory_order_acquire);
                }
                if (ticket >> 32 == seen >> 32) {
                    ticket_.wait(ticket, std::memory_order_acquire);
                    continue;
                }
            }
            if (uint32_t(ticket) == CLOSED) {
                _mm_pause();
                continue;
            }
            seen = ticket;
            take_parts(thread);
        }
    }

    static constexpr int SPINS = 2000;
    std::vector<std::thread> threads_;
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<uint32_t> done_{0};
    alignas(64) std::atomic<void (*)(const void*, int, int)> call_{nullptr};
    std::atomic<const void*> context_{nullptr};
    std::atomic<uint32_t> count_{0};
    std::atomic<bool> stop_{false};
};

// --- small arithmetic --------------------------------------------------------------------------------------------------

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

// --- what Python fills in ------------------------------------------------------------------------------------------------

extern "C" {

enum Prologue : int32_t { PLAIN = 0, NORM = 1, SILU_TIMES = 2, GELU_TIMES = 3 };

// Sibling linear layers that read one input. Every tile of 32 outputs belongs to one member.
struct Linear {
    int32_t num_inputs;      // K
    int32_t num_blocks;      // of BLOCK inputs, the last one padded with zeros
    int32_t num_tiles;
    int32_t num_members;
    const uint8_t* panels;   // [num_tiles][2][num_blocks * 16][16 outputs][4 inputs]
    const float* scale;      // [num_tiles * 32]
    const float* bias;       // [num_tiles * 32], read if an op is with_bias
    const int32_t* tiles;    // [num_tiles][3]: member, first column, columns
    const uint8_t* a;        // [pages][members][num_blocks * 16][16 ranks][4 inputs], or null
    const float* a_scale;    // [pages][members * 16]
    const uint8_t* b;        // [pages][num_tiles][2][4][16 outputs][4 ranks]
    const float* b_scale;    // [pages][num_tiles * 32]
};

// Which pages of the bank each row goes through: pages[first[row] .. first[row + 1]].
struct Adapters {
    const int32_t* first;
    const int32_t* pages;
    int32_t num_groups;      // first[rows]
};

struct Attention {
    uint16_t* keys;          // [slots, slot_length, kv_heads * dim] half, this layer's
    uint16_t* values;
    int64_t slot_stride;     // numbers
    int32_t num_heads, num_kv_heads, dim, rotary_dim;
    float scale, softcap;    // softcap 0: none
    int32_t window;          // 0: none
    int32_t rope;            // which of the step's tables
    const float* q_norm;     // [dim] or null
    const float* k_norm;
    float eps;
};

struct Op {
    int32_t kind;            // 0 project, 1 attend, 2 add the norm of x to y
    int32_t prologue;
    int32_t accumulate;      // add to y instead of writing it
    int32_t with_bias;
    const float* x;
    float* y;
    int32_t x_width, y_width;
    const Linear* linear;
    const Attention* attention;
    const float* norm;
    float eps;
};

struct Step {
    int32_t num_rows;
    const int32_t* slot;      // [rows]
    const int32_t* position;  // [rows]
    const float* const* cos;  // [tables] of [rows, rotary_dim]
    const float* const* sin;
    Adapters adapters;
};

}  // extern "C"

namespace {

// Rows that follow one another in a slot: row i is at position `first + i`.
struct Block {
    int row, count, slot, first;
};

// Fetches the cache rows that a thread will read next, a few between the sums of those it reads now: a sequence's rows of
// one layer are a short stretch that the hardware sees the end of before it has guessed the rest.
class Ahead {
  public:
    static constexpr int MOST = 512;  // positions: more would push out what is being read

    // The cache rows that a unit of work begins with.
    struct Stretch {
        int unit = -1;
        const uint16_t* keys = nullptr;
        const uint16_t* values = nullptr;
        int64_t stride = 0;
        int width = 0, length = 0;
    };

    // `unit` begins, and in its `num_steps` steps `stretch` is fetched. → how many of its own positions were.
    int begin(int unit, const Stretch& stretch, int num_steps) {
        const int fetched = unit == stretch_.unit ? next_ : 0;
        stretch_ = stretch;
        next_ = 0;
        a_step_ = (stretch.length + num_steps - 1) / num_steps;
        return fetched;
    }

    void step() {
        for (const int stop = std::min(next_ + a_step_, stretch_.length); next_ < stop; ++next_) {
            fetch(stretch_.keys + next_ * stretch_.stride, stretch_.width);
            fetch(stretch_.values + next_ * stretch_.stride, stretch_.width);
        }
    }

    static void fetch(const uint16_t* p, int count) {
        for (int i = 0; i < count; i += 32) _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T1);
    }

  private:
    Stretch stretch_;
    int next_ = 0, a_step_ = 0;
};

// Memory of a step that nobody outside sees.
struct Scratch {
    std::vector<float> inputs;      // [threads][padded K]: the row that is being made ready
    std::vector<int8_t> digits;     // [rows][padded K]
    std::vector<float> scales;      // [rows][blocks]
    std::vector<int32_t> offsets;   // [rows][blocks]: -128 * sum of the block's digits
    std::vector<int8_t> ranks;      // [groups][members][16]: A times the inputs
    std::vector<float> rank_scales;     // [groups][members]
    std::vector<int32_t> rank_offsets;  // [groups][members]
    std::vector<std::vector<float>> scores;  // a thread's [queries][positions]
    std::vector<Block> blocks;
    std::vector<Ahead> ahead;                // a thread's

    template <class T> static T* at_least(std::vector<T>& v, size_t n) {
        if (v.size() < n) v.resize(n + n / 2);
        return v.data();
    }
};

// --- activations to bytes ------------------------------------------------------------------------------------------------

void quantize(const float* x, int num_blocks, int8_t* digits, float* scales, int32_t* offsets) {
    const __m512i ones = _mm512_set1_epi8(1);
    for (int block = 0; block < num_blocks; ++block, x += BLOCK, digits += BLOCK) {
        __m512 v[4];
        __m512 largest = _mm512_setzero_ps();
        __mmask16 broken = 0;
        for (int i = 0; i < 4; ++i) {
            v[i] = _mm512_loadu_ps(x + i * LANES);
            largest = _mm512_max_ps(largest, _mm512_abs_ps(v[i]));
            broken |= _mm512_cmp_ps_mask(v[i], v[i], _CMP_UNORD_Q);
        }
        // Bytes have no NaN: the scale carries it, so that a broken row stays broken to the end and is noticed there.
        const float top = broken ? NAN : _mm512_reduce_max_ps(largest);
        const float scale = top * (1.0f / 127.0f);
        const __m512 inverse = _mm512_set1_ps(top > 1e-30f ? 127.0f / top : 0.0f);
        for (int i = 0; i < 4; ++i)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + i * LANES),
                             _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse))));
        const __m512i bytes = _mm512_loadu_si512(digits);
        scales[block] = scale;
        offsets[block] = -128 * _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, bytes));
    }
}

// What the layer reads, from what the step holds: normed, activated or as it is; padded with zeros.
void prepare_row(const Op& op, const float* x, int n, int padded, float* out) {
    if (op.prologue == NORM) {
        rms_norm(x, op.norm, op.eps, n, out);
    } else if (op.prologue == PLAIN) {
        std::memcpy(out, x, sizeof(float) * n);
    } else {
        const float* up = x + n;
        for (int i = 0; i < n; i += LANES) {
            const __mmask16 m = tail_mask(n - i);
            const __m512 gate = _mm512_maskz_loadu_ps(m, x + i);
            const __m512 active = op.prologue == SILU_TIMES ? silu(gate) : gelu_tanh(gate);
            _mm512_mask_storeu_ps(out + i, m, _mm512_mul_ps(active, _mm512_maskz_loadu_ps(m, up + i)));
        }
    }
    for (int i = n; i < padded; ++i) out[i] = 0.0f;
}

// --- adapters: shrink ----------------------------------------------------------------------------------------------------

struct Ranks {
    int8_t* digits;
    float* scale;
    int32_t* offset;
};

// A . x for G rows and one member's page: 16 ranks in the lanes of a register, to bytes again at once.
template <int G>
void shrink(const uint8_t* a, const float* a_scale, int num_blocks, const int8_t* digits, const float* scales,
            const int32_t* offsets, const Ranks* out) {
    const int padded = num_blocks * BLOCK;
    __m512 total[G];
    for (int g = 0; g < G; ++g) total[g] = _mm512_setzero_ps();
    for (int block = 0; block < num_blocks; ++block) {
        __m512i sum[G][2];  // two chains a row: with few rows the sums would wait for one another
        for (int g = 0; g < G; ++g) {
            sum[g][0] = _mm512_set1_epi32(offsets[g * num_blocks + block]);
            sum[g][1] = _mm512_setzero_si512();
        }
        const int8_t* x = digits + block * BLOCK;
#pragma GCC unroll 8
        for (int k = 0; k < BLOCK / 4; ++k, a += 64) {
            const __m512i v = _mm512_loadu_si512(a);
            for (int g = 0; g < G; ++g) {
                int32_t four;
                std::memcpy(&four, x + size_t(g) * padded + k * 4, 4);
                sum[g][k & 1] = _mm512_dpbusd_epi32(sum[g][k & 1], v, _mm512_set1_epi32(four));
            }
        }
        for (int g = 0; g < G; ++g) {
            const __m512 both = _mm512_cvtepi32_ps(_mm512_add_epi32(sum[g][0], sum[g][1]));
            total[g] = _mm512_fmadd_ps(both, _mm512_set1_ps(scales[g * num_blocks + block]), total[g]);
        }
    }
    const __m512 scale = _mm512_loadu_ps(a_scale);
    for (int g = 0; g < G; ++g) {
        const __m512 h = _mm512_mul_ps(total[g], scale);
        const bool broken = _mm512_cmp_ps_mask(h, h, _CMP_UNORD_Q) != 0;
        const float top = broken ? NAN : _mm512_reduce_max_ps(_mm512_abs_ps(h));
        const __m512 inverse = _mm512_set1_ps(top > 1e-30f ? 127.0f / top : 0.0f);
        const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(h, inverse)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out[g].digits), bytes);
        *out[g].scale = top * (1.0f / 127.0f);
        *out[g].offset = -128 * _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(bytes));
    }
}

bool same_pages(const Adapters& adapters, int row, int other) {
    const int n = adapters.first[row + 1] - adapters.first[row];
    if (n != adapters.first[other + 1] - adapters.first[other]) return false;
    return std::memcmp(adapters.pages + adapters.first[row], adapters.pages + adapters.first[other], sizeof(int32_t) * n) == 0;
}

void shrink_rows(const Linear& linear, const Adapters& adapters, Scratch& scratch, int first, int last) {
    const int blocks = linear.num_blocks, padded = blocks * BLOCK, members = linear.num_members;
    for (int row = first; row < last;) {
        int count = 1;
        while (row + count < last && same_pages(adapters, row, row + count)) ++count;
        const int8_t* digits = scratch.digits.data() + size_t(row) * padded;
        const float* scales = scratch.scales.data() + size_t(row) * blocks;
        const int32_t* offsets = scratch.offsets.data() + size_t(row) * blocks;
        const int num_pages = adapters.first[row + 1] - adapters.first[row];
        for (int p = 0; p < num_pages; ++p) {
            for (int member = 0; member < members; ++member) {
                const size_t place = size_t(adapters.pages[adapters.first[row] + p]) * members + member;
                const uint8_t* a = linear.a + place * padded * RANK;
                const float* a_scale = linear.a_scale + place * RANK;
                Ranks out[CHUNK_ROWS];
                for (int g = 0; g < count; ++g) {
                    const size_t group = size_t(adapters.first[row + g] + p) * members + member;
                    out[g] = {scratch.ranks.data() + group * RANK, scratch.rank_scales.data() + group,
                              scratch.rank_offsets.data() + group};
                }
                switch (count) {
                    case 1: shrink<1>(a, a_scale, blocks, digits, scales, offsets, out); break;
                    case 2: shrink<2>(a, a_scale, blocks, digits, scales, offsets, out); break;
                    case 3: shrink<3>(a, a_scale, blocks, digits, scales, offsets, out); break;
                    default: shrink<4>(a, a_scale, blocks, digits, scales, offsets, out); break;
                }
            }
        }
        row += count;
    }
}

// --- base weights, and adapters: expand ------------------------------------------------------------------------------------

template <int R>
void multiply_tile(const uint8_t* panels, int num_blocks, const int8_t* digits, const float* scales,
                   const int32_t* offsets, const uint8_t* next, __m512 (*out)[2]) {
    const int padded = num_blocks * BLOCK;
    const uint8_t* w0 = panels;
    const uint8_t* w1 = panels + size_t(padded) * LANES;
    const int8_t* x[R];  // a pointer a row: computed addresses would not leave registers for the sums
    for (int r = 0; r < R; ++r) x[r] = digits + size_t(r) * padded;
    __m512 total[R][2];
    for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = _mm512_setzero_ps();
    for (int block = 0; block < num_blocks; ++block) {
        __m512i sum[R][2];
        for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm512_set1_epi32(offsets[r * num_blocks + block]);
#pragma GCC unroll 16
        for (int k = 0; k < BLOCK / 4; ++k) {
            const __m512i v0 = _mm512_loadu_si512(w0 + k * 64);
            const __m512i v1 = _mm512_loadu_si512(w1 + k * 64);
            if constexpr (R > 2) {  // with fewer rows memory is busy anyway, and the hardware fetches ahead by itself
                _mm_prefetch(reinterpret_cast<const char*>(next + k * 128), _MM_HINT_T1);
                _mm_prefetch(reinterpret_cast<const char*>(next + k * 128 + 64), _MM_HINT_T1);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                int32_t four;
                std::memcpy(&four, x[r] + k * 4, 4);
                const __m512i spread = _mm512_set1_epi32(four);
                sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], v0, spread);
                sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], v1, spread);
            }
        }
        w0 += BLOCK * LANES;
        w1 += BLOCK * LANES;
        next += 2 * BLOCK * LANES;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            x[r] += BLOCK;
            const __m512 scale = _mm512_set1_ps(scales[r * num_blocks + block]);
            total[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][0]), scale, total[r][0]);
            total[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][1]), scale, total[r][1]);
        }
    }
    for (int r = 0; r < R; ++r) {
        out[r][0] = total[r][0];
        out[r][1] = total[r][1];
    }
}

// y[row] += B . ranks[row] for one page and one tile.
inline void expand(const int8_t* ranks, float scale, int32_t offset, const __m512i (*b)[4], const __m512* b_scale, __m512* y) {
    __m512i sum0 = _mm512_set1_epi32(offset), sum1 = sum0;
#pragma GCC unroll 4
    for (int k = 0; k < RANK / 4; ++k) {
        int32_t four;
        std::memcpy(&four, ranks + k * 4, 4);
        const __m512i spread = _mm512_set1_epi32(four);
        sum0 = _mm512_dpbusd_epi32(sum0, b[0][k], spread);
        sum1 = _mm512_dpbusd_epi32(sum1, b[1][k], spread);
    }
    const __m512 v = _mm512_set1_ps(scale);
    y[0] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum0), v), b_scale[0], y[0]);
    y[1] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum1), v), b_scale[1], y[1]);
}

void expand_rows(const Linear& linear, const Adapters& adapters, const Scratch& scratch, int tile, int row, int rows,
                 __m512 (*y)[2]) {
    const int members = linear.num_members, member = linear.tiles[tile * 3];
    for (int r = 0; r < rows;) {
        int count = 1;
        while (r + count < rows && same_pages(adapters, row + r, row + r + count)) ++count;
        const int first = adapters.first[row + r], num_pages = adapters.first[row + r + 1] - first;
        for (int p = 0; p < num_pages; ++p) {
            const size_t place = size_t(adapters.pages[first + p]) * linear.num_tiles + tile;
            const uint8_t* panel = linear.b + place * RANK * TILE;
            __m512i b[2][4];
            for (int half = 0; half < 2; ++half)
                for (int k = 0; k < 4; ++k) b[half][k] = _mm512_loadu_si512(panel + (half * 4 + k) * 64);
            const __m512 b_scale[2] = {_mm512_loadu_ps(linear.b_scale + place * TILE),
                                       _mm512_loadu_ps(linear.b_scale + place * TILE + LANES)};
            for (int g = 0; g < count; ++g) {
                const size_t group = size_t(adapters.first[row + r + g] + p) * members + member;
                expand(scratch.ranks.data() + group * RANK, scratch.rank_scales[group], scratch.rank_offsets[group], b,
                       b_scale, y[r + g]);
            }
        }
        r += count;
    }
}

void project(Pool& pool, Scratch& scratch, const Op& op, const Step& step) {
    const Linear& linear = *op.linear;
    const int rows = step.num_rows, blocks = linear.num_blocks, padded = blocks * BLOCK;
    const bool adapted = linear.a != nullptr && step.adapters.num_groups > 0;
    float* const inputs = Scratch::at_least(scratch.inputs, size_t(pool.size()) * padded);
    int8_t* const digits = Scratch::at_least(scratch.digits, size_t(rows) * padded);
    float* const scales = Scratch::at_least(scratch.scales, size_t(rows) * blocks);
    int32_t* const offsets = Scratch::at_least(scratch.offsets, size_t(rows) * blocks);
    const size_t groups = size_t(step.adapters.num_groups) * linear.num_members;
    Scratch::at_least(scratch.ranks, groups * RANK);
    Scratch::at_least(scratch.rank_scales, groups);
    Scratch::at_least(scratch.rank_offsets, groups);

    pool.run((rows + CHUNK_ROWS - 1) / CHUNK_ROWS, [&](int chunk, int thread) {
        const int first = chunk * CHUNK_ROWS, last = std::min(rows, first + CHUNK_ROWS);
        float* const input = inputs + size_t(thread) * padded;
        for (int row = first; row < last; ++row) {
            prepare_row(op, op.x + size_t(row) * op.x_width, linear.num_inputs, padded, input);
            quantize(input, blocks, digits + size_t(row) * padded, scales + size_t(row) * blocks,
                     offsets + size_t(row) * blocks);
        }
        if (adapted) shrink_rows(linear, step.adapters, scratch, first, last);
    });

    // Enough parts for two threads to share evenly, few enough that handing them out costs nothing.
    const int tiles_a_part = std::max(1, linear.num_tiles / (pool.size() * 8));
    const int parts = (linear.num_tiles + tiles_a_part - 1) / tiles_a_part;
    pool.run(parts, [&](int part, int) {
        const int last_tile = std::min(linear.num_tiles, (part + 1) * tiles_a_part);
        for (int tile = part * tiles_a_part; tile < last_tile; ++tile) {
            const uint8_t* panels = linear.panels + size_t(tile) * TILE * padded;
            const int column = linear.tiles[tile * 3 + 1], columns = linear.tiles[tile * 3 + 2];
            const __mmask16 mask0 = tail_mask(columns), mask1 = columns > LANES ? tail_mask(columns - LANES) : 0;
            const __m512 scale0 = _mm512_loadu_ps(linear.scale + tile * TILE);
            const __m512 scale1 = _mm512_loadu_ps(linear.scale + tile * TILE + LANES);
            const int row_blocks = (rows + TILE_ROWS - 1) / TILE_ROWS;
            for (int i = 0; i < row_blocks; ++i) {
                const int row = int(int64_t(rows) * i / row_blocks), next = int(int64_t(rows) * (i + 1) / row_blocks);
                const int8_t* d = digits + size_t(row) * padded;
                const float* s = scales + size_t(row) * blocks;
                const int32_t* o = offsets + size_t(row) * blocks;
                // While the last rows of this tile are computed, the next tile is on its way from memory.
                const uint8_t* next_tile = panels + (i + 1 == row_blocks ? size_t(TILE) * padded : 0);
                __m512 y[TILE_ROWS][2];
                switch (next - row) {
                    case 1: multiply_tile<1>(panels, blocks, d, s, o, next_tile, y); break;
                    case 2: multiply_tile<2>(panels, blocks, d, s, o, next_tile, y); break;
                    case 3: multiply_tile<3>(panels, blocks, d, s, o, next_tile, y); break;
                    case 4: multiply_tile<4>(panels, blocks, d, s, o, next_tile, y); break;
                    case 5: multiply_tile<5>(panels, blocks, d, s, o, next_tile, y); break;
                    default: multiply_tile<6>(panels, blocks, d, s, o, next_tile, y); break;
                }
                for (int r = 0; r < next - row; ++r) {
                    y[r][0] = _mm512_mul_ps(y[r][0], scale0);
                    y[r][1] = _mm512_mul_ps(y[r][1], scale1);
                }
                if (adapted) expand_rows(linear, step.adapters, scratch, tile, row, next - row, y);
                for (int r = 0; r < next - row; ++r) {
                    float* out = op.y + size_t(row + r) * op.y_width + column;
                    if (op.with_bias) {
                        y[r][0] = _mm512_add_ps(y[r][0], _mm512_loadu_ps(linear.bias + tile * TILE));
                        y[r][1] = _mm512_add_ps(y[r][1], _mm512_loadu_ps(linear.bias + tile * TILE + LANES));
                    }
                    if (op.accumulate) {
                        y[r][0] = _mm512_add_ps(y[r][0], _mm512_maskz_loadu_ps(mask0, out));
                        y[r][1] = _mm512_add_ps(y[r][1], _mm512_maskz_loadu_ps(mask1, out + LANES));
                    }
                    _mm512_mask_storeu_ps(out, mask0, y[r][0]);
                    _mm512_mask_storeu_ps(out + LANES, mask1, y[r][1]);
                }
            }
        }
    });
}

// --- attention -------------------------------------------------------------------------------------------------------------

// x -> x * cos + rotate_half(x) * sin over the first `rotary` of a head's numbers; `rotary` is even.
void rotate(float* x, const float* cos, const float* sin, int rotary) {
    const int half = rotary / 2;
    for (int i = 0; i < half; i += LANES) {
        const __mmask16 m = tail_mask(half - i);
        const __m512 low = _mm512_maskz_loadu_ps(m, x + i), high = _mm512_maskz_loadu_ps(m, x + half + i);
        const __m512 c0 = _mm512_maskz_loadu_ps(m, cos + i), c1 = _mm512_maskz_loadu_ps(m, cos + half + i);
        const __m512 s0 = _mm512_maskz_loadu_ps(m, sin + i), s1 = _mm512_maskz_loadu_ps(m, sin + half + i);
        _mm512_mask_storeu_ps(x + i, m, _mm512_fmsub_ps(low, c0, _mm512_mul_ps(high, s0)));
        _mm512_mask_storeu_ps(x + half + i, m, _mm512_fmadd_ps(high, c1, _mm512_mul_ps(low, s1)));
    }
}

constexpr int MAX_QUERIES = 12;  // query vectors that look at one key together: heads of a group, of some rows
constexpr int MAX_ROWS = 4;
constexpr int POSITIONS_AHEAD = 24;  // how far ahead cache rows are fetched that were not fetched before

inline __m512 from_half(const uint16_t* p, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}

// Beyond what half precision holds comes its largest number, and a NaN stays one: min and max return their second.
void store_half(const float* x, int n, uint16_t* out) {
    for (int i = 0; i < n; i += LANES) {
        const __mmask16 m = tail_mask(n - i);
        const __m512 v = _mm512_min_ps(_mm512_set1_ps(65504.0f), _mm512_maskz_loadu_ps(m, x + i));
        const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-65504.0f), v);
        _mm256_mask_storeu_epi16(out + i, m, _mm512_cvtps_ph(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

// Rows become columns.
inline void transpose(__m512 (&r)[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// What a unit still has to fetch of its own cache rows: `width` numbers of each position from `done` on.
struct Fetch {
    int width, done;
};

// scores[q][l] = scale * (q . key l), sixteen keys in the lanes of a register, their numbers one after another: the
// order of a sum does not depend on who else looks at the key.
template <int Q>
void score(const float* const* q, const uint16_t* keys, int64_t stride, int dim, int length, float scale, float* scores,
           int score_stride, const Fetch& own, Ahead& ahead) {
    for (int l = 0; l < length; l += LANES) {
        const int count = std::min(LANES, length - l);
        ahead.step();
        __m512 sum[Q];
        for (int i = 0; i < Q; ++i) sum[i] = _mm512_setzero_ps();
        if (own.width && l + LANES + POSITIONS_AHEAD > own.done)
            for (int i = 0; i < count; ++i) Ahead::fetch(keys + (l + i + POSITIONS_AHEAD) * stride, own.width);
        for (int d = 0; d < dim; d += LANES) {
            const __mmask16 m = tail_mask(dim - d);
            __m512 k[LANES];
            const uint16_t* key = keys + l * stride + d;
#pragma GCC unroll 16
            for (int i = 0; i < LANES; ++i) k[i] = i < count ? from_half(key + i * stride, m) : _mm512_setzero_ps();
            transpose(k);
            if (dim - d >= LANES) {
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j)
                    for (int i = 0; i < Q; ++i) sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(q[i][d + j]), k[j], sum[i]);
            } else {
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j)
                    if (d + j < dim)
                        for (int i = 0; i < Q; ++i) sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(q[i][d + j]), k[j], sum[i]);
            }
        }
        for (int i = 0; i < Q; ++i)
            _mm512_storeu_ps(scores + i * score_stride + l, _mm512_mul_ps(sum[i], _mm512_set1_ps(scale)));
    }
}

// out[q] = inverse[q] * sum of weights[q][l] * value l, position after position.
template <int Q>
void mix(const float* weights, int weight_stride, const uint16_t* values, int64_t stride, int dim, int length,
         const float* inverse, float* const* out, const Fetch& own, Ahead& ahead) {
    for (int d = 0; d < dim; d += 2 * LANES) {
        const __mmask16 m0 = tail_mask(dim - d), m1 = dim - d > LANES ? tail_mask(dim - d - LANES) : 0;
        __m512 sum[Q][2];
        for (int i = 0; i < Q; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
        const uint16_t* v = values + d;
        for (int l = 0; l < length; ++l, v += stride) {
            if (l % LANES == 0) ahead.step();
            if (d == 0 && own.width && l + POSITIONS_AHEAD >= own.done)
                Ahead::fetch(v + POSITIONS_AHEAD * stride, own.width);
            const __m512 v0 = from_half(v, m0), v1 = from_half(v + LANES, m1);
            for (int i = 0; i < Q; ++i) {
                const __m512 w = _mm512_set1_ps(weights[i * weight_stride + l]);
                sum[i][0] = _mm512_fmadd_ps(w, v0, sum[i][0]);
                sum[i][1] = _mm512_fmadd_ps(w, v1, sum[i][1]);
            }
        }
        for (int i = 0; i < Q; ++i) {
            const __m512 scale = _mm512_set1_ps(inverse[i]);
            _mm512_mask_storeu_ps(out[i] + d, m0, _mm512_mul_ps(sum[i][0], scale));
            _mm512_mask_storeu_ps(out[i] + d + LANES, m1, _mm512_mul_ps(sum[i][1], scale));
        }
    }
}

// Scores to e^(score - max), in place; the sum's inverse is returned.
float soften(float* scores, int length, float softcap) {
    __m512 largest = _mm512_set1_ps(-FLT_MAX);
    for (int l = 0; l < length; l += LANES) {
        const __mmask16 m = tail_mask(length - l);
        __m512 s = _mm512_maskz_loadu_ps(m, scores + l);
        if (softcap > 0) {
            s = _mm512_mul_ps(_mm512_set1_ps(softcap), tanh(_mm512_mul_ps(s, _mm512_set1_ps(1.0f / softcap))));
            _mm512_mask_storeu_ps(scores + l, m, s);
        }
        largest = _mm512_mask_max_ps(largest, m, largest, s);
    }
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sum = _mm512_setzero_ps();
    for (int l = 0; l < length; l += LANES) {
        const __mmask16 m = tail_mask(length - l);
        const __m512 e = exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, scores + l), top));
        _mm512_mask_storeu_ps(scores + l, m, e);
        sum = _mm512_mask_add_ps(sum, m, sum, e);
    }
    return 1.0f / _mm512_reduce_add_ps(sum);
}

// The first position that row i of a block looks at.
inline int first_seen(const Attention& at, const Block& block, int i) {
    return at.window > 0 ? std::max(0, block.first + i + 1 - at.window) : 0;
}

// Some heads of one key-value head, for the rows of a block. q and out: [rows * heads] vectors, a row's heads together.
template <int Q>
void attend_block(const Attention& at, const Block& block, int heads, const float* const* q, const uint16_t* keys,
                  const uint16_t* values, float* scores, int score_stride, float* const* out, const Fetch& own, Ahead& ahead) {
    const int64_t stride = int64_t(at.num_kv_heads) * at.dim;
    const auto start_of = [&](int i) { return first_seen(at, block, i); };
    const int start = start_of(0), length = block.first + block.count - start;
    keys += start * stride;
    values += start * stride;
    score<Q>(q, keys, stride, at.dim, length, at.scale, scores, score_stride, own, ahead);
    float inverse[Q];
    for (int i = 0; i < block.count; ++i) {
        const int from = start_of(i) - start, to = block.first + i + 1 - start;
        for (int h = 0; h < heads; ++h) {
            float* const own = scores + (i * heads + h) * score_stride;
            inverse[i * heads + h] = soften(own + from, to - from, at.softcap);
            std::fill(own, own + from, 0.0f);
            std::fill(own + to, own + length, 0.0f);
        }
    }
    mix<Q>(scores, score_stride, values, stride, at.dim, length, inverse, out, own, ahead);
}

// x [rows, (heads + 2 kv_heads) * dim] holds q, k, v; y [rows, heads * dim].
void attend(Pool& pool, Scratch& scratch, const Op& op, const Step& step) {
    const Attention& at = *op.attention;
    const int rows = step.num_rows, dim = at.dim, group = at.num_heads / at.num_kv_heads;
    const int kv_width = at.num_kv_heads * dim;
    const int heads_together = std::min(group, MAX_QUERIES);
    const int rows_together = std::min(MAX_ROWS, MAX_QUERIES / heads_together);
    auto& blocks = scratch.blocks;
    blocks.clear();
    int longest = 0;
    for (int row = 0; row < rows; ++row) {
        longest = std::max(longest, step.position[row] + 1);
        if (!blocks.empty()) {
            Block& last = blocks.back();
            const bool follows = last.slot == step.slot[row] && last.first + last.count == step.position[row];
            if (follows && last.count < rows_together) {
                ++last.count;
                continue;
            }
        }
        blocks.push_back({row, 1, step.slot[row], step.position[row]});
    }
    const int score_stride = (longest + LANES - 1) / LANES * LANES;
    scratch.scores.resize(pool.size());

    pool.run((rows + CHUNK_ROWS - 1) / CHUNK_ROWS, [&](int chunk, int) {
        const int last = std::min(rows, (chunk + 1) * CHUNK_ROWS);
        for (int row = chunk * CHUNK_ROWS; row < last; ++row) {
            float* const q = const_cast<float*>(op.x) + size_t(row) * op.x_width;
            float* const k = q + at.num_heads * dim;
            const float* const cos = step.cos[at.rope] + size_t(row) * at.rotary_dim;
            const float* const sin = step.sin[at.rope] + size_t(row) * at.rotary_dim;
            for (int h = 0; h < at.num_heads; ++h) {
                if (at.q_norm != nullptr) rms_norm(q + h * dim, at.q_norm, at.eps, dim, q + h * dim);
                rotate(q + h * dim, cos, sin, at.rotary_dim);
            }
            for (int h = 0; h < at.num_kv_heads; ++h) {
                if (at.k_norm != nullptr) rms_norm(k + h * dim, at.k_norm, at.eps, dim, k + h * dim);
                rotate(k + h * dim, cos, sin, at.rotary_dim);
            }
            const int64_t place = step.slot[row] * at.slot_stride + int64_t(step.position[row]) * kv_width;
            store_half(k, kv_width, at.keys + place);
            store_half(k + kv_width, kv_width, at.values + place);
        }
    });

    // With few blocks the heads of one are shared out, with many one thread takes them all: it fetches whole cache rows.
    const int num_blocks = int(blocks.size());
    const int shares = num_blocks < 2 * pool.size() ? at.num_kv_heads : 1;
    const int heads_a_share = at.num_kv_heads / shares;
    const auto length_of = [&](const Block& block) { return block.first + block.count - first_seen(at, block, 0); };
    const auto stretch_of = [&](int unit) {
        Ahead::Stretch stretch;
        if (unit >= num_blocks * shares) return stretch;
        const Block& block = blocks[unit / shares];
        const int64_t place = block.slot * at.slot_stride + int64_t(first_seen(at, block, 0)) * kv_width +
                              unit % shares * heads_a_share * dim;
        return Ahead::Stretch{unit, at.keys + place, at.values + place, kv_width, heads_a_share * dim,
                              std::min(length_of(block), Ahead::MOST)};
    };
    scratch.ahead.assign(pool.size(), {});
    pool.run(num_blocks * shares, [&](int unit, int thread) {
        const Block& block = blocks[unit / shares];
        Ahead& ahead = scratch.ahead[thread];
        const int num_steps = (length_of(block) + LANES - 1) / LANES * heads_a_share * (1 + (dim + 2 * LANES - 1) / (2 * LANES));
        // Whoever is free takes the next unit: with threads equally quick, this one's next.
        const int done = ahead.begin(unit, stretch_of(unit + pool.size()), num_steps);
        float* const scores = Scratch::at_least(scratch.scores[thread], size_t(MAX_QUERIES) * score_stride);
        for (int i = 0; i < heads_a_share; ++i) {
            const int kv_head = unit % shares * heads_a_share + i;
            const uint16_t* const keys = at.keys + block.slot * at.slot_stride + kv_head * dim;
            const uint16_t* const values = at.values + block.slot * at.slot_stride + kv_head * dim;
            for (int g = 0; g < group; g += heads_together) {
                const int heads = std::min(heads_together, group - g);
                const Fetch own{i == 0 && g == 0 ? heads_a_share * dim : 0, done};
                const float* q[MAX_QUERIES];
                float* out[MAX_QUERIES];
                for (int r = 0; r < block.count; ++r)
                    for (int h = 0; h < heads; ++h) {
                        const int head = kv_head * group + g + h;
                        q[r * heads + h] = op.x + size_t(block.row + r) * op.x_width + head * dim;
                        out[r * heads + h] = op.y + size_t(block.row + r) * op.y_width + head * dim;
                    }
                switch (block.count * heads) {
#define CASE(Q) \
    case Q: attend_block<Q>(at, block, heads, q, keys, values, scores, score_stride, out, own, ahead); break;
                    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
                }
            }
        }
    });
}

void add_norm(Pool& pool, const Op& op, const Step& step) {
    pool.run((step.num_rows + CHUNK_ROWS - 1) / CHUNK_ROWS, [&](int chunk, int) {
        std::vector<float> normed(op.x_width);
        const int last = std::min(step.num_rows, (chunk + 1) * CHUNK_ROWS);
        for (int row = chunk * CHUNK_ROWS; row < last; ++row) {
            rms_norm(op.x + size_t(row) * op.x_width, op.norm, op.eps, op.x_width, normed.data());
            float* const y = op.y + size_t(row) * op.y_width;
            for (int i = 0; i < op.x_width; ++i) y[i] += normed[i];
        }
    });
}

struct Machine {
    explicit Machine(int num_threads) : pool(num_threads) {}
    Pool pool;
    Scratch scratch;
};

}  // namespace

extern "C" {

// rows[i * row_stride + k * column_stride], i < n, k < width, to bytes with a scale a row, sixteen rows side by side:
// panels [(n + 15) / 16][padded / 4][16][4], scales [n rounded up to 16]. What is missing to whole panels is zero.
void graft_pack(const float* rows, int64_t row_stride, int64_t column_stride, int32_t n, int32_t width, int32_t padded,
                uint8_t* panels, float* scales) {
    std::memset(panels, 128, size_t((n + LANES - 1) / LANES) * LANES * padded);
    for (int32_t i = 0; i < n; ++i) {
        const float* row = rows + i * row_stride;
        float top = 1e-30f;
        for (int32_t k = 0; k < width; ++k) top = std::max(top, std::fabs(row[k * column_stride]));
        const float inverse = 127.0f / top;
        uint8_t* out = panels + size_t(i / LANES) * LANES * padded + i % LANES * 4;
        for (int32_t k = 0; k < width; ++k)
            out[size_t(k / 4) * LANES * 4 + k % 4] = uint8_t(int(std::nearbyint(row[k * column_stride] * inverse)) + 128);
        scales[i] = top / 127.0f;
    }
    for (int32_t i = n; i % LANES != 0; ++i) scales[i] = 0;
}

void* graft_open(int32_t num_threads) { return new Machine(num_threads); }

void graft_close(void* machine) { delete static_cast<Machine*>(machine); }

// Runs ops[0 .. count] over the step's rows, one after another.
void graft_run(void* machine, const Op* ops, int32_t count, const Step* step) {
    auto& [pool, scratch] = *static_cast<Machine*>(machine);
    for (int32_t i = 0; i < count; ++i) {
        switch (ops[i].kind) {
            case 0: project(pool, scratch, ops[i], *step); break;
            case 1: attend(pool, scratch, ops[i], *step); break;
            default: add_norm(pool, ops[i], *step); break;
        }
    }
}

}  // extern "C"
