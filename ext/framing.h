/* A frame's outside: the frozen header, its sections, and the TIME that most kinds carry. */
#ifndef VESTIBULE_FRAMING_H
#define VESTIBULE_FRAMING_H

#include "kernels.h"

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

#endif
