/* What the files of Waterfill's loops share: digits, models, words. See the Python
 * modules beside them, and those of codec/waterfill, for what each of it means. */
#ifndef SLFAC_CODING_H
#define SLFAC_CODING_H

#include "buffers.h"

/* See rans.py for these. */
enum { SCALE_BITS = 14, SCALE = 1 << SCALE_BITS, NUM_SYMBOLS = 256 };
#define LOWER_BOUND 65536u
/* See models.py for these. */
enum { CHANCE_BITS = 24, MOST_BUCKETS = 9 };
/* A byte of chance for each bucket, and one for the sign. */
enum { MOST_MODEL = 1 + MOST_BUCKETS };
extern const int bucket_ends[MOST_BUCKETS];

/* ------------------------------------------------------------------ compiled.c */

/* How values become symbols, see digits.py; checked by `digits_of`. */
typedef struct {
    int64_t limit, zero, base, num_symbols; /* num_symbols = base ** per_symbol */
    int per_symbol, is_signed;
} Digits;

typedef struct {
    uint8_t symbol_of[SCALE];
    uint32_t entry[NUM_SYMBOLS]; /* frequency, and above it where its slots begin */
} DecodeTable;

typedef struct {
    uint64_t reciprocal; /* of the frequency, rounded up, times 2**(32 + shift - 32) */
    uint32_t limit;      /* states from here on are renormalised first */
    uint16_t frequency, start;
    uint32_t shift;
} EncodeEntry;

typedef struct {
    const int64_t *midpoints, *chances;
    int num_midpoints, num_chances;
} Chances;

/* Of 0, as of 1, it is 0. */
static inline uint32_t floor_log2(uint32_t x)
{
#if defined(__GNUC__)
    return 31 - (uint32_t)__builtin_clz(x | 1);
#else
    uint32_t bits = 0;
    while (x >> bits > 1)
        bits++;
    return bits;
#endif
}

const char *digits_of(Digits *d, Py_ssize_t limit, Py_ssize_t per_symbol, int is_signed);
Py_ssize_t pack_int8_t(const Digits *, const int8_t *, Py_ssize_t, uint8_t *, Py_ssize_t);
Py_ssize_t pack_int16_t(const Digits *, const int16_t *, Py_ssize_t, uint8_t *, Py_ssize_t);
Py_ssize_t pack_int32_t(const Digits *, const int32_t *, Py_ssize_t, uint8_t *, Py_ssize_t);
Py_ssize_t pack_int64_t(const Digits *, const int64_t *, Py_ssize_t, uint8_t *, Py_ssize_t);
Py_ssize_t unpack_symbols(const Digits *d, const uint8_t *symbols, Py_ssize_t num,
                          int8_t *values, Py_ssize_t num_values);
void count_symbols(const uint8_t *symbols, Py_ssize_t num, int64_t *counts);
/* Writes at most MOST_MODEL bytes, and returns how many. */
int model_of(const Digits *d, const int64_t *counts, const Chances *chances,
             uint8_t *model);
void values_of_int8_t(const int8_t *, Py_ssize_t, float step, float taken, float *);
void values_of_int64_t(const int64_t *, Py_ssize_t, float step, float taken, float *);
void fill_decode_table(DecodeTable *table, const uint16_t *frequencies);
int decode_segment(const DecodeTable *table, uint32_t *states, Py_ssize_t num_lanes,
                   Py_ssize_t *lane, const uint8_t **next, const uint8_t *end,
                   uint8_t *out, Py_ssize_t count);
void fill_encode_table(EncodeEntry *table, const uint16_t *frequencies);
/* Codes symbols, last to first, on lanes down from `lane`; all have a frequency. */
uint8_t *encode_segment(const EncodeEntry *table, uint32_t *states, Py_ssize_t num_lanes,
                        Py_ssize_t *lane, uint8_t *next, const uint8_t *symbols,
                        Py_ssize_t count);

/* ------------------------------------------------------------------ words.c */

typedef struct {
    uint8_t *data;
    size_t size, room;
} Bytes;

/* Room for `more` bytes at the end, which then count; NULL without memory. */
uint8_t *extend(Bytes *bytes, size_t more);

typedef struct {
    size_t at; /* of its first symbol, in all of them */
    Py_ssize_t num;
    int64_t cost; /* of all, see `cost_of` */
    int begins;   /* whether a batch begins with it */
    uint16_t frequencies[NUM_SYMBOLS];
} Segment;

/* See waterfill/words.py, and stream_writer.py for the parameters. */
typedef struct {
    Bytes parameters, symbols, segments;
    Chances chances;
    int failed; /* for want of memory */
} Writer;

/* 1 where a model is one of such digits, and its frequencies are written; else 0. */
int frequencies_of(const Digits *d, const Chances *chances, const uint8_t *model,
                   Py_ssize_t size, uint16_t *frequencies);
void uniform_frequencies(int num_bits, uint16_t *frequencies);
/* A segment of `num` symbols, for the caller to fill in; NULL without memory. */
uint8_t *add_segment(Writer *w, Py_ssize_t num, int begins, int64_t cost,
                     const uint16_t *frequencies);
/* About the bits of a symbol of a frequency, and of counted symbols, in 256ths. */
int64_t cost_of(uint32_t f);
int64_t cost_of_counts(const int64_t *counts, const uint16_t *frequencies);
/* The words of all segments, at the end of `out`; 0 without memory. */
int write_words(Writer *w, Bytes *out);
void free_writer(Writer *w);

typedef struct {
    const uint8_t *parameters, *parameters_end, *words, *words_end;
    uint8_t *owned; /* words and states, once they are copies */
    uint32_t *states;
    Py_ssize_t num_lanes;
    int64_t left; /* symbols before the tail; -1 once there is none to come */
    Chances chances;
    const char *wrong;
} Reader;

/* What is wrong is told in the reader, of this and of all that follow. */
void open_words(Reader *r, Buffer words);
/* Reads a batch of `num` segments of counts[s] symbols each. */
void read_batch(Reader *r, int num, const int64_t *counts, const uint16_t *frequencies,
                uint8_t *out);
void close_words(Reader *r);
void free_reader(Reader *r);

extern const char no_memory[];
extern PyMethodDef waterfill_methods[];

#endif
