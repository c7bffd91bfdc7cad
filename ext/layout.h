/* What the core reads and writes: limits, structs equal to `ext/layout.py`, and growing buffers. */
#ifndef VESTIBULE_LAYOUT_H
#define VESTIBULE_LAYOUT_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__GNUC__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the compiled decoder needs GCC or Clang on a little-endian host; elsewhere runs the reference"
#endif

enum { KIND_COUNTER = 1, KIND_KIOSK, KIND_HEALTH, KIND_GAP, KIND_HELLO = 16, KIND_RECEIPT = 32,
       KIND_ANSWER = 33 };

enum { SEC_TIME = 1, SEC_LINES, SEC_PRESSES, SEC_METRICS, SEC_GAP, SEC_HELLO = 16,
       SEC_RECEIPT = 32, SEC_ANSWER = 33 };

enum { OK = 0, SHORT = 1, MAGIC = 2, HEADER_CRC = 3, VERSION = 16, LENGTH = 17, KIND = 18,
       BODY_CRC = 19, SECTION = 20, CRITICAL = 21, MISSING = 22, TIME = 23, SPAN = 24, LINES = 25,
       VALUE = 26, PRESSES = 27, METRICS = 28, GAP = 29, HELLO = 30 };

enum { RENDERED = 0, HELD = 1, PLAIN = 2, REFUSED = 3 };

#define HEADER_BYTES 32u
#define MAX_FRAME 61440u
#define MAX_LINES 4u
#define MAX_CELLS 1440u
#define MAX_RUNS 4096u
#define MAX_PRESSES 4096u
#define MAX_TOTALS 256u
#define MAX_METRICS 64u
#define MAX_NAME 48u
#define MAX_BOOTS 512u
#define MAX_VERSIONS 8u
#define MAX_AGENT 32u
#define MAX_MONOTONIC_MS (1ull << 44)
#define MAX_OFFSET_MS (1ll << 47)
#define MAX_SPAN_MS 0x7FFFFFFFu
#define BUCKET_MS 900000ll
#define SLOT_MS 15000ll
#define PG_EPOCH_MS 946684800000ll
#define EARLIEST_MS PG_EPOCH_MS
#define LATEST_MS 4102444800000ll

#define ROW_BYTES 98u     /* a readings row before its array's elements */
#define CELL_BYTES 12u    /* two array elements: length 2, value */
#define PRESS_ROW_BYTES 84u
#define AHEAD 4u          /* frames to prefetch */
#define SLACK 96u         /* eight cells: what a kernel may store past its last one */

typedef struct { const uint8_t *at; size_t len; } vst_frame;

typedef struct __attribute__((packed)) {
    int32_t boot, spot;
    int64_t from_ms, until_ms;
} vst_place;

typedef struct __attribute__((packed)) {
    uint8_t status, reason, kind, lines, quality, pad[3];
    uint32_t seq;
    uint64_t boot_id;
    uint32_t ordinal, digest;
    int64_t start_ms, end_ms;
    uint32_t rows_at, rows_end, deltas_at, deltas_end, section_at, section_end;
    uint32_t totals[8], sums[8];
} vst_record;

typedef struct __attribute__((packed)) {
    int32_t spot, boot;
    int64_t bucket_ms;
    uint64_t observed;
    uint16_t resolution_s;
    uint8_t lines, pad;
    uint32_t counts[8];
} vst_count_delta;

typedef struct __attribute__((packed)) {
    int32_t spot, boot;
    int64_t bucket_ms;
    uint64_t questionnaire;
    uint8_t question, answer;
    uint16_t zero;
    uint32_t presses;
} vst_press_delta;

_Static_assert(sizeof(vst_place) == 24, "layout of Place");
_Static_assert(sizeof(vst_record) == 132, "layout of RECORD");
_Static_assert(sizeof(vst_count_delta) == 60, "layout of COUNT_DELTA");
_Static_assert(sizeof(vst_press_delta) == 32, "layout of PRESS_DELTA");

typedef struct { uint8_t *at; size_t len, cap; } vst_buffer;

typedef struct {
    uint32_t at_ds, step, visit;
    uint8_t question, answer, source, repeat;
} press_run;

/* What a batch writes, besides its records; and room to think for kiosk frames. Zeroed at first,
 * reusable after `vst_rewind`. `seen` and `seen_words` are a two-level bit set over (question,
 * answer), so that walking it yields a bucket's answers in order and without sorting. */
typedef struct {
    vst_buffer readings, presses, count_deltas, press_deltas;
    press_run runs[MAX_RUNS];
    uint16_t counts[65536];
    uint64_t seen[1024], seen_words[16];
} vst_out;

enum { VST_OK = 0, VST_NO_MEMORY = -1, VST_TOO_LARGE = -2 };

static inline void vst_rewind(vst_out *o)
{
    o->readings.len = o->presses.len = o->count_deltas.len = o->press_deltas.len = 0;
}

static inline void vst_release(vst_out *o)
{
    free(o->readings.at);
    free(o->presses.at);
    free(o->count_deltas.at);
    free(o->press_deltas.at);
    free(o);
}

/* Make room for `need` more bytes and SLACK. A batch's buffer stays below 4 GiB: offsets are u32. */
static inline int reserve(vst_buffer *b, size_t need)
{
    size_t want = b->len + need + SLACK;
    if (__builtin_expect(want <= b->cap, 1))
        return VST_OK;
    if (want > UINT32_MAX)
        return VST_TOO_LARGE;
    want += want / 2;
    uint8_t *grown = realloc(b->at, want);
    if (!grown)
        return VST_NO_MEMORY;
    b->at = grown;
    b->cap = want;
    return VST_OK;
}

static inline uint16_t le16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t le32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t le64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline void be16(uint8_t *p, uint16_t v) { v = __builtin_bswap16(v); memcpy(p, &v, 2); }
static inline void be32(uint8_t *p, uint32_t v) { v = __builtin_bswap32(v); memcpy(p, &v, 4); }
static inline void be64(uint8_t *p, uint64_t v) { v = __builtin_bswap64(v); memcpy(p, &v, 8); }

#endif
