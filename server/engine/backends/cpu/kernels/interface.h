// What Python fills in: plain structures, mirrored by interface.py field by field.

#pragma once

#include <cstdint>

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

// How a row's token is chosen. Temperature 0: the best one. top_k 0, top_p 1, min_p 0: off.
struct Sampling {
    float temperature, top_p, min_p;
    int32_t top_k;
    double uniform;           // in [0, 1)
};

}  // extern "C"
