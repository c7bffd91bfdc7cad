/* The decoder's core: frames in; records, COPY rows and deltas out. No Python in here.
 *
 * The wire is `protocol/README.md`, the output `ext/layout.py`, the twin `ext/reference.py`: equal
 * bit for bit, reasons and the order of checks included. Reading order: the bounds below, `layout.h`
 * (input, output, buffers), `kernels.h` (the two loops worth a CPU's own instructions), `framing.h`,
 * then here: counters, kiosks, the other kinds, the batch.
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

#include "framing.h"

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
    if (dated_within(span, place) && place->from_ms <= span->start_ms) {
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
