/* What a batch adds to the rollup: its deltas summed by spot and bucket, in order, as wide rows. */
#ifndef VESTIBULE_SUMS_H
#define VESTIBULE_SUMS_H

#include "layout.h"

typedef struct __attribute__((packed)) {       /* all fields big-endian */
    uint32_t spot, quarter;
    uint64_t observed;
    uint16_t resolution_s;
    uint8_t late, lines;
    uint32_t counts[8];
} vst_count_row;
_Static_assert(sizeof(vst_count_row) == 52, "layout of COUNT_ROW");

typedef struct {
    int64_t bucket_ms;
    int32_t spot;
    uint32_t at;
} count_key;

static inline int compare_counts(const void *left, const void *right)
{
    const count_key *a = left, *b = right;
    if (a->spot != b->spot)
        return a->spot < b->spot ? -1 : 1;
    return (a->bucket_ms > b->bucket_ms) - (a->bucket_ms < b->bucket_ms);
}

/* Write the rows of `n` deltas, of which `late[i]` is 1 if the i-th is; return how many. */
static inline size_t vst_sum_counts(const vst_count_delta *deltas, const uint8_t *late, size_t n,
                                    count_key *keys, vst_count_row *rows)
{
    int ordered = 1;
    for (size_t i = 0; i < n; i++) {
        keys[i] = (count_key){deltas[i].bucket_ms, deltas[i].spot, (uint32_t)i};
        ordered &= !i || compare_counts(&keys[i - 1], &keys[i]) <= 0;
    }
    if (!ordered)
        qsort(keys, n, sizeof(count_key), compare_counts);
    size_t made = 0;
    for (size_t i = 0; i < n; made++) {
        size_t first = i;
        uint64_t observed = 0, sums[8] = {0};
        uint16_t resolution_s = 0;
        uint8_t lines = 0, any_late = 0;
        for (; i < n && !compare_counts(&keys[first], &keys[i]); i++) {
            const vst_count_delta *delta = &deltas[keys[i].at];
            observed |= delta->observed;
            resolution_s = delta->resolution_s > resolution_s ? delta->resolution_s : resolution_s;
            lines |= delta->lines;
            any_late |= late[keys[i].at];
            for (int j = 0; j < 8; j++)
                sums[j] += delta->counts[j];
        }
        vst_count_row *row = &rows[made];
        be32((uint8_t *)&row->spot, (uint32_t)keys[first].spot);
        be32((uint8_t *)&row->quarter, (uint32_t)(keys[first].bucket_ms / BUCKET_MS));
        be64((uint8_t *)&row->observed, observed);
        be16((uint8_t *)&row->resolution_s, resolution_s);
        row->late = any_late;
        row->lines = lines;
        for (int j = 0; j < 8; j++)
            be32((uint8_t *)&row->counts[j], sums[j] > INT32_MAX ? INT32_MAX : (uint32_t)sums[j]);
    }
    return made;
}

#endif
