/* The two loops worth a CPU's own instructions, CRC-32C and cells to COPY bytes, and their tables.
 * Their bounds are argued in `decoder.h`. */
#ifndef VESTIBULE_KERNELS_H
#define VESTIBULE_KERNELS_H

#include "layout.h"

#if defined(__x86_64__)
#define VST_X86 1
#include <immintrin.h>
#endif
#if defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

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

#endif
