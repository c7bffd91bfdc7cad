/* A small coverage-guided loop around `target.c`, for where there is no libFuzzer: GCC alone.
 *
 *     fuzz SECONDS SEED CORPUS_DIR
 *
 * Seeds are the files in CORPUS_DIR; inputs that reach new code are kept in memory and written
 * there on leaving. Coverage is that of AFL: a byte map of edges, with counts in eight classes.
 * A mutation knows the format a little: it walks the frames, and nine times in ten it makes their
 * lengths and checksums right again, without which nothing gets past the third check. The last
 * input lies in CORPUS_DIR/crash when the target dies.
 */
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAP 16384u          /* the target has some 700 edges */
#define INPUT_BYTES 65536u
#define MAX_CORPUS 20000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void __sanitizer_cov_trace_pc(void);
void __sanitizer_set_death_callback(void (*callback)(void));

typedef struct { uint8_t *at; uint32_t len; } input;

static uint8_t hits[MAP], ever[MAP];
static uintptr_t before;
static input corpus[MAX_CORPUS];
static uint32_t kept, found;
static uint8_t current[INPUT_BYTES];
static uint32_t current_len;
static char folder[4096];
static uint64_t rng_state;

void __sanitizer_cov_trace_pc(void)
{
    uintptr_t here = (uintptr_t)__builtin_return_address(0);
    uint8_t *hit = &hits[(here * 0x9E3779B1u >> 4 ^ before) % MAP];
    *hit += *hit < 255;
    before = here * 0x9E3779B1u >> 5;
}

static uint32_t draw(uint32_t below)         /* xorshift64*, by multiplication into the range */
{
    rng_state ^= rng_state >> 12;
    rng_state ^= rng_state << 25;
    rng_state ^= rng_state >> 27;
    return (uint32_t)((rng_state * 0x2545F4914F6CDD1Dull >> 32) * below >> 32);
}

static void write_input(const char *name, const uint8_t *data, uint32_t len)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (file) {
        fwrite(data, 1, len, file);
        fclose(file);
    }
}

static void on_death(void) { write_input("crash", current, current_len); }
static void on_abort(int signal_number) { (void)signal_number; on_death(); _Exit(1); }

static void keep(void)
{
    if (kept == MAX_CORPUS)
        return;
    corpus[kept].at = malloc(current_len + 1);
    memcpy(corpus[kept].at, current, current_len);
    corpus[kept++].len = current_len;
}

/* Run the current input; true if it reached an edge, or a count of one, never seen before. */
static int reaches_new(void)
{
    static const uint8_t class_of[9] = {0, 1, 2, 4, 8, 8, 8, 8, 16};
    int new = 0;
    memset(hits, 0, sizeof hits);
    before = 0;
    LLVMFuzzerTestOneInput(current, current_len);
    for (uint32_t i = 0; i < MAP; i++) {
        uint64_t eight;
        memcpy(&eight, hits + (i & ~7u), 8);
        if (!eight) {
            i |= 7;
            continue;
        }
        if (!hits[i])
            continue;
        uint8_t seen = hits[i] <= 8 ? class_of[hits[i]] : hits[i] < 32 ? 32 : hits[i] < 128 ? 64 : 128;
        if (seen & ~ever[i]) {
            found += !ever[i];
            ever[i] |= seen;
            new = 1;
        }
    }
    return new;
}

static uint32_t crc32c(const uint8_t *p, uint32_t n)
{
    static uint32_t table[256];
    for (uint32_t i = 0; !table[255] && i < 256; i++) {
        table[i] = i;
        for (int k = 0; k < 8; k++)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0x82F63B78u : 0);
    }
    uint32_t c = ~0u;
    while (n--)
        c = c >> 8 ^ table[(c ^ *p++) & 255];
    return ~c;
}

static void put32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }

/* Let a frame's last section end where the frame ends. */
static void refit_last(uint8_t *frame, uint32_t len)
{
    for (uint32_t at = 32; at + 4 <= len;) {
        uint32_t said = frame[at + 2] | frame[at + 3] << 8, left = len - at - 4;
        if (said >= left || left - said < 4)
            frame[at + 2] = (uint8_t)left, frame[at + 3] = (uint8_t)(left >> 8);
        at += 4 + said;
    }
}

/* Make a frame's length and checksums right, at times its last section's length first. */
static void refit(uint8_t *frame, uint32_t len)
{
    if (len < 32)
        return;
    if (draw(2))
        refit_last(frame, len);
    put32(frame + 4, len);
    put32(frame + 24, crc32c(frame + 32, len - 32));
    put32(frame + 28, crc32c(frame, 28));
}

static void refit_all(void)
{
    for (uint32_t at = 1; at + 2 <= current_len;) {
        uint32_t len = current[at] | current[at + 1] << 8;
        at += 2;
        len = len < current_len - at ? len : current_len - at;
        refit(current + at, len);
        at += len;
    }
}

static void overwrite(uint32_t at)
{
    static const uint64_t odd[] = {0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF,
                                   0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, ~0ull, 60, 900, 1440,
                                   1441, 4096, 4097};
    uint32_t width = 1u << draw(4);
    uint64_t value = odd[draw(sizeof odd / sizeof *odd)];
    if (at + width <= current_len)
        memcpy(current + at, &value, width);
}

/* Cut `n` bytes out at `at`, or open a hole of them; a frame's own length is mended half the time. */
static void resize(uint32_t at, uint32_t n, int grow)
{
    if (grow) {
        if (current_len + n > INPUT_BYTES)
            return;
        memmove(current + at + n, current + at, current_len - at);
        for (uint32_t i = 0; i < n; i++)
            current[at + i] = (uint8_t)draw(draw(2) ? 256 : 4);
        current_len += n;
    } else if (at + n <= current_len) {
        memmove(current + at, current + at + n, current_len - at - n);
        current_len -= n;
    }
    uint32_t first = current_len >= 3 ? current[1] | current[2] << 8 : 0;
    first = grow ? first + n : first - n;
    if (current_len >= 3 && draw(2))
        current[1] = (uint8_t)first, current[2] = (uint8_t)(first >> 8);
}

static void splice(void)
{
    const input *other = &corpus[draw(kept)];
    if (other->len < 2)
        return;
    uint32_t from = draw(other->len), n = 1 + draw(other->len - from);
    uint32_t at = draw(current_len);
    if (at + n > INPUT_BYTES)
        n = INPUT_BYTES - at;
    memcpy(current + at, other->at + from, n);
    current_len = at + n > current_len ? at + n : current_len;
}

static void mutate(void)
{
    const input *parent = &corpus[draw(kept)];
    memcpy(current, parent->at, parent->len);
    current_len = parent->len;
    for (uint32_t rounds = 1 + draw(draw(2) ? 3 : 12); rounds && current_len > 3; rounds--) {
        uint32_t at = draw(3) ? draw(current_len < 128 ? current_len : 128) : draw(current_len);
        switch (draw(8)) {
        case 0: case 1: current[at] ^= (uint8_t)(1u << draw(8)); break;
        case 2: current[at] = (uint8_t)draw(256); break;
        case 3: current[at] = (uint8_t)(current[at] + draw(9) - 4); break;
        case 4: overwrite(at); break;
        case 5: resize(at, 1 + draw(16), 1); break;
        case 6: resize(at, 1 + draw(16), 0); break;
        default: splice();
        }
    }
    if (draw(10))
        refit_all();
}

static void read_seeds(void)
{
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char path[4400];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        FILE *file = entry->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (!file)
            continue;
        current_len = (uint32_t)fread(current, 1, sizeof current, file);
        fclose(file);
        if (current_len && (reaches_new() || !kept))
            keep();
    }
    if (dir)
        closedir(dir);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    double seconds = atof(argv[1]);
    rng_state = strtoull(argv[2], NULL, 10) * 2 + 1;
    snprintf(folder, sizeof folder, "%s", argv[3]);
    __sanitizer_set_death_callback(on_death);
    signal(SIGABRT, on_abort);
    read_seeds();
    if (!kept)
        return 2;
    uint32_t seeds = kept, edges = found;
    uint64_t runs = 0;
    time_t end = time(NULL) + (time_t)seconds;
    while ((runs & 255) || time(NULL) < end) {
        mutate();
        runs++;
        if (reaches_new())
            keep();
    }
    for (uint32_t i = seeds; i < kept; i++) {
        char name[32];
        snprintf(name, sizeof name, "found-%05u", i - seeds);
        write_input(name, corpus[i].at, corpus[i].len);
    }
    printf("%llu %u %u %u\n", (unsigned long long)runs, edges, found - edges, kept - seeds);
    return 0;
}
