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

/* ------------------------------------------------------------------ segments */

/* Segments: counts[s] symbols each of frequencies[s]; NULL if they fit, else why not. */
static const char *check_segments(Buffer counts, Buffer frequencies, Py_ssize_t total)
{
    Py_ssize_t num = counts.size / 8;
    if (counts.size % 8 || frequencies.size != num * 2 * NUM_SYMBOLS ||
        (uintptr_t)frequencies.data % 2)
        return "counts and frequencies do not go together";
    Py_ssize_t left = total;
    for (Py_ssize_t s = 0; s < num; s++) {
        int64_t count;
        memcpy(&count, counts.data + 8 * s, 8);
        if (count < 0 || count > left)
            return "counts do not add up to the number of symbols";
        left -= (Py_ssize_t)count;
        uint32_t sum = 0;
        for (int i = 0; i < NUM_SYMBOLS; i++) {
            uint32_t f = load16(frequencies.data + 2 * (s * NUM_SYMBOLS + i));
            if (f >= SCALE)
                return "a frequency is out of range";
            sum += f;
        }
        if (sum != SCALE)
            return "frequencies do not add up";
    }
    return left ? "counts do not add up to the number of symbols" : NULL;
}

static const char *check_lanes(Buffer states)
{
    Py_ssize_t num = states.size / 4;
    return states.size % 4 || (uintptr_t)states.data % 4 || num < 1 ? "no lanes" : NULL;
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

PyDoc_STRVAR(decode_doc,
"rans_decode(states, counts, frequencies, words, start, out) -> int\n\n"
"See rans.decode in the module beside this one.");

static PyObject *rans_decode(PyObject *self, PyObject *args)
{
    PyObject *o[5];
    Py_ssize_t start;
    Buffer states, counts, frequencies, words, out;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOnO", &o[0], &o[1], &o[2], &o[3], &start, &o[4]) ||
        as_buffer(o[0], &states, 1) || as_buffer(o[1], &counts, 0) ||
        as_buffer(o[2], &frequencies, 0) || as_buffer(o[3], &words, 0) ||
        as_buffer(o[4], &out, 1))
        return NULL;
    const char *wrong = check_lanes(states);
    if (!wrong && (start < 0 || start > words.size))
        wrong = "the words begin outside of their buffer";
    int enough = 1;
    const uint8_t *next = words.data;
    Py_BEGIN_ALLOW_THREADS
    if (!wrong)
        wrong = check_segments(counts, frequencies, out.size);
    if (!wrong) {
        DecodeTable table;
        Py_ssize_t num_lanes = states.size / 4, lane = 0, num = counts.size / 8;
        uint8_t *to = out.data;
        next += start;
        for (Py_ssize_t s = 0; s < num && enough; s++) {
            int64_t count;
            memcpy(&count, counts.data + 8 * s, 8);
            fill_decode_table(&table, (uint16_t *)frequencies.data + NUM_SYMBOLS * s);
            enough = decode_segment(&table, (uint32_t *)states.data, num_lanes, &lane,
                                    &next, words.data + words.size, to,
                                    (Py_ssize_t)count);
            to += count;
        }
    }
    Py_END_ALLOW_THREADS
    if (wrong)
        return refuse(wrong);
    return enough ? PyLong_FromSsize_t(next - words.data) : PyLong_FromLong(-1);
}

/* ------------------------------------------------------------------ encode */

void fill_encode_table(EncodeEntry *table, const uint16_t *frequencies)
{
    uint32_t start = 0;
    for (int i = 0; i < NUM_SYMBOLS; i++) {
        uint32_t f = frequencies[i], bits = 0;
        EncodeEntry *e = table + i;
        e->frequency = (uint16_t)f;
        e->start = (uint16_t)start;
        start += f;
        if (!f)
            continue;
        while (f > 1u << bits)
            bits++;
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

PyDoc_STRVAR(encode_doc,
"rans_encode(states, counts, frequencies, symbols, words, end) -> int\n\n"
"See rans.encode in the module beside this one.");

static PyObject *rans_encode(PyObject *self, PyObject *args)
{
    PyObject *o[5];
    Py_ssize_t end;
    Buffer states, counts, frequencies, symbols, words;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOOn", &o[0], &o[1], &o[2], &o[3], &o[4], &end) ||
        as_buffer(o[0], &states, 1) || as_buffer(o[1], &counts, 0) ||
        as_buffer(o[2], &frequencies, 0) || as_buffer(o[3], &symbols, 0) ||
        as_buffer(o[4], &words, 1))
        return NULL;
    const char *wrong = check_lanes(states);
    /* A symbol makes a word at most; one more is written before it is kept. */
    if (!wrong && (end < 0 || end > words.size || end / 2 - 1 < symbols.size))
        wrong = "too little room for the words";
    Py_BEGIN_ALLOW_THREADS
    if (!wrong)
        wrong = check_segments(counts, frequencies, symbols.size);
    if (!wrong) {
        EncodeEntry table[NUM_SYMBOLS];
        uint32_t *state = (uint32_t *)states.data;
        Py_ssize_t num_lanes = states.size / 4, at = symbols.size;
        Py_ssize_t lane = at % num_lanes;
        uint8_t *next = words.data + end;
        for (Py_ssize_t s = counts.size / 8 - 1; s >= 0 && !wrong; s--) {
            int64_t count;
            memcpy(&count, counts.data + 8 * s, 8);
            fill_encode_table(table, (uint16_t *)frequencies.data + NUM_SYMBOLS * s);
            at -= (Py_ssize_t)count;
            for (Py_ssize_t i = 0; i < count && !wrong; i++)
                if (!table[symbols.data[at + i]].frequency)
                    wrong = "a symbol has no frequency";
            if (!wrong)
                next = encode_segment(table, state, num_lanes, &lane, next,
                                      symbols.data + at, (Py_ssize_t)count);
        }
        end = next - words.data;
    }
    Py_END_ALLOW_THREADS
    return wrong ? refuse(wrong) : PyLong_FromSsize_t(end);
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

static const char *check_symbols(const Digits *d, Py_ssize_t num_values, Py_ssize_t num)
{
    Py_ssize_t k = d->per_symbol;
    return num != num_values / k + (num_values % k != 0) ? "symbols do not fit" : NULL;
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

PyDoc_STRVAR(pack_digits_doc,
"pack_digits(values, itemsize, limit, per_symbol, is_signed, symbols, counts) -> int\n\n"
"Returns how many digits saturate.");

static PyObject *pack_digits(PyObject *self, PyObject *args)
{
    PyObject *o[3];
    Py_ssize_t size, limit, per_symbol, saturated = 0;
    int is_signed;
    Buffer values, symbols, counts;
    Digits d;
    (void)self;
    if (!PyArg_ParseTuple(args, "OnnnpOO", &o[0], &size, &limit, &per_symbol, &is_signed,
                          &o[1], &o[2]) ||
        as_buffer(o[0], &values, 0) || as_buffer(o[1], &symbols, 1) ||
        as_buffer(o[2], &counts, 1))
        return NULL;
    const char *wrong = digits_of(&d, limit, per_symbol, is_signed);
    if (!wrong && ((size != 1 && size != 2 && size != 4 && size != 8) ||
                   values.size % size || (uintptr_t)values.data % (size_t)size))
        wrong = "values are of no integer type";
    if (!wrong)
        wrong = check_symbols(&d, values.size / size, symbols.size);
    if (!wrong && (counts.size != 8 * NUM_SYMBOLS || (uintptr_t)counts.data % 8))
        wrong = "counts are not 256";
    if (wrong)
        return refuse(wrong);
    Py_BEGIN_ALLOW_THREADS
    Py_ssize_t n = values.size / size;
    const void *from = values.data;
    if (size == 1)
        saturated = pack_int8_t(&d, from, n, symbols.data, symbols.size);
    else if (size == 2)
        saturated = pack_int16_t(&d, from, n, symbols.data, symbols.size);
    else if (size == 4)
        saturated = pack_int32_t(&d, from, n, symbols.data, symbols.size);
    else
        saturated = pack_int64_t(&d, from, n, symbols.data, symbols.size);
    count_symbols(symbols.data, symbols.size, (int64_t *)counts.data);
    Py_END_ALLOW_THREADS
    return PyLong_FromSsize_t(saturated);
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
        for (int s = 0; s < NUM_SYMBOLS; s++)
            digit_of[s] = (int8_t)(s / unit % d->base - d->zero);
        Py_ssize_t left = num_values - j * num, some = left < num ? left : num;
        int8_t *to = values + (some > 0 ? j * num : 0);
        for (Py_ssize_t i = 0; i < some; i++)
            to[i] = digit_of[symbols[i]];
        for (Py_ssize_t i = 0; i < some; i++)
            saturated += (to[i] >= high) | (to[i] <= -high);
    }
    return saturated;
}

PyDoc_STRVAR(unpack_digits_doc,
"unpack_digits(symbols, limit, per_symbol, is_signed, values) -> int\n\n"
"Returns how many digits saturate.");

static PyObject *unpack_digits(PyObject *self, PyObject *args)
{
    PyObject *o[2];
    Py_ssize_t limit, per_symbol, saturated = 0;
    int is_signed;
    Buffer symbols, values;
    Digits d;
    (void)self;
    if (!PyArg_ParseTuple(args, "OnnpO", &o[0], &limit, &per_symbol, &is_signed, &o[1]) ||
        as_buffer(o[0], &symbols, 0) || as_buffer(o[1], &values, 1))
        return NULL;
    const char *wrong = digits_of(&d, limit, per_symbol, is_signed);
    if (!wrong)
        wrong = check_symbols(&d, values.size, symbols.size);
    if (wrong)
        return refuse(wrong);
    Py_BEGIN_ALLOW_THREADS
    saturated = unpack_symbols(&d, symbols.data, symbols.size, (int8_t *)values.data,
                               values.size);
    Py_END_ALLOW_THREADS
    return PyLong_FromSsize_t(saturated);
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
    int64_t negative = 0;
    for (int64_t s = 0; s < d->num_symbols; s++) {
        int64_t rest = s;
        for (int j = 0; counts[s] && j < d->per_symbol; j++, rest /= d->base) {
            int64_t digit = rest % d->base - d->zero;
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

PyDoc_STRVAR(fit_model_doc,
"fit_model(counts, limit, per_symbol, is_signed, midpoints) -> bytes\n\n"
"See models.fit in the module beside this one.");

static PyObject *fit_model(PyObject *self, PyObject *args)
{
    PyObject *o[2];
    Py_ssize_t limit, per_symbol;
    int is_signed;
    Buffer counts, midpoints;
    Digits d;
    (void)self;
    if (!PyArg_ParseTuple(args, "OnnpO", &o[0], &limit, &per_symbol, &is_signed, &o[1]) ||
        as_buffer(o[0], &counts, 0) || as_buffer(o[1], &midpoints, 0))
        return NULL;
    const char *wrong = digits_of(&d, limit, per_symbol, is_signed);
    if (!wrong && (!holds(counts, NUM_SYMBOLS, 8) || midpoints.size > 255 * 8 ||
                   !holds(midpoints, midpoints.size / 8, 8)))
        wrong = "counts or midpoints have another size";
    /* All digits, times a chance of 1, stay within 64 bits. */
    int64_t left = (int64_t)1 << 36;
    for (int s = 0; !wrong && s < NUM_SYMBOLS; s++) {
        int64_t count = ((int64_t *)counts.data)[s];
        if (count < 0 || count > left)
            wrong = "symbols occur too often";
        left -= wrong ? 0 : count;
    }
    if (wrong)
        return refuse(wrong);
    Chances chances = {(int64_t *)midpoints.data, NULL, (int)(midpoints.size / 8), 0};
    uint8_t model[MOST_MODEL];
    int size = model_of(&d, (int64_t *)counts.data, &chances, model);
    return PyBytes_FromStringAndSize((char *)model, size);
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

PyDoc_STRVAR(to_values_doc,
"to_values(levels, itemsize, step, taken, out)\n\n"
"See models.to_values in the module beside this one.");

static PyObject *to_values(PyObject *self, PyObject *args)
{
    PyObject *o[2];
    Py_ssize_t size;
    double step, taken;
    Buffer levels, out;
    (void)self;
    if (!PyArg_ParseTuple(args, "OnddO", &o[0], &size, &step, &taken, &o[1]) ||
        as_buffer(o[0], &levels, 0) || as_buffer(o[1], &out, 1))
        return NULL;
    Py_ssize_t num = out.size / 4;
    if ((size != 1 && size != 8) || !holds(levels, num, size) || !holds(out, num, 4))
        return refuse("levels and values do not go together");
    Py_BEGIN_ALLOW_THREADS
    if (size == 1)
        values_of_int8_t((int8_t *)levels.data, num, (float)step, (float)taken,
                         (float *)out.data);
    else
        values_of_int64_t((int64_t *)levels.data, num, (float)step, (float)taken,
                          (float *)out.data);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ classes */

typedef struct {
    const int64_t *order, *rows, *starts, *runs;
    Py_ssize_t num_rows, num_runs, num_columns;
    int64_t offset, num_classes;
} Grid;

enum { MOST_CLASSES = 256 };

static int64_t class_of(const Grid *g, Py_ssize_t row, Py_ssize_t run)
{
    int64_t c = g->rows[row] + g->runs[run] + g->offset;
    c = c < 0 ? 0 : c / 2;
    return c < g->num_classes ? c : g->num_classes - 1;
}

/* Parses (order, rows, starts, runs, offset, classes) and checks them. */
static const char *grid_of(Grid *g, Buffer *b, Py_ssize_t offset, Py_ssize_t classes)
{
    for (int i = 0; i < 4; i++)
        if (b[i].size % 8 || (uintptr_t)b[i].data % 8)
            return "the grid is not of integers of 64 bits";
    *g = (Grid){(int64_t *)b[0].data, (int64_t *)b[1].data, (int64_t *)b[2].data,
                (int64_t *)b[3].data, b[0].size / 8, b[3].size / 8, 0, offset, classes};
    if (b[1].size != b[0].size || b[2].size != b[3].size + 8 || classes < 1 ||
        classes > MOST_CLASSES || g->starts[0] != 0)
        return "rows and runs of the grid do not go together";
    for (Py_ssize_t i = 0; i < g->num_runs; i++)
        if (g->starts[i + 1] < g->starts[i])
            return "runs of the grid are not in order";
    for (Py_ssize_t i = 0; i < g->num_rows; i++)
        if (g->order[i] < 0 || g->order[i] >= g->num_rows)
            return "a row of the grid is out of range";
    g->num_columns = (Py_ssize_t)g->starts[g->num_runs];
    return NULL;
}

static PyObject *move_classes(PyObject *args, int joins)
{
    PyObject *o[6];
    Py_ssize_t offset, classes, size;
    Buffer from, to, b[4];
    if (!PyArg_ParseTuple(args, "OnOOOOnnO", &o[0], &size, &o[1], &o[2], &o[3], &o[4],
                          &offset, &classes, &o[5]) ||
        as_buffer(o[0], &from, 0) || as_buffer(o[5], &to, 1))
        return NULL;
    for (int i = 0; i < 4; i++)
        if (as_buffer(o[i + 1], b + i, 0))
            return NULL;
    Grid g;
    const char *wrong = grid_of(&g, b, offset, classes);
    if (!wrong && (size < 1 || size > 8 || from.size != to.size ||
                   (g.num_columns && to.size / size / g.num_columns != g.num_rows) ||
                   to.size != g.num_rows * g.num_columns * size))
        wrong = "the matrix does not fit the grid";
    if (wrong)
        return refuse(wrong);
    Py_BEGIN_ALLOW_THREADS
    Py_ssize_t at[MOST_CLASSES + 1] = {0};
    for (Py_ssize_t i = 0; i < g.num_rows; i++)
        for (Py_ssize_t j = 0; j < g.num_runs; j++)
            at[class_of(&g, i, j) + 1] += (g.starts[j + 1] - g.starts[j]) * size;
    for (Py_ssize_t c = 0; c < classes; c++)
        at[c + 1] += at[c];
    for (Py_ssize_t i = 0; i < g.num_rows; i++) {
        Py_ssize_t line = g.order[i] * g.num_columns * size;
        for (Py_ssize_t j = 0; j < g.num_runs; j++) {
            Py_ssize_t *place = at + class_of(&g, i, j);
            Py_ssize_t num = (g.starts[j + 1] - g.starts[j]) * size;
            Py_ssize_t cell = line + g.starts[j] * size;
            if (joins)
                memcpy(to.data + cell, from.data + *place, (size_t)num);
            else
                memcpy(to.data + *place, from.data + cell, (size_t)num);
            *place += num;
        }
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(split_doc,
"split(matrix, itemsize, order, rows, starts, runs, offset, classes, out)\n\n"
"See classes.split in the module beside this one.");

static PyObject *split(PyObject *self, PyObject *args)
{
    (void)self;
    return move_classes(args, 0);
}

PyDoc_STRVAR(join_doc,
"join(values, itemsize, order, rows, starts, runs, offset, classes, out)\n\n"
"See classes.join in the module beside this one.");

static PyObject *join(PyObject *self, PyObject *args)
{
    (void)self;
    return move_classes(args, 1);
}

/* ------------------------------------------------------------------ module */

static PyMethodDef methods[] = {
    {"fit_model", fit_model, METH_VARARGS, fit_model_doc},
    {"join", join, METH_VARARGS, join_doc},
    {"pack_digits", pack_digits, METH_VARARGS, pack_digits_doc},
    {"rans_decode", rans_decode, METH_VARARGS, decode_doc},
    {"rans_encode", rans_encode, METH_VARARGS, encode_doc},
    {"split", split, METH_VARARGS, split_doc},
    {"to_values", to_values, METH_VARARGS, to_values_doc},
    {"unpack_digits", unpack_digits, METH_VARARGS, unpack_digits_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "compiled", "The inner loops of the codecs, compiled.", 0,
    methods, NULL, NULL, NULL, NULL,
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
