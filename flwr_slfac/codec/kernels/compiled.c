/* The inner loops of the codecs. Each has a reference in NumPy beside it, which gives
 * the same bytes; all of them let go of the interpreter's lock, and none reads or writes
 * outside of the buffers that it is handed, whatever is in them.
 */
#include "coding.h"

static inline uint32_t load16(const uint8_t *p)
{
    uint16_t word;
    memcpy(&word, p, 2);
    return word;
}

static inline void store16(uint8_t *p, uint32_t value)
{
    uint16_t word = (uint16_t)value;
    memcpy(p, &word, 2);
}

/* ------------------------------------------------------------------ decode */

void fill_decode_table(DecodeTable *table, const uint16_t *frequencies)
{
    uint32_t start = 0;
    for (int i = 0; i < NUM_SYMBOLS; i++) {
        uint32_t f = frequencies[i];
        table->entry[i] = f | start << 16;
        memset(table->symbol_of + start, i, f);
        start += f;
    }
}

static inline uint32_t decode_one(const DecodeTable *table, uint32_t x, uint8_t *symbol)
{
    uint32_t slot = x & (SCALE - 1);
    uint32_t s = table->symbol_of[slot], e = table->entry[s];
    *symbol = (uint8_t)s;
    return (e & 0xffff) * (x >> SCALE_BITS) + slot - (e >> 16);
}

/* Decodes `count` symbols on lanes from `lane` on. Returns 0 where words run out. */
int decode_segment(const DecodeTable *restrict table, uint32_t *restrict states,
                   Py_ssize_t num_lanes, Py_ssize_t *lane, const uint8_t **next,
                   const uint8_t *end, uint8_t *restrict out, Py_ssize_t count)
{
    const uint8_t *words = *next;
    while (count) {
        Py_ssize_t room = num_lanes - *lane, num = count < room ? count : room;
        uint32_t *state = states + *lane;
        if ((end - words) / 2 >= num) {
            for (Py_ssize_t i = 0; i < num; i++) {
                uint32_t x = decode_one(table, state[i], out + i);
                uint32_t need = x < LOWER_BOUND;
                /* By arithmetic: a branch would be mispredicted too often. */
                state[i] = x << (need << 4) | (load16(words) & (0 - need));
                words += 2 * need;
            }
        } else {
            for (Py_ssize_t i = 0; i < num; i++) {
                uint32_t x = decode_one(table, state[i], out + i);
                if (x < LOWER_BOUND) {
                    if (end - words < 2)
                        return 0;
                    x = x << 16 | load16(words);
                    words += 2;
                }
                state[i] = x;
            }
        }
        out += num;
        count -= num;
        *lane = num == room ? 0 : *lane + num;
    }
    *next = words;
    return 1;
}

/* ------------------------------------------------------------------ encode */

void fill_encode_table(EncodeEntry *table, const uint16_t *frequencies)
{
    uint32_t start = 0;
    for (int i = 0; i < NUM_SYMBOLS; i++) {
        uint32_t f = frequencies[i];
        EncodeEntry *e = table + i;
        e->frequency = (uint16_t)f;
        e->start = (uint16_t)start;
        start += f;
        if (!f)
            continue;
        uint32_t bits = f > 1 ? floor_log2(f - 1) + 1 : 0;
        /* Exact for states below the limit: they are under 2**32, and the product
         * under 2**64. */
        e->shift = 32 + bits;
        e->reciprocal = (((uint64_t)1 << e->shift) + f - 1) / f;
        e->limit = f << (32 - SCALE_BITS);
    }
}

uint8_t *encode_segment(const EncodeEntry *restrict table, uint32_t *restrict states,
                        Py_ssize_t num_lanes, Py_ssize_t *lane, uint8_t *restrict next,
                        const uint8_t *restrict symbols, Py_ssize_t count)
{
    while (count) {
        *lane = *lane ? *lane : num_lanes;
        Py_ssize_t num = count < *lane ? count : *lane;
        const uint8_t *symbol = symbols + count - num;
        uint32_t *state = states + *lane - num;
        for (Py_ssize_t i = num - 1; i >= 0; i--) {
            const EncodeEntry *e = table + symbol[i];
            uint32_t x = state[i], full = x >= e->limit;
            store16(next - 2, x);
            next -= 2 * full;
            x >>= 16 * full;
            uint32_t q = (uint32_t)((x * e->reciprocal) >> e->shift);
            state[i] = (q << SCALE_BITS) + (x - q * e->frequency) + e->start;
        }
        count -= num;
        *lane -= num;
    }
    return next;
}

/* ------------------------------------------------------------------ digits */

const char *digits_of(Digits *d, Py_ssize_t limit, Py_ssize_t per_symbol, int is_signed)
{
    if (limit < 1 || limit > 127 || per_symbol < 1 || per_symbol > 8)
        return "digits are out of range";
    d->limit = limit;
    d->zero = is_signed ? limit : 0;
    d->base = d->zero + limit + 1;
    d->per_symbol = (int)per_symbol;
    d->is_signed = is_signed;
    d->num_symbols = 1;
    for (int j = 0; j < d->per_symbol; j++)
        d->num_symbols *= d->base;
    return d->num_symbols > NUM_SYMBOLS ? "too many symbols" : NULL;
}

#define PACK(type)                                                                      \
    Py_ssize_t pack_##type(const Digits *d, const type *values, Py_ssize_t n,           \
                           uint8_t *restrict symbols, Py_ssize_t num)                   \
    {                                                                                   \
        const type low = (type)-d->zero, high = (type)d->limit;                         \
        const uint8_t base = (uint8_t)d->base, zero = (uint8_t)d->zero;                 \
        Py_ssize_t saturated = 0;                                                       \
        memset(symbols, 0, (size_t)num);                                                \
        for (int j = 0; j < d->per_symbol; j++) {                                       \
            Py_ssize_t left = n - j * num, some = left < num ? left : num;              \
            const type *from = some > 0 ? values + j * num : values;                    \
            for (Py_ssize_t i = 0; i < some; i++) {                                     \
                type v = from[i] < low ? low : from[i] > high ? high : from[i];         \
                saturated += (v >= high) | (v <= (type)-high);                          \
                symbols[i] = (uint8_t)(symbols[i] * base + (uint8_t)(v + zero));        \
            }                                                                           \
            for (Py_ssize_t i = some < 0 ? 0 : some; i < num; i++)                      \
                symbols[i] = (uint8_t)(symbols[i] * base + zero);                       \
        }                                                                               \
        return saturated;                                                               \
    }
PACK(int8_t)
PACK(int16_t)
PACK(int32_t)
PACK(int64_t)

void count_symbols(const uint8_t *symbols, Py_ssize_t num, int64_t *counts)
{
    uint32_t tables[4][NUM_SYMBOLS];
    memset(counts, 0, NUM_SYMBOLS * sizeof *counts);
    while (num) {
        /* Four tables, so that equal neighbours do not wait for each other. */
        Py_ssize_t some = num < 1 << 30 ? num : 1 << 30, i = 0;
        memset(tables, 0, sizeof tables);
        for (; i + 4 <= some; i += 4)
            for (int t = 0; t < 4; t++)
                tables[t][symbols[i + t]]++;
        for (; i < some; i++)
            tables[0][symbols[i]]++;
        for (int s = 0; s < NUM_SYMBOLS; s++)
            counts[s] += (int64_t)tables[0][s] + tables[1][s] + tables[2][s] + tables[3][s];
        symbols += some;
        num -= some;
    }
}

/* The digit of each symbol that counts `unit`. */
static void digits_at(const Digits *d, int64_t unit, int8_t *digit_of)
{
    int64_t digit = 0, left = unit;
    for (int s = 0; s < NUM_SYMBOLS; s++) {
        digit_of[s] = (int8_t)(digit - d->zero);
        if (--left == 0) {
            left = unit;
            digit = digit + 1 < d->base ? digit + 1 : 0;
        }
    }
}

Py_ssize_t unpack_symbols(const Digits *d, const uint8_t *symbols, Py_ssize_t num,
                          int8_t *values, Py_ssize_t num_values)
{
    Py_ssize_t saturated = 0;
    int64_t unit = d->num_symbols;
    const int8_t high = (int8_t)d->limit;
    for (int j = 0; j < d->per_symbol; j++) {
        int8_t digit_of[NUM_SYMBOLS];
        unit /= d->base;
        digits_at(d, unit, digit_of);
        Py_ssize_t left = num_values - j * num, some = left < num ? left : num;
        int8_t *to = values + (some > 0 ? j * num : 0);
        for (Py_ssize_t i = 0; i < some; i++)
            to[i] = digit_of[symbols[i]];
        for (Py_ssize_t i = 0; i < some; i++)
            saturated += (to[i] >= high) | (to[i] <= -high);
    }
    return saturated;
}

/* ------------------------------------------------------------------ models */

const int bucket_ends[MOST_BUCKETS] = {0, 1, 2, 4, 8, 16, 32, 64, 126};

/* The byte whose chance is nearest to stops / reaches. */
static uint8_t nearest(int64_t stops, int64_t reaches, const int64_t *midpoints, int num)
{
    int64_t chance = stops * ((int64_t)1 << CHANCE_BITS) / (reaches > 1 ? reaches : 1);
    int low = 0, high = num;
    while (low < high) {
        int middle = (low + high) / 2;
        if (midpoints[middle] < chance)
            low = middle + 1;
        else
            high = middle;
    }
    return (uint8_t)low;
}

/* How often each magnitude occurs, and the sum of those below zero. */
static int64_t count_magnitudes(const Digits *d, const int64_t *counts, int64_t *stops)
{
    int64_t negative = 0, unit = 1;
    for (int j = 0; j < d->per_symbol; j++, unit *= d->base) {
        int8_t digit_of[NUM_SYMBOLS];
        digits_at(d, unit, digit_of);
        for (int64_t s = 0; s < d->num_symbols; s++) {
            int digit = digit_of[s];
            stops[digit < 0 ? -digit : digit] += counts[s];
            negative += digit < 0 ? counts[s] : 0;
        }
    }
    return negative;
}

int model_of(const Digits *d, const int64_t *counts, const Chances *chances,
             uint8_t *model)
{
    int64_t stops[128] = {0}, reach[129] = {0};
    int64_t negative = count_magnitudes(d, counts, stops);
    int largest = -1, start = 0, size = 0, limit = (int)d->limit;
    for (int m = limit; m >= 0; m--) {
        reach[m] = reach[m + 1] + stops[m];
        largest = largest < 0 && stops[m] ? m : largest;
    }
    const int64_t *between = chances->midpoints;
    if (d->is_signed)
        model[size++] = nearest(negative, reach[1], between, chances->num_midpoints);
    for (int i = 0; i < MOST_BUCKETS; i++) {
        int stop = bucket_ends[i] + 1 < limit ? bucket_ends[i] + 1 : limit;
        if (start >= stop || start > largest)
            break;
        int64_t stopped = 0, reached = 0;
        for (; start < stop; start++) {
            stopped += stops[start];
            reached += reach[start];
        }
        model[size++] = nearest(stopped, reached, between, chances->num_midpoints);
    }
    return size;
}

#define TO_VALUES(type)                                                                 \
    FOR_AVX2_TOO                                                                        \
    void values_of_##type(const type *restrict levels, Py_ssize_t num, float step,      \
                          float taken, float *restrict out)                             \
    {                                                                                   \
        for (Py_ssize_t i = 0; i < num; i++) {                                          \
            type level = levels[i];                                                     \
            int sign = (level > 0) - (level < 0);                                       \
            out[i] = (float)level * step - (float)sign * taken;                         \
        }                                                                               \
    }
TO_VALUES(int8_t)
TO_VALUES(int64_t)

/* ------------------------------------------------------------------ module */

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "compiled", "The inner loops of the codecs, compiled.", 0,
    NULL, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_compiled(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made && (PyModule_AddFunctions(made, fit_methods) ||
                 PyModule_AddFunctions(made, planes_methods) ||
                 PyModule_AddFunctions(made, spectra_methods) ||
                 PyModule_AddFunctions(made, waterfill_methods) ||
                 PyModule_AddFunctions(made, trellis_methods) ||
                 PyModule_AddFunctions(made, trial_methods))) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
