// One step of a decoder on a CPU with AVX-512 VNNI: what forward.py puts together, computed here. This file is all that is
// compiled; the headers hold the parts, each in an unnamed namespace, so that the compiler inlines as in one file.
//
// Every row (a token) is computed by the same operations in the same order whatever else is in the step: integer sums
// are exact, float sums run over inputs, ranks and positions in a fixed order, and how rows are grouped only decides
// which loads are shared. So an answer does not depend on its neighbours, nor on how its prompt was cut into chunks.
//
// Numbers: weights are unsigned bytes (value + 128) with a scale per output, adapters' A and B the same with a scale per
// rank row of A and per output of a page of B; activations are signed bytes with a scale per BLOCK inputs of a row, what
// A makes of them with a scale per page; cached keys and values half precision; all else float32.
//
// The C interface is plain structures filled by Python (interface.h) and five functions: graft_open, graft_close, graft_run
// and graft_sample here, graft_pack in pack.h. No torch, no exceptions.

#include <cstdint>

#include "layout.h"
#include "thread_pool.h"
#include "simd.h"
#include "interface.h"
#include "scratch.h"
#include "lora.h"
#include "linear.h"
#include "attention.h"
#include "norm.h"
#include "sample.h"
#include "pack.h"

namespace {

struct Context {
    explicit Context(int num_threads) : pool(num_threads) {}
    ThreadPool pool;
    Scratch scratch;
};

}  // namespace

extern "C" {

void* graft_open(int32_t num_threads) { return new Context(num_threads); }

void graft_close(void* context) { delete static_cast<Context*>(context); }

// Runs ops[0 .. count] over the step's rows, one after another.
void graft_run(void* context, const Op* ops, int32_t count, const Step* step) {
    auto& [pool, scratch] = *static_cast<Context*>(context);
    for (int32_t i = 0; i < count; ++i) {
        switch (ops[i].kind) {
            case 0: project(pool, scratch, ops[i], *step); break;
            case 1: attend(pool, scratch, ops[i], *step); break;
            default: add_norm(pool, ops[i], *step); break;
        }
    }
}

// tokens[i]: of logits[i * stride .. + vocabulary], by samplings[i]; -1 where these are not numbers to choose from.
void graft_sample(void* context, const float* logits, int64_t stride, int32_t num_rows, int32_t vocabulary,
                  const Sampling* samplings, int32_t* tokens) {
    auto& [pool, scratch] = *static_cast<Context*>(context);
    if (int(scratch.sampling.size()) < pool.size()) scratch.sampling.resize(pool.size());
    pool.run(num_rows, [&, &rows = scratch.sampling](int row, int thread) {
        tokens[row] = sample_row(logits + row * stride, vocabulary, samplings[row], rows[thread]);
    });
}

}  // extern "C"
