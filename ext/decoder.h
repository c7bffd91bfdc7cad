/* The decoder's core: frames in; records, COPY rows and deltas out. No Python in here.
 *
 * The wire is `protocol/README.md`, the output `ext/layout.py`, the twin `ext/reference.py`: equal
 * bit for bit, reasons and the order of checks included. Reading order: bounds, input and output,
 * kernels, framing, counters, kiosks, the other kinds, the batch.
 *
 * Bounds, argued once:
 * - Reading. Nothing of a frame is read before its length is compared: the header after
 *   `len >= 32`; the body after `length == len`; a section after `at + length <= end`; and inside
 *   a section each field after its own comparison against the section's end. A kernel's last load
 *   is 8 bytes that END where a line's readings end; at least 32 + 4 + 8 + 12 bytes of the same
 *   frame stand before any reading, so it begins inside the frame.
 * - Writing. `reserve` runs once a frame, after its validation, with the bytes that its VALIDATED
 *   counts need, plus SLACK: kernels store whole vectors, up to 84 bytes past the last cell.
 *   Nothing is allocated for what a header or a count merely promises.
 * - Arithmetic. Times are below 2^48 in magnitude (caps of the TIME section), so sums of them and
 *   the factor 1,000 stay inside int64; a line's sum is at most 1,440 x 32,767 < 2^26.
 */
#ifndef VESTIBULE_DECODER_H
#define VESTIBULE_DECODER_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__GNUC__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the compiled decoder needs GCC or Clang on a little-endian host; elsewhere runs the reference"
#endif

#if defined(__x86_64__)
#define VST_X86 1
#include <immintrin.h>
#endif
#if defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

/* ---- Input and output --------------------------------------------------------------------- */

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

/* ---- Kernels: the two loops worth a CPU's own instructions --------------------------------- */

/* `crc`: CRC-32C. `cells`: write `n` >= 1 cells of `coding` as COPY array elements (12 bytes each,
 * SLACK may be scribbled), return the sum of ins, and of outs in the upper half. */
typedef struct {
    const char *name;
    uint32_t (*crc)(const uint8_t *p, size_t n);
    uint64_t (*cells)(uint8_t *out, const uint8_t *in, uint32_t n, unsigned coding);
} vst_kernel;

static uint32_t crc_table[8][256];
static uint8_t nibble_cell[256][16];      /* 12 bytes used */
static uint8_t byte_value[256][8];        /* 6 bytes used */
static uint8_t element_frame[3][16];      /* eight values' lengths: 00 00 00 02 .. .. */
static uint8_t byte_shuffle[3][16];       /* where eight byte values go */
static uint8_t word_shuffle[3][16];       /* where eight u16 values go, high byte first */

static uint32_t crc_portable(const uint8_t *p, size_t n)
{
    uint32_t c = 0xFFFFFFFFu;
    for (; n >= 8; p += 8, n -= 8) {
        uint32_t a = c ^ le32(p), b = le32(p + 4);
        c = crc_table[7][a & 255] ^ crc_table[6][a >> 8 & 255] ^ crc_table[5][a >> 16 & 255] ^
            crc_table[4][a >> 24] ^ crc_table[3][b & 255] ^ crc_table[2][b >> 8 & 255] ^
            crc_table[1][b >> 16 & 255] ^ crc_table[0][b >> 24];
    }
    for (; n; p++, n--)
        c = c >> 8 ^ crc_table[0][(c ^ *p) & 255];
    return ~c;
}

static uint64_t cells_portable(uint8_t *out, const uint8_t *in, uint32_t n, unsigned coding)
{
    uint64_t ins = 0, outs = 0;
    for (uint32_t i = 0; i < n; i++, out += CELL_BYTES) {
        if (coding < 2) {
            uint8_t cell = coding ? in[i] : 0;
            memcpy(out, nibble_cell[cell], 16);
            ins += cell & 15;
            outs += cell >> 4;
        } else if (coding == 2) {
            memcpy(out, byte_value[in[2 * i]], 8);
            memcpy(out + 6, byte_value[in[2 * i + 1]], 8);
            ins += in[2 * i];
            outs += in[2 * i + 1];
        } else {
            uint16_t a = le16(in + 4 * i), b = le16(in + 4 * i + 2);
            be32(out, 2), be16(out + 4, a);
            be32(out + 6, 2), be16(out + 10, b);
            ins += a;
            outs += b;
        }
    }
    return ins | outs << 32;
}

#if defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
static uint32_t crc_arm(const uint8_t *p, size_t n)
{
    uint32_t c = 0xFFFFFFFFu;
    for (; n >= 8; p += 8, n -= 8)
        c = __crc32cd(c, le64(p));
    for (; n; p++, n--)
        c = __crc32cb(c, *p);
    return ~c;
}
#endif

#ifdef VST_X86
#define SSE __attribute__((target("sse4.2")))

SSE static uint32_t crc_sse(const uint8_t *p, size_t n)
{
    uint64_t c = 0xFFFFFFFFu;
    for (; n >= 8; p += 8, n -= 8)
        c = _mm_crc32_u64(c, le64(p));
    if (n & 4)
        c = _mm_crc32_u32((uint32_t)c, le32(p)), p += 4;
    if (n & 2)
        c = _mm_crc32_u16((uint32_t)c, le16(p)), p += 2;
    if (n & 1)
        c = _mm_crc32_u8((uint32_t)c, *p);
    return ~(uint32_t)c;
}

/* The last 1 to 8 bytes before `end`, zeros above: an 8-byte load that ends where the data ends. */
static inline uint64_t tail8(const uint8_t *end, uint32_t bytes)
{
    return le64(end - 8) >> (64 - 8 * bytes);
}

/* Four cells of byte values (the lower half of `v`), or of u16 values, to 48 bytes. */
SSE static inline void put4(uint8_t *out, __m128i v, uint8_t (*shuffle)[16])
{
    for (int k = 0; k < 3; k++) {
        __m128i to = _mm_loadu_si128((const __m128i *)shuffle[k]);
        __m128i frame = _mm_loadu_si128((const __m128i *)element_frame[k]);
        _mm_storeu_si128((__m128i *)(out + 16 * k), _mm_or_si128(_mm_shuffle_epi8(v, to), frame));
    }
}

SSE static inline __m128i spread_nibbles(uint64_t cells, __m128i *sums)
{
    const uint64_t low = 0x0F0F0F0F0F0F0F0Full;
    __m128i ins = _mm_cvtsi64_si128((long long)(cells & low));
    __m128i outs = _mm_cvtsi64_si128((long long)(cells >> 4 & low));
    __m128i both = _mm_unpacklo_epi64(ins, outs);
    *sums = _mm_add_epi64(*sums, _mm_sad_epu8(both, _mm_setzero_si128()));
    return _mm_unpacklo_epi8(ins, outs);
}

SSE static inline uint64_t fold(__m128i sums)
{
    return (uint64_t)_mm_cvtsi128_si64(sums) | (uint64_t)_mm_extract_epi64(sums, 1) << 32;
}

SSE static uint64_t nibbles_sse(uint8_t *out, const uint8_t *in, uint32_t n)
{
    __m128i sums = _mm_setzero_si128();
    for (; n >= 8; n -= 8, in += 8, out += 96) {
        __m128i v = spread_nibbles(le64(in), &sums);
        put4(out, v, byte_shuffle);
        put4(out + 48, _mm_srli_si128(v, 8), byte_shuffle);
    }
    if (n) {
        __m128i v = spread_nibbles(tail8(in + n, n), &sums);
        put4(out, v, byte_shuffle);
        put4(out + 48, _mm_srli_si128(v, 8), byte_shuffle);
    }
    return fold(sums);
}

SSE static inline __m128i load_bytes(uint64_t four, __m128i *sums)
{
    const uint64_t even = 0x00FF00FF00FF00FFull;
    __m128i both = _mm_set_epi64x((long long)(four >> 8 & even), (long long)(four & even));
    *sums = _mm_add_epi64(*sums, _mm_sad_epu8(both, _mm_setzero_si128()));
    return _mm_cvtsi64_si128((long long)four);
}

SSE static uint64_t bytes_sse(uint8_t *out, const uint8_t *in, uint32_t n)
{
    __m128i sums = _mm_setzero_si128();
    for (; n >= 4; n -= 4, in += 8, out += 48)
        put4(out, load_bytes(le64(in), &sums), byte_shuffle);
    if (n)
        put4(out, load_bytes(tail8(in + 2 * n, 2 * n), &sums), byte_shuffle);
    return fold(sums);
}

/* Two cells a step: u16 values, checked to be below 2^15, so the signed products are theirs. */
SSE static uint64_t words_sse(uint8_t *out, const uint8_t *in, uint32_t n)
{
    uint64_t ins = 0, outs = 0;
    for (uint32_t left = n; left; out += 24) {
        uint32_t step = left >= 2 ? 2 : 1;
        in += 4 * step;
        uint64_t two = tail8(in, 4 * step);
        put4(out, _mm_cvtsi64_si128((long long)two), word_shuffle);
        ins += (two & 0xFFFF) + (two >> 32 & 0xFFFF);
        outs += (two >> 16 & 0xFFFF) + (two >> 48);
        left -= step;
    }
    return ins | outs << 32;
}

SSE static uint64_t cells_sse(uint8_t *out, const uint8_t *in, uint32_t n, unsigned coding)
{
    switch (coding) {
    case 1: return nibbles_sse(out, in, n);
    case 2: return bytes_sse(out, in, n);
    case 3: return words_sse(out, in, n);
    }
    for (uint32_t done = 0; done < n; done += 4, out += 48)
        put4(out, _mm_setzero_si128(), byte_shuffle);
    return 0;
}
#endif

static const vst_kernel kernel_portable = {"portable",
#if defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
    crc_arm,
#else
    crc_portable,
#endif
    cells_portable};
#ifdef VST_X86
static const vst_kernel kernel_sse = {"sse4.2", crc_sse, cells_sse};
#endif

/* Fill the tables; return the best kernel for this CPU. Call once before anything else. */
static const vst_kernel *vst_init(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c >> 1 ^ (c & 1 ? 0x82F63B78u : 0);
        crc_table[0][i] = c;
        be32(nibble_cell[i], 2), be16(nibble_cell[i] + 4, i & 15);
        be32(nibble_cell[i] + 6, 2), be16(nibble_cell[i] + 10, i >> 4);
        be32(byte_value[i], 2), be16(byte_value[i] + 4, (uint16_t)i);
    }
    for (unsigned t = 1; t < 8; t++)
        for (unsigned i = 0; i < 256; i++)
            crc_table[t][i] = crc_table[0][crc_table[t - 1][i] & 255] ^ crc_table[t - 1][i] >> 8;
    for (unsigned at = 0; at < 48; at++) {
        uint8_t value = (uint8_t)(at / 6), part = (uint8_t)(at % 6);
        element_frame[at / 16][at % 16] = part == 3 ? 2 : 0;
        byte_shuffle[at / 16][at % 16] = part == 5 ? value : 0x80;
        word_shuffle[at / 16][at % 16] =
            part == 5 ? (uint8_t)(2 * value) : part == 4 ? (uint8_t)(2 * value + 1) : 0x80;
    }
#ifdef VST_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("ssse3"))
        return &kernel_sse;
#endif
    return &kernel_portable;
}

/* ---- Framing ------------------------------------------------------------------------------- */

typedef struct { const uint8_t *at; uint32_t len; } bytes_of;

typedef struct {
    uint64_t seen;          /* bit of each known section type that is there */
    bytes_of of[64];        /* valid where `seen` says so */
} sections;

#define BIT(type) (1ull << (type))
#define KNOWN_SECTIONS (BIT(SEC_TIME) | BIT(SEC_LINES) | BIT(SEC_PRESSES) | BIT(SEC_METRICS) | \
                        BIT(SEC_GAP) | BIT(SEC_HELLO) | BIT(SEC_RECEIPT) | BIT(SEC_ANSWER))
#define KNOWN_KINDS (BIT(KIND_COUNTER) | BIT(KIND_KIOSK) | BIT(KIND_HEALTH) | BIT(KIND_GAP) | \
                     BIT(KIND_HELLO) | BIT(KIND_RECEIPT) | BIT(KIND_ANSWER))

typedef struct {
    int64_t start_ms;       /* UTC, or the boot's monotonic time where `quality` is 0 */
    uint32_t span_ms;
    uint8_t quality;
} span_of;

/* Check the frozen header; SHORT, MAGIC, HEADER_CRC or OK. */
static inline int check_header(const vst_kernel *k, vst_frame f)
{
    if (f.len < HEADER_BYTES)
        return SHORT;
    if (le16(f.at) != 0x4556)
        return MAGIC;
    return k->crc(f.at, 28) == le32(f.at + 28) ? OK : HEADER_CRC;
}

/* Check version, length, kind and checksum, then find the sections. The header is checked. */
static inline int read_body(const vst_kernel *k, vst_frame f, sections *s)
{
    uint8_t kind = f.at[3];
    if (f.at[2] != 1)
        return VERSION;
    if (le32(f.at + 4) != f.len || f.len > MAX_FRAME)
        return LENGTH;
    if (kind > 63 || !(KNOWN_KINDS & BIT(kind)))
        return KIND;
    if (k->crc(f.at + HEADER_BYTES, f.len - HEADER_BYTES) != le32(f.at + 24))
        return BODY_CRC;
    s->seen = 0;
    const uint8_t *at = f.at + HEADER_BYTES, *end = f.at + f.len;
    while (at < end) {
        if (end - at < 4)
            return SECTION;
        uint8_t type = at[0], flags = at[1];
        uint32_t len = le16(at + 2);
        at += 4;
        if ((uint32_t)(end - at) < len)
            return SECTION;
        if (type < 64 && (KNOWN_SECTIONS & BIT(type))) {
            if (s->seen & BIT(type))
                return SECTION;
            s->seen |= BIT(type);
            s->of[type] = (bytes_of){at, len};
        } else if (flags & 1) {
            return CRITICAL;
        }
        at += len;
    }
    return OK;
}

static inline int read_time(const sections *s, span_of *span)
{
    if (!(s->seen & BIT(SEC_TIME)))
        return MISSING;
    if (s->of[SEC_TIME].len != 24)
        return TIME;
    const uint8_t *p = s->of[SEC_TIME].at;
    uint64_t start = le64(p);
    int64_t offset = (int64_t)le64(p + 16);
    span->span_ms = le32(p + 8);
    span->quality = p[12];
    if (span->quality > 2 || start > MAX_MONOTONIC_MS || span->span_ms > MAX_SPAN_MS ||
        offset > MAX_OFFSET_MS || offset < -MAX_OFFSET_MS)
        return TIME;
    span->start_ms = (int64_t)start + (span->quality ? offset : 0);
    return OK;
}

/* True if a dated span lies in this century and ends within `place`. */
static inline int dated_within(const span_of *span, const vst_place *place)
{
    int64_t end = span->start_ms + span->span_ms;
    return span->quality && span->start_ms >= EARLIEST_MS && end <= LATEST_MS &&
           end <= place->until_ms;
}

/* ---- Counters ------------------------------------------------------------------------------ */

typedef struct {
    const uint8_t *at;
    uint32_t total_in, total_out;
    uint8_t number, coding;
} line_of;

typedef struct {
    int64_t first_ms;       /* the first cell's start, on the clock of the span */
    uint32_t interval_s, cells, count;
    line_of lines[MAX_LINES];
} counts_of;

static inline int interval_allowed(uint32_t s)
{
    return s == 60 || (s && s <= 900 && 900 % s == 0) || s == 1800 || s == 3600;
}

/* Any of `n` bytes' u16 values above 32,767? `n` is a multiple of 4. */
static inline int word_too_large(const uint8_t *p, uint32_t n)
{
    uint64_t any = 0;
    for (; n >= 8; p += 8, n -= 8)
        any |= le64(p);
    if (n)
        any |= le32(p);
    return (any & 0x8000800080008000ull) != 0;
}

/* Set the first cell's start; true if the span touches as many cells as the frame says. Inlined
 * where `step` is known, so that the divisions of the usual interval become products. */
static inline int on_grid(counts_of *c, const span_of *span, uint32_t step)
{
    int64_t lead = span->start_ms % step;
    lead += lead < 0 ? step : 0;
    c->first_ms = span->start_ms - lead;
    return ((uint32_t)lead + span->span_ms - 1) / step + 1 == c->cells;
}

static inline int read_lines(bytes_of payload, const span_of *span, counts_of *c)
{
    const uint8_t *at = payload.at, *end = at + payload.len;
    if (payload.len < 8)
        return LINES;
    c->interval_s = le16(at);
    c->cells = le16(at + 2);
    c->count = at[4];
    if (!interval_allowed(c->interval_s) || c->count < 1 || c->count > MAX_LINES)
        return LINES;
    if (c->cells < 1 || c->cells > MAX_CELLS || span->span_ms < 1)
        return SPAN;
    int fits = c->interval_s == 60 ? on_grid(c, span, 60000) : on_grid(c, span, c->interval_s * 1000);
    if (!fits)
        return SPAN;
    at += 8;
    for (uint32_t i = 0; i < c->count; i++) {
        line_of *line = &c->lines[i];
        if (end - at < 12)
            return LINES;
        line->number = at[0];
        line->coding = at[1];
        if (line->number >= MAX_LINES || line->coding > 3 || le16(at + 2))
            return LINES;
        if (i && line->number <= line[-1].number)
            return LINES;
        line->total_in = le32(at + 4);
        line->total_out = le32(at + 8);
        line->at = at += 12;
        uint32_t size = c->cells << line->coding >> 1;      /* 0, 1, 2 or 4 bytes a cell */
        size = line->coding ? size : 0;
        if ((uint32_t)(end - at) < size)
            return LINES;
        if (line->coding == 3 && word_too_large(at, size))
            return VALUE;
        at += size;
    }
    return at == end ? OK : LINES;
}

/* The mask of a bucket's 60 slots whose middle lies in [begin, end). */
static inline uint64_t observed_slots(int64_t bucket_ms, int64_t begin, int64_t end)
{
    int64_t lead = begin - bucket_ms - SLOT_MS / 2, tail = end - bucket_ms - SLOT_MS / 2;
    int64_t first = lead <= 0 ? 0 : (lead + SLOT_MS - 1) / SLOT_MS;
    int64_t last = tail <= 0 ? 0 : (tail + SLOT_MS - 1) / SLOT_MS;
    first = first > 60 ? 60 : first;
    last = last > 60 ? 60 : last;
    return last > first ? (1ull << last) - (1ull << first) : 0;
}

typedef struct __attribute__((packed)) {       /* all fields big-endian */
    uint16_t columns;
    uint32_t n0; uint64_t time_us;
    uint32_t n1, spot, n2, boot, n3, seq, n4, digest, n5, lead_ms, n6, span_ms;
    uint32_t n7; uint16_t line;
    uint32_t n8; uint16_t interval_s;
    uint32_t n9, dimensions, nulls, type, elements, from;
} reading_row;
_Static_assert(sizeof(reading_row) == ROW_BYTES, "layout of a readings row");

#define B16 __builtin_bswap16
#define B32 __builtin_bswap32
#define B64 __builtin_bswap64

static inline void put_row(uint8_t *out, const counts_of *c, const span_of *span,
                           const vst_place *place, const vst_record *r, uint8_t line)
{
    *(reading_row *)out = (reading_row){
        .columns = B16(10),
        .n0 = B32(8), .time_us = B64((uint64_t)(c->first_ms - PG_EPOCH_MS) * 1000),
        .n1 = B32(4), .spot = B32((uint32_t)place->spot),
        .n2 = B32(4), .boot = B32((uint32_t)place->boot),
        .n3 = B32(4), .seq = B32(r->seq),
        .n4 = B32(4), .digest = B32(r->digest),
        .n5 = B32(4), .lead_ms = B32((uint32_t)(span->start_ms - c->first_ms)),
        .n6 = B32(4), .span_ms = B32(span->span_ms),
        .n7 = B32(2), .line = B16(line),
        .n8 = B32(2), .interval_s = B16((uint16_t)c->interval_s),
        .n9 = B32(20 + CELL_BYTES * c->cells), .dimensions = B32(1), .nulls = 0, .type = B32(21),
        .elements = B32(2 * c->cells), .from = B32(1),
    };
}

/* How a frame's cells fall into buckets: `head` in the first, then `each`, `stride` buckets on. */
typedef struct { uint32_t head, each, stride, buckets; int64_t low_ms; } grid_of;

static inline grid_of grid(const counts_of *c, const span_of *span)
{
    uint32_t step_s = c->interval_s, into = (uint32_t)((uint64_t)c->first_ms % BUCKET_MS);
    grid_of g = {.head = 1, .each = 1, .stride = 1, .low_ms = c->first_ms - into};
    if (step_s == 60) {
        g.each = 15;
        g.head = 15 - into / 60000;
    } else if (step_s < 900) {
        g.each = 900 / step_s;
        g.head = g.each - into / (step_s * 1000);
    } else {
        g.stride = step_s / 900;
    }
    g.buckets = (uint32_t)((uint64_t)(span->start_ms + span->span_ms - 1 - g.low_ms) / BUCKET_MS) + 1;
    return g;
}

static inline void open_deltas(vst_count_delta *d, const grid_of *g, const counts_of *c,
                               const span_of *span, const vst_place *place, uint8_t lines)
{
    int64_t bucket = g->low_ms, end = span->start_ms + span->span_ms;
    for (uint32_t i = 0; i < g->buckets; i++, d++, bucket += BUCKET_MS)
        *d = (vst_count_delta){
            .spot = place->spot, .boot = place->boot, .bucket_ms = bucket,
            .observed = observed_slots(bucket, span->start_ms, end),
            .resolution_s = (uint16_t)c->interval_s, .lines = lines,
        };
}

/* Render the frame's rows and deltas; the span is dated and inside `place`, so no cell is cut.
 * An unassigned frame's deltas are written into the reserve, but not kept. */
static inline int render_counts(const vst_kernel *k, vst_out *o, const counts_of *c,
                                const span_of *span, const vst_place *place, vst_record *r)
{
    grid_of g = grid(c, span);
    size_t delta_bytes = g.buckets * sizeof(vst_count_delta);
    int error = reserve(&o->readings, c->count * (ROW_BYTES + CELL_BYTES * c->cells));
    if (!error)
        error = reserve(&o->count_deltas, delta_bytes);
    if (error)
        return error;
    vst_count_delta *deltas = (vst_count_delta *)(o->count_deltas.at + o->count_deltas.len);
    open_deltas(deltas, &g, c, span, place, r->lines);
    uint8_t *out = o->readings.at + o->readings.len;
    for (uint32_t i = 0; i < c->count; i++) {
        const line_of *line = &c->lines[i];
        const uint8_t *in = line->at;
        put_row(out, c, span, place, r, line->number);
        out += ROW_BYTES;
        uint64_t sum = 0;
        uint32_t left = c->cells, bucket = 0;
        for (uint32_t n = g.head; left; n = g.each, bucket += g.stride) {
            n = n < left ? n : left;
            uint64_t part = k->cells(out, in, n, line->coding);
            deltas[bucket].counts[2 * line->number] = (uint32_t)part;
            deltas[bucket].counts[2 * line->number + 1] = (uint32_t)(part >> 32);
            sum += part;
            out += CELL_BYTES * n;
            in += line->coding ? n << line->coding >> 1 : 0;
            left -= n;
        }
        r->sums[2 * line->number] = (uint32_t)sum;
        r->sums[2 * line->number + 1] = (uint32_t)(sum >> 32);
    }
    o->readings.len = (size_t)(out - o->readings.at);
    o->count_deltas.len += place->spot ? delta_bytes : 0;
    return VST_OK;
}

/* The sums of a frame that is not rendered. */
static inline void sum_lines(const counts_of *c, vst_record *r)
{
    for (uint32_t i = 0; i < c->count; i++) {
        const line_of *line = &c->lines[i];
        const uint8_t *p = line->at;
        uint32_t ins = 0, outs = 0;
        for (uint32_t n = 0; line->coding && n < c->cells; n++) {
            switch (line->coding) {
            case 1: ins += p[n] & 15, outs += p[n] >> 4; break;
            case 2: ins += p[2 * n], outs += p[2 * n + 1]; break;
            default: ins += le16(p + 4 * n), outs += le16(p + 4 * n + 2);
            }
        }
        r->sums[2 * line->number] = ins;
        r->sums[2 * line->number + 1] = outs;
    }
}

static inline int decode_counter(const vst_kernel *k, vst_out *o, bytes_of payload,
                                 const span_of *span, const vst_place *place, vst_record *r,
                                 int *error)
{
    counts_of c;
    int reason = read_lines(payload, span, &c);
    if (reason)
        return reason;
    for (uint32_t i = 0; i < c.count; i++) {
        r->lines |= (uint8_t)(1u << c.lines[i].number);
        r->totals[2 * c.lines[i].number] = c.lines[i].total_in;
        r->totals[2 * c.lines[i].number + 1] = c.lines[i].total_out;
    }
    r->rows_at = (uint32_t)o->readings.len;
    r->deltas_at = (uint32_t)(o->count_deltas.len / sizeof(vst_count_delta));
    if (dated_within(span, place) && place->from_ms <= c.first_ms) {
        r->status = RENDERED;
        *error = render_counts(k, o, &c, span, place, r);
    } else {
        r->status = HELD;
        sum_lines(&c, r);
    }
    r->rows_end = (uint32_t)o->readings.len;
    r->deltas_end = (uint32_t)(o->count_deltas.len / sizeof(vst_count_delta));
    return OK;
}

/* ---- Kiosks -------------------------------------------------------------------------------- */

/* LEB128 of a u32, at most 5 bytes; return 0 if cut off or larger. */
static inline int varint(const uint8_t **at, const uint8_t *end, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 35; shift += 7) {
        if (*at >= end)
            return 0;
        uint8_t byte = *(*at)++;
        *value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return *value <= UINT32_MAX;
    }
    return 0;
}

/* True if `n` totals of 6 bytes stand in strict order of (question, answer). */
static inline int totals_in_order(const uint8_t *p, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++, p += 6)
        if ((p[0] << 8 | p[1]) >= (p[6] << 8 | p[7]))
            return 0;
    return 1;
}

typedef struct { uint64_t questionnaire; uint32_t runs, presses; } presses_of;

static inline int read_presses(bytes_of payload, const span_of *span, vst_out *o, presses_of *found)
{
    const uint8_t *at = payload.at, *end = at + payload.len;
    if (payload.len < 12)
        return PRESSES;
    uint32_t totals = le16(at + 10);
    found->questionnaire = B64(le64(at));
    found->runs = le16(at + 8);
    found->presses = 0;
    if (found->runs > MAX_RUNS || totals > MAX_TOTALS || payload.len < 12 + 6 * totals ||
        !totals_in_order(at + 12, totals))
        return PRESSES;
    at += 12 + 6 * totals;
    uint64_t now_ds = 0, visit = 0;
    for (uint32_t i = 0; i < found->runs; i++) {
        uint64_t delta_ds, delta_visit, step = 0;
        if (!varint(&at, end, &delta_ds) || !varint(&at, end, &delta_visit) || end - at < 4)
            return PRESSES;
        uint8_t repeat = at[3];
        press_run *run = &o->runs[i];
        *run = (press_run){.question = at[0], .answer = at[1], .source = at[2], .repeat = repeat};
        at += 4;
        if (repeat == 0 || (repeat > 1 && !varint(&at, end, &step)))
            return PRESSES;
        now_ds += delta_ds;
        visit += delta_visit;
        found->presses += repeat;
        uint64_t last_ds = now_ds + step * (repeat - 1u);       /* < 2^25 + 2^32 + 2^40 */
        if (found->presses > MAX_PRESSES || visit > UINT32_MAX || last_ds * 100 > span->span_ms)
            return PRESSES;
        run->at_ds = (uint32_t)now_ds;
        run->step = (uint32_t)step;
        run->visit = (uint32_t)visit;
        now_ds = last_ds;
    }
    return at == end ? OK : PRESSES;
}

typedef struct __attribute__((packed)) {       /* all fields big-endian */
    uint16_t columns;
    uint32_t n0; uint64_t time_us;
    uint32_t n1; uint64_t questionnaire;
    uint32_t n2, spot, n3, boot, n4, seq, n5, digest, n6, visit;
    uint32_t n7; uint16_t question;
    uint32_t n8; uint16_t answer;
    uint32_t n9; uint16_t source;
} press_row;
_Static_assert(sizeof(press_row) == PRESS_ROW_BYTES, "layout of a presses row");

static inline void count_press(vst_out *o, const press_run *run)
{
    uint32_t key = (uint32_t)run->question << 8 | run->answer;
    o->counts[key]++;
    o->seen[key >> 6] |= 1ull << (key & 63);
    o->seen_words[key >> 12] |= 1ull << (key >> 6 & 63);
}

/* Append the bucket's answers in order and forget them. Room was reserved: one a press. */
static inline void close_bucket(vst_out *o, const vst_place *place, int64_t bucket_ms,
                                uint64_t questionnaire)
{
    for (uint32_t top = 0; top < 16; top++) {
        for (; o->seen_words[top]; o->seen_words[top] &= o->seen_words[top] - 1) {
            uint32_t word = top << 6 | (uint32_t)__builtin_ctzll(o->seen_words[top]);
            for (; o->seen[word]; o->seen[word] &= o->seen[word] - 1) {
                uint32_t key = word << 6 | (uint32_t)__builtin_ctzll(o->seen[word]);
                if (place->spot) {
                    *(vst_press_delta *)(o->press_deltas.at + o->press_deltas.len) =
                        (vst_press_delta){
                            .spot = place->spot, .boot = place->boot, .bucket_ms = bucket_ms,
                            .questionnaire = questionnaire, .question = (uint8_t)(key >> 8),
                            .answer = (uint8_t)key, .presses = o->counts[key],
                        };
                    o->press_deltas.len += sizeof(vst_press_delta);
                }
                o->counts[key] = 0;
            }
        }
    }
}

static inline int render_presses(vst_out *o, const presses_of *found, const span_of *span,
                                 const vst_place *place, const vst_record *r)
{
    int error = reserve(&o->presses, found->presses * PRESS_ROW_BYTES);
    if (!error)
        error = reserve(&o->press_deltas, found->presses * sizeof(vst_press_delta));
    if (error)
        return error;
    uint8_t *out = o->presses.at + o->presses.len;
    int64_t bucket = 0;
    for (uint32_t i = 0; i < found->runs; i++) {
        const press_run *run = &o->runs[i];
        for (uint32_t n = 0; n < run->repeat; n++) {
            int64_t at_ms = span->start_ms + ((int64_t)run->at_ds + (int64_t)n * run->step) * 100;
            if (at_ms >= place->until_ms)
                continue;                       /* the span's very end may be the next place's */
            if (at_ms - bucket >= BUCKET_MS) {
                close_bucket(o, place, bucket, found->questionnaire);
                bucket = at_ms - at_ms % BUCKET_MS;
            }
            count_press(o, run);
            *(press_row *)out = (press_row){
                .columns = B16(10),
                .n0 = B32(8), .time_us = B64((uint64_t)(at_ms - PG_EPOCH_MS) * 1000),
                .n1 = B32(8), .questionnaire = B64(found->questionnaire),
                .n2 = B32(4), .spot = B32((uint32_t)place->spot),
                .n3 = B32(4), .boot = B32((uint32_t)place->boot),
                .n4 = B32(4), .seq = B32(r->seq), .n5 = B32(4), .digest = B32(r->digest),
                .n6 = B32(4), .visit = B32(run->visit), .n7 = B32(2), .question = B16(run->question),
                .n8 = B32(2), .answer = B16(run->answer), .n9 = B32(2), .source = B16(run->source),
            };
            out += PRESS_ROW_BYTES;
        }
    }
    close_bucket(o, place, bucket, found->questionnaire);
    o->presses.len = (size_t)(out - o->presses.at);
    return VST_OK;
}

static inline int decode_kiosk(vst_out *o, bytes_of payload, const span_of *span,
                               const vst_place *place, vst_record *r, int *error)
{
    presses_of found;
    int reason = read_presses(payload, span, o, &found);
    if (reason)
        return reason;
    r->rows_at = (uint32_t)o->presses.len;
    r->deltas_at = (uint32_t)(o->press_deltas.len / sizeof(vst_press_delta));
    r->status = HELD;
    if (dated_within(span, place) && place->from_ms <= span->start_ms) {
        r->status = RENDERED;
        *error = render_presses(o, &found, span, place, r);
    }
    r->rows_end = (uint32_t)o->presses.len;
    r->deltas_end = (uint32_t)(o->press_deltas.len / sizeof(vst_press_delta));
    return OK;
}

/* ---- The kinds without rows ---------------------------------------------------------------- */

static inline int is_name(const uint8_t *p, uint32_t n)
{
    if (n < 1 || n > MAX_NAME || p[0] < 'a' || p[0] > 'z')
        return 0;
    for (uint32_t i = 1; i < n; i++)
        if (!((p[i] >= 'a' && p[i] <= 'z') || (p[i] >= '0' && p[i] <= '9') || p[i] == '_' ||
              p[i] == '.'))
            return 0;
    return 1;
}

static inline int check_metrics(bytes_of payload)
{
    const uint8_t *at = payload.at + 1, *end = payload.at + payload.len;
    const uint8_t *names[MAX_METRICS];          /* each points at its length byte */
    if (payload.len < 1 || payload.at[0] > MAX_METRICS)
        return METRICS;
    uint32_t count = payload.at[0];
    for (uint32_t i = 0; i < count; i++) {
        if (at >= end || (uint32_t)(end - at) < 1u + *at + 8u || !is_name(at + 1, *at))
            return METRICS;
        for (uint32_t j = 0; j < i; j++)
            if (memcmp(names[j], at, 1u + *at) == 0)    /* differing lengths differ at byte 0 */
                return METRICS;
        names[i] = at;
        at += 1u + *at;
        if ((le64(at) >> 52 & 0x7FF) == 0x7FF)          /* infinite, or not a number */
            return METRICS;
        at += 8;
    }
    return at == end ? OK : METRICS;
}

static inline int check_gap(bytes_of payload, uint32_t seq)
{
    const uint8_t *p = payload.at;
    if (payload.len < 8)
        return GAP;
    uint32_t lines = p[5], answers = le16(p + 6);
    if (le32(p) < seq || p[4] < 1 || p[4] > 3 || lines > MAX_LINES || answers > MAX_TOTALS ||
        payload.len != 8 + 9 * lines + 6 * answers)
        return GAP;
    p += 8;
    for (uint32_t i = 0; i < lines; i++, p += 9)
        if (p[0] >= MAX_LINES || (i && p[0] <= p[-9]))
            return GAP;
    return totals_in_order(p, answers) ? OK : GAP;
}

static inline int check_hello(bytes_of payload)
{
    if (payload.len < 10)
        return HELLO;
    uint32_t versions = payload.at[8], agent = payload.at[9], head = 10 + versions + agent;
    if (versions > MAX_VERSIONS || agent > MAX_AGENT || payload.len < head + 2)
        return HELLO;
    const uint8_t *p = payload.at + head;
    uint32_t boots = le16(p);
    if (boots > MAX_BOOTS || payload.len != head + 2 + 29 * boots)
        return HELLO;
    for (uint32_t i = 1; i <= agent; i++)
        if (p[-(int)i] > 127)
            return HELLO;
    p += 2;
    for (uint32_t i = 0; i < boots; i++, p += 29) {
        int64_t offset = (int64_t)le64(p + 21);
        if (p[20] > 2 || le32(p + 12) > le32(p + 16) || offset > MAX_OFFSET_MS ||
            offset < -MAX_OFFSET_MS)
            return HELLO;
    }
    return OK;
}

static inline int check_answer(bytes_of payload)
{
    if (payload.len < 27)
        return HELLO;
    uint32_t boots = le16(payload.at + 25);
    return boots <= MAX_BOOTS && payload.len == 27 + 17 * boots ? OK : HELLO;
}

/* Receipts and answers have no TIME; their records say nothing but the header. */
static inline int check_downlink(const sections *s, uint8_t kind)
{
    uint8_t wanted = kind == KIND_RECEIPT ? SEC_RECEIPT : SEC_ANSWER;
    if (!(s->seen & BIT(wanted)))
        return MISSING;
    if (wanted == SEC_RECEIPT)
        return s->of[wanted].len == 20 ? OK : HELLO;
    return check_answer(s->of[wanted]);
}

/* ---- The batch ----------------------------------------------------------------------------- */

static inline int decode_sections(const vst_kernel *k, vst_out *o, vst_frame f, const sections *s,
                                  const vst_place *place, vst_record *r, int *error)
{
    if (r->kind == KIND_RECEIPT || r->kind == KIND_ANSWER)
        return check_downlink(s, r->kind);
    span_of span;
    int reason = read_time(s, &span);
    if (reason)
        return reason;
    uint8_t wanted = r->kind == KIND_HELLO ? SEC_HELLO : r->kind + 1;
    if (!(s->seen & BIT(wanted)))
        return MISSING;
    bytes_of payload = s->of[wanted];
    switch (r->kind) {
    case KIND_COUNTER: reason = decode_counter(k, o, payload, &span, place, r, error); break;
    case KIND_KIOSK: reason = decode_kiosk(o, payload, &span, place, r, error); break;
    case KIND_HEALTH: reason = check_metrics(payload); break;
    case KIND_GAP: reason = check_gap(payload, r->seq); break;
    default: reason = check_hello(payload);
    }
    r->quality = span.quality;
    r->start_ms = span.start_ms;
    r->end_ms = span.start_ms + span.span_ms;
    r->section_at = (uint32_t)(payload.at - f.at);
    r->section_end = r->section_at + payload.len;
    return reason;
}

/* Write what every known header says, and a plain frame's place in the buffers: nothing. */
static inline void open_record(vst_record *r, const vst_out *o, const uint8_t *header)
{
    *r = (vst_record){
        .status = PLAIN, .kind = header[3], .seq = le32(header + 16), .boot_id = le64(header + 8),
        .ordinal = le32(header + 20), .digest = le32(header + 24),
        .rows_at = (uint32_t)o->readings.len, .rows_end = (uint32_t)o->readings.len,
    };
    r->deltas_at = r->deltas_end = (uint32_t)(o->count_deltas.len / sizeof(vst_count_delta));
}

/* Turn `r` into a refusal: the reason, and the header's own fields if the header is good. */
static inline void refuse(vst_record *r, const uint8_t *header, int reason)
{
    vst_record refusal = {.status = REFUSED, .reason = (uint8_t)reason};
    if (reason >= 16) {
        refusal.kind = header[3];
        refusal.seq = le32(header + 16);
        refusal.boot_id = le64(header + 8);
        refusal.ordinal = le32(header + 20);
        refusal.digest = le32(header + 24);
    }
    *r = refusal;
}

/* Decode `n` frames, the i-th into `places[i]`, its record to `records[i]`. VST_OK, or why the
 * whole batch failed; what a frame holds never fails it. A refused frame leaves no byte behind,
 * since rendering begins only when its validation is done. */
static int vst_decode(const vst_kernel *k, vst_out *o, const vst_frame *frames,
                      const vst_place *places, size_t n, vst_record *records)
{
    for (size_t i = 0; i < n; i++) {
        vst_frame f = frames[i];
        vst_record *r = &records[i];
        if (i + AHEAD < n) {        /* a small frame is two or three cache lines */
            __builtin_prefetch(frames[i + AHEAD].at);
            __builtin_prefetch(frames[i + AHEAD].at + 64);
        }
        int error = VST_OK, reason = check_header(k, f);
        if (!reason) {
            sections s;
            reason = read_body(k, f, &s);
            if (!reason) {
                open_record(r, o, f.at);
                reason = decode_sections(k, o, f, &s, &places[i], r, &error);
            }
        }
        if (error)
            return error;
        if (reason)
            refuse(r, f.at, reason);
    }
    return VST_OK;
}

#endif
