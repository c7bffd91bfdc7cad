/* What the fuzzer runs: the decoder's core on one input, and what must hold whatever it is.
 *
 * Compiled with AddressSanitizer, UndefinedBehaviorSanitizer and coverage; `loop.c`, which calls
 * it, without. The input is copied into a block of exactly its size, so a read past it is seen;
 * so are the outputs' own bounds. Also fits libFuzzer (see README.md). An input is a stream of
 * frames: u16 length, then the frame; the first byte chooses the place.
 */
#include "../decoder.h"

#include <stdio.h>

#define MAX_FRAMES 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const vst_kernel *best;
static vst_out *left, *right;

static void must(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "invariant broken: %s\n", what);
        abort();
    }
}

static vst_place place_of(uint8_t choice)
{
    static const int64_t edges[4] = {INT64_MIN, 1760000000000, 1760000300000, INT64_MAX};
    return (vst_place){.boot = 5, .spot = choice & 1 ? 0 : 9,
                       .from_ms = edges[choice & 2 ? 1 : 0], .until_ms = edges[choice & 4 ? 2 : 3]};
}

/* Split the input; each frame gets a block of its own, ending where the frame ends. */
static size_t split(const uint8_t *data, size_t size, vst_frame *frames, uint8_t **blocks)
{
    size_t n = 0, at = 1;
    while (n < MAX_FRAMES && at + 2 <= size) {
        size_t len = le16(data + at);
        at += 2;
        len = len < size - at ? len : size - at;
        blocks[n] = malloc(len ? len : 1);
        memcpy(blocks[n], data + at, len);
        frames[n] = (vst_frame){blocks[n], len};
        at += len;
        n++;
    }
    return n;
}

static void same(const vst_buffer *a, const vst_buffer *b)
{
    must(a->len == b->len && (!a->len || !memcmp(a->at, b->at, a->len)), "kernels differ");
}

/* A record's ranges lie in the buffers, follow the last one's, and a refusal has none. */
static void check_records(const vst_record *r, size_t n, const vst_frame *frames)
{
    uint32_t rows[2] = {0, 0}, deltas[2] = {0, 0};
    for (size_t i = 0; i < n; i++, r++) {
        int kiosk = r->kind == KIND_KIOSK && r->status != REFUSED;
        must(r->status <= REFUSED, "status");
        must((r->status == REFUSED) == (r->reason != OK), "reason");
        if (r->status == REFUSED)
            continue;
        if (r->kind == KIND_COUNTER || r->kind == KIND_KIOSK) {
            must(r->rows_at == rows[kiosk] && r->deltas_at == deltas[kiosk], "ranges follow");
            must(r->rows_end >= r->rows_at && r->deltas_end >= r->deltas_at, "ranges ascend");
            must(r->status == RENDERED || r->rows_end == r->rows_at, "held without rows");
            rows[kiosk] = r->rows_end;
            deltas[kiosk] = r->deltas_end;
        }
        must(r->section_at <= r->section_end && r->section_end <= frames[i].len, "section");
    }
    must(rows[0] == left->readings.len && rows[1] == left->presses.len, "all rows are someone's");
    must(deltas[0] * sizeof(vst_count_delta) == left->count_deltas.len, "count deltas");
    must(deltas[1] * sizeof(vst_press_delta) == left->press_deltas.len, "press deltas");
}

/* Fit each buffer to nothing from time to time, so that growing is fuzzed as well. */
static void shrink(vst_out *o)
{
    vst_buffer *all[4] = {&o->readings, &o->presses, &o->count_deltas, &o->press_deltas};
    for (int i = 0; i < 4; i++) {
        free(all[i]->at);
        *all[i] = (vst_buffer){0};
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!best) {
        best = vst_init();
        left = calloc(1, sizeof *left);
        right = calloc(1, sizeof *right);
    }
    if (size < 3)
        return 0;
    vst_frame frames[MAX_FRAMES];
    uint8_t *blocks[MAX_FRAMES];
    size_t n = split(data, size, frames, blocks);
    vst_place places[MAX_FRAMES];
    for (size_t i = 0; i < n; i++)
        places[i] = place_of((uint8_t)(data[0] >> i % 4));
    vst_record *a = malloc(n * sizeof *a + 1), *b = malloc(n * sizeof *b + 1);
    if (data[0] & 128)
        shrink(left);
    vst_rewind(left);
    vst_rewind(right);
    must(vst_decode(best, left, frames, places, n, a) == VST_OK, "no batch fails");
    must(vst_decode(&kernel_portable, right, frames, places, n, b) == VST_OK, "no batch fails");
    check_records(a, n, frames);
    must(memcmp(a, b, n * sizeof *a) == 0, "kernels differ");
    same(&left->readings, &right->readings);
    same(&left->presses, &right->presses);
    same(&left->count_deltas, &right->count_deltas);
    same(&left->press_deltas, &right->press_deltas);
    free(a);
    free(b);
    while (n--)
        free(blocks[n]);
    return 0;
}
