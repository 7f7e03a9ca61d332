/* Quantize the coefficients of a Waterfill frame, code all of its streams, and back,
 * each in one call. The reference is the Python in codec/waterfill: `quantize.levels_of`,
 * `stream_writer`, `stream_reader` and `energies`.
 */
#include "coding.h"

#include <stdlib.h>

/* Limits of the format, see energies.py, streams.py and sample.py. */
enum { NUM_CLASSES = 60, MOST_ENERGY = 1000, FEW_MODELS = 8, HALF = 127, LENGTH_BITS = 6,
       HALF_EXCESS_BITS = 20, MOST_EXCESS_BITS = 40, CENTROID_UNIT = 128 };
/* 1.5 * 2**23: a float32 sum with it is rounded to a whole number, halves to even. */
static const float ROUNDER = 12582912.0f;

/* ------------------------------------------------------------------ classes */

/* Where the coefficients of each class are in the matrix (S, R), see classes.py. */
typedef struct {
    Py_ssize_t num_rows, num_columns, num_runs;
    int64_t *rows, *planes;     /* by energy, descending: (S,), (R,) */
    int64_t *starts;            /* of runs of planes of one energy, and their end */
    int16_t *of_row, *of_run;   /* half units of energy */
    int64_t offset;
    int64_t counts[NUM_CLASSES];
    void *owned;
} Classes;

typedef struct {
    Buffer samples, channels, frequencies, groups;
    Py_ssize_t offset;
} Energies;

static int class_of(const Classes *c, Py_ssize_t row, Py_ssize_t run)
{
    int64_t energy = (int64_t)c->of_row[row] + c->of_run[run] + c->offset;
    energy = energy < 0 ? 0 : energy / 2;
    return (int)(energy < NUM_CLASSES ? energy : NUM_CLASSES - 1);
}

/* Orders items by energy, descending and stable. */
static void sort_down(const int16_t *energies, Py_ssize_t num, int64_t *order)
{
    enum { MOST = 2 * MOST_ENERGY };
    Py_ssize_t at[2 * MOST + 2] = {0};
    for (Py_ssize_t i = 0; i < num; i++)
        at[MOST - energies[i] + 1]++;
    for (int i = 0; i <= 2 * MOST; i++)
        at[i + 1] += at[i];
    for (Py_ssize_t i = 0; i < num; i++)
        order[at[MOST - energies[i]]++] = i;
}

/* Room for the classes of a matrix; 0 without memory. */
static int allocate_classes(Classes *c, Py_ssize_t num_rows, Py_ssize_t num_columns)
{
    size_t rows = (size_t)num_rows, columns = (size_t)num_columns;
    size_t wide = rows + 2 * columns + 1, narrow = 2 * (rows + columns) + columns;
    char *memory = malloc(8 * wide + 2 * narrow);
    c->owned = memory;
    if (!memory)
        return 0;
    c->num_rows = num_rows;
    c->num_columns = num_columns;
    c->rows = (int64_t *)memory;
    c->planes = c->rows + rows;
    c->starts = c->planes + columns;
    c->of_row = (int16_t *)(c->starts + columns + 1);
    c->of_run = c->of_row + rows;
    return 1;
}

/* NULL once all is known of the classes, else why not. */
static const char *find_classes(Classes *c, const int64_t *a, Py_ssize_t num_samples,
                                const int64_t *u, Py_ssize_t num_channels,
                                const int64_t *v, Py_ssize_t num_groups,
                                const int64_t *groups, Py_ssize_t offset)
{
    const int64_t *lists[] = {a, u, v};
    const Py_ssize_t sizes[] = {num_samples, num_channels, num_groups};
    for (int i = 0; i < 3; i++)
        for (Py_ssize_t j = 0; j < sizes[i]; j++)
            if (lists[i][j] < -MOST_ENERGY || lists[i][j] > MOST_ENERGY)
                return "a scale of codec 'waterfill' is out of range";
    /* Those that are not in order yet, behind what will be. */
    int16_t *rows = c->of_run + c->num_columns, *planes = rows + c->num_rows;
    for (Py_ssize_t i = 0; i < c->num_rows; i++) {
        if (groups[i] < 0 || groups[i] >= num_groups)
            return "a frequency is of no group";
        rows[i] = (int16_t)v[groups[i]];
    }
    for (Py_ssize_t n = 0; n < num_samples; n++)
        for (Py_ssize_t k = 0; k < num_channels; k++)
            planes[n * num_channels + k] = (int16_t)(a[n] + u[k]);
    sort_down(rows, c->num_rows, c->rows);
    sort_down(planes, c->num_columns, c->planes);
    c->offset = offset;
    c->num_runs = 0;
    for (Py_ssize_t i = 0; i < c->num_rows; i++)
        c->of_row[i] = rows[c->rows[i]];
    for (Py_ssize_t i = 0; i < c->num_columns; i++) {
        int16_t energy = planes[c->planes[i]];
        if (i && energy == c->of_run[c->num_runs - 1])
            continue;
        c->starts[c->num_runs] = i;
        c->of_run[c->num_runs++] = energy;
    }
    c->starts[c->num_runs] = c->num_columns;
    memset(c->counts, 0, sizeof c->counts);
    for (Py_ssize_t i = 0; i < c->num_rows; i++)
        for (Py_ssize_t j = 0; j < c->num_runs; j++)
            c->counts[class_of(c, i, j)] += c->starts[j + 1] - c->starts[j];
    return NULL;
}

/* Parses (samples, channels, frequencies, groups, offset) and finds the classes. */
static const char *classes_of(Classes *c, const Energies *e, Py_ssize_t num_values)
{
    Py_ssize_t n = e->samples.size / 8, r = e->channels.size / 8;
    Py_ssize_t g = e->frequencies.size / 8, s = e->groups.size / 8;
    if (!holds(e->samples, n, 8) || !holds(e->channels, r, 8) || !holds(e->groups, s, 8) ||
        !holds(e->frequencies, g, 8) || n < 1 || r < 1 || s < 1 ||
        num_values / s / r != n || num_values != n * r * s)
        return "energies and coefficients do not go together";
    if (!allocate_classes(c, s, n * r))
        return no_memory;
    return find_classes(c, (int64_t *)e->samples.data, n, (int64_t *)e->channels.data, r,
                        (int64_t *)e->frequencies.data, g, (int64_t *)e->groups.data,
                        e->offset);
}

/* The end of the run of columns from run j on that are of its class, in a row. */
static Py_ssize_t alike(const Classes *c, Py_ssize_t row, Py_ssize_t j, int number)
{
    for (j++; j < c->num_runs && class_of(c, row, j) == number; j++)
        continue;
    return j;
}

/* ------------------------------------------------------------------ quantize */

/* Sums of one class: what is not zero, and errors along signs and squared, the errors
 * in 1024ths of a step. Integers, so that their order does not matter. */
typedef struct {
    int64_t num, along, squares;
} Errors;

/* Few enough that sums of squares of errors, at most 0.6 of a step, stay in 32 bits. */
enum { FEW = 4096 };

/* Levels of 32 bits, as narrower ones would have short runs done one by one. */
FOR_AVX2_TOO
static void quantize_few(const float *restrict x, Py_ssize_t num, float inverse,
                         int32_t *restrict levels, Errors *restrict sums)
{
    int32_t count = 0, along = 0;
    uint32_t squares = 0;
    for (Py_ssize_t i = 0; i < num; i++) {
        float scaled = x[i] * inverse, off = scaled < 0.1f ? scaled : 0.1f;
        off = off > -0.1f ? off : -0.1f;
        float level = (scaled - off + ROUNDER) - ROUNDER;
        float fine = (level - scaled) * 1024.0f;
        int32_t error = (int32_t)((fine + ROUNDER) - ROUNDER);
        int32_t whole = (int32_t)level, sign = (whole > 0) - (whole < 0);
        levels[i] = whole;
        count += whole != 0;
        along += sign * error;
        squares += (uint32_t)(error * error);
    }
    sums->num += count;
    sums->along += along;
    sums->squares += squares;
}

FOR_AVX2_TOO
static void narrow_row(const int32_t *restrict levels, Py_ssize_t num, Py_ssize_t size,
                       char *restrict out)
{
    if (size == 4)
        memcpy(out, levels, (size_t)num * sizeof *levels);
    else if (size == 2)
        for (Py_ssize_t i = 0; i < num; i++)
            ((int16_t *)out)[i] = (int16_t)levels[i];
    else
        for (Py_ssize_t i = 0; i < num; i++)
            ((int8_t *)out)[i] = (int8_t)levels[i];
}

/* A row of coefficients; `room` is for its levels. */
static void quantize_row(const Classes *c, Py_ssize_t row, const float *x, float inverse,
                         int32_t *room, Py_ssize_t size, char *levels, Errors *found)
{
    Py_ssize_t stop;
    for (Py_ssize_t j = 0; j < c->num_runs; j = stop) {
        int number = class_of(c, row, j);
        stop = alike(c, row, j, number);
        for (Py_ssize_t i = c->starts[j]; i < c->starts[stop]; i += FEW) {
            Py_ssize_t left = (Py_ssize_t)c->starts[stop] - i;
            quantize_few(x + i, left < FEW ? left : FEW, inverse, room + i,
                         found + number);
        }
    }
    narrow_row(room, c->num_columns, size, levels);
}

PyDoc_STRVAR(quantize_doc,
"quantize(coefficients, samples, channels, frequencies, groups, offset, inverse, levels, "
"itemsize, sums)\n\nSee quantize.levels_of in codec/waterfill.");

static PyObject *quantize(PyObject *self, PyObject *args)
{
    PyObject *o[7];
    Py_ssize_t size;
    double inverse;
    Buffer x, levels, sums;
    Energies e;
    Classes c = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOOndOnO", &o[0], &o[1], &o[2], &o[3], &o[4], &e.offset,
                          &inverse, &o[5], &size, &o[6]) ||
        as_buffer(o[0], &x, 0) || as_buffer(o[1], &e.samples, 0) ||
        as_buffer(o[2], &e.channels, 0) || as_buffer(o[3], &e.frequencies, 0) ||
        as_buffer(o[4], &e.groups, 0) || as_buffer(o[5], &levels, 1) ||
        as_buffer(o[6], &sums, 1))
        return NULL;
    Py_ssize_t num = x.size / 4;
    const char *wrong = NULL;
    int32_t *room = NULL;
    if ((size != 1 && size != 2 && size != 4) || !holds(x, num, 4) ||
        !holds(levels, num, size) || !holds(sums, 3 * NUM_CLASSES, 8))
        return refuse("coefficients and levels do not go together");
    Py_BEGIN_ALLOW_THREADS
    wrong = classes_of(&c, &e, num);
    if (!wrong && (room = malloc((size_t)c.num_columns * sizeof *room))) {
        Errors found[NUM_CLASSES] = {{0, 0, 0}};
        for (Py_ssize_t i = 0; i < c.num_rows; i++) {
            Py_ssize_t line = c.rows[i] * c.num_columns;
            quantize_row(&c, i, (float *)x.data + line, (float)inverse, room, size,
                         (char *)levels.data + line * size, found);
        }
        memcpy(sums.data, found, sizeof found);
    }
    free(room);
    free(c.owned);
    Py_END_ALLOW_THREADS
    if (wrong == no_memory || (!wrong && !room))
        return PyErr_NoMemory();
    if (wrong)
        return refuse(wrong);
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ kinds */

/* How the coefficients of a class become symbols, see class_values.py. */
typedef struct {
    Digits digits;
    int low_bits;
} Kind;

/* As the lists of parameters, and what is left of saturated digits: see digits.py. */
static const Digits large = {127, 127, 255, 255, 1, 1};
static const Digits excess_digits = {15, 0, 16, 16, 1, 0};

static const char *kinds_of(Kind *kinds, Buffer table, Buffer midpoints, Buffer chances,
                            Chances *found)
{
    if (!holds(table, 3 * NUM_CLASSES, 8) || !holds(midpoints, midpoints.size / 8, 8) ||
        midpoints.size > 255 * 8 || !holds(chances, midpoints.size / 8 + 1, 8))
        return "kinds or chances have another size";
    *found = (Chances){(int64_t *)midpoints.data, (int64_t *)chances.data,
                       (int)(midpoints.size / 8), (int)(chances.size / 8)};
    for (int i = 0; i < found->num_chances; i++)
        if (found->chances[i] < 0 || found->chances[i] > 1 << CHANCE_BITS)
            return "a chance is out of range";
    for (int i = 0; i < NUM_CLASSES; i++) {
        const int64_t *row = (int64_t *)table.data + 3 * i;
        if (row[2] < 0 || row[2] > 22)
            return "low bits are out of range";
        kinds[i].low_bits = (int)row[2];
        const char *wrong = digits_of(&kinds[i].digits, (Py_ssize_t)row[0],
                                      (Py_ssize_t)row[1], 1);
        if (wrong)
            return wrong;
    }
    return NULL;
}

static int is_same(const Digits *a, const Digits *b)
{
    return a->limit == b->limit && a->per_symbol == b->per_symbol;
}

static Py_ssize_t num_symbols_of(const Digits *d, Py_ssize_t num)
{
    return num / d->per_symbol + (num % d->per_symbol != 0);
}

/* ------------------------------------------------------------------ write */

static void add_parameter(Writer *w, const uint8_t *data, int size)
{
    uint8_t *place = extend(&w->parameters, (size_t)size);
    if (place)
        memcpy(place, data, (size_t)size);
    else
        w->failed = 1;
}

/* Adds a model with its length before it. */
static void add_model(Writer *w, const uint8_t *model, int size)
{
    uint8_t length = (uint8_t)size;
    add_parameter(w, &length, 1);
    if (size)
        add_parameter(w, model, size);
}

/* The model of symbols, 0 bytes where all of them are zeros; and their counts. */
static int model_symbols(const Writer *w, const Digits *d, const uint8_t *symbols,
                         Py_ssize_t num, int64_t *counts, uint8_t *model)
{
    count_symbols(symbols, num, counts);
    if (counts[d->is_signed ? (d->num_symbols - 1) / 2 : 0] == num)
        return 0;
    return model_of(d, counts, &w->chances, model);
}

/* Adds integers in [0, 2**num_bits), byte by byte. */
static void add_raw(Writer *w, const int64_t *values, Py_ssize_t num, int num_bits)
{
    uint16_t frequencies[NUM_SYMBOLS];
    for (int shift = 0; num && shift < num_bits; shift += 8) {
        int bits = num_bits - shift < 8 ? num_bits - shift : 8;
        uniform_frequencies(bits, frequencies);
        int64_t cost = (int64_t)num * cost_of(frequencies[0]);
        uint8_t *symbols = add_segment(w, num, 1, cost, frequencies);
        for (Py_ssize_t i = 0; symbols && i < num; i++)
            symbols[i] = (uint8_t)(values[i] >> shift & ((1 << bits) - 1));
    }
}

/* What digits that saturate twice leave: bit lengths, then bits. Uses up the values. */
static void add_large_excess(Writer *w, int64_t *excess, Py_ssize_t num)
{
    int64_t *lengths = malloc(2 * (size_t)num * sizeof *lengths);
    if (!lengths) {
        w->failed = 1;
        return;
    }
    int64_t *some = lengths + num;
    for (Py_ssize_t i = 0; i < num; i++)
        for (lengths[i] = 0; excess[i] >> lengths[i];)
            lengths[i]++;
    add_raw(w, lengths, num, LENGTH_BITS);
    for (int shift = 0; shift <= HALF_EXCESS_BITS; shift += HALF_EXCESS_BITS) {
        Py_ssize_t long_enough = 0;
        for (Py_ssize_t i = 0; i < num; i++)
            if (lengths[i] > shift)
                some[long_enough++] = excess[i] >> shift & ((1 << HALF_EXCESS_BITS) - 1);
        add_raw(w, some, long_enough, HALF_EXCESS_BITS);
    }
    free(lengths);
}

#define EXCESS_OF(type)                                                                 \
    static Py_ssize_t excess_of_##type(const type *values, Py_ssize_t num,              \
                                       int64_t limit, int64_t *excess)                  \
    {                                                                                   \
        Py_ssize_t found = 0;                                                           \
        for (Py_ssize_t i = 0; i < num; i++) {                                          \
            int64_t v = values[i], more = (v < 0 ? -v : v) - limit;                     \
            excess[found] = more;                                                       \
            found += more >= 0;                                                         \
        }                                                                               \
        return found;                                                                   \
    }
EXCESS_OF(int8_t)
EXCESS_OF(int16_t)
EXCESS_OF(int32_t)
EXCESS_OF(int64_t)

/* Adds one stream, and what its saturated digits leave. */
static void add_stream(Writer *w, const int64_t *values, Py_ssize_t num, const Digits *d)
{
    static const uint16_t none[NUM_SYMBOLS];
    if (!num)
        return;
    Py_ssize_t num_symbols = num_symbols_of(d, num);
    int64_t counts[NUM_SYMBOLS];
    uint8_t model[MOST_MODEL], *symbols = add_segment(w, num_symbols, 1, 0, none);
    if (!symbols)
        return;
    Py_ssize_t saturated = pack_int64_t(d, values, num, symbols, num_symbols);
    int size = model_symbols(w, d, symbols, num_symbols, counts, model);
    add_model(w, model, size);
    if (!size) {
        w->symbols.size -= (size_t)num_symbols;
        w->segments.size -= sizeof(Segment);
        return;
    }
    Segment *last = (Segment *)(w->segments.data + w->segments.size) - 1;
    frequencies_of(d, &w->chances, model, size, last->frequencies);
    last->cost = cost_of_counts(counts, last->frequencies);
    if (!saturated)
        return;
    int64_t *excess = malloc(((size_t)saturated + 1) * sizeof *excess);
    if (!excess) {
        w->failed = 1;
        return;
    }
    excess_of_int64_t(values, num, d->limit, excess);
    if (d->is_signed)
        add_stream(w, excess, saturated, &excess_digits);
    else
        add_large_excess(w, excess, saturated);
    free(excess);
}

/* Adds a list of which each item is sent less the one before it. */
static void add_changes(Writer *w, const int64_t *values, Py_ssize_t num)
{
    int64_t *changes = malloc(((size_t)num + 1) * sizeof *changes);
    if (!changes) {
        w->failed = 1;
        return;
    }
    for (Py_ssize_t i = 0; i < num; i++)
        changes[i] = values[i] - (i ? values[i - 1] : 0);
    add_stream(w, changes, num, &large);
    free(changes);
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Adds a list less its median, then the median. */
static void add_around_median(Writer *w, const int64_t *values, Py_ssize_t num)
{
    int64_t *sorted = malloc(((size_t)num + 1) * sizeof *sorted);
    if (!sorted) {
        w->failed = 1;
        return;
    }
    memcpy(sorted, values, (size_t)num * sizeof *sorted);
    qsort(sorted, (size_t)num, sizeof *sorted, ascending);
    int64_t median = (sorted[(num - 1) / 2] + sorted[num / 2]) / 2;
    for (Py_ssize_t i = 0; i < num; i++)
        sorted[i] = values[i] - median;
    add_stream(w, sorted, num, &large);
    add_stream(w, &median, 1, &large);
    free(sorted);
}

/* One class of the bulk. */
typedef struct {
    Py_ssize_t num, num_symbols, saturated;
    const char *values;  /* of levels' own size, or raised and cut of low bits */
    Py_ssize_t itemsize; /* of them */
    int64_t *owned;      /* values without low bits, then low bits */
    size_t at;           /* of its symbols, in those of the bulk */
    const Kind *kind;
    int64_t counts[NUM_SYMBOLS]; /* of its symbols */
    uint8_t model[MOST_MODEL];
    int model_size;
} Part;

static void add_models(Writer *w, const Part *parts, int num)
{
    if (num <= FEW_MODELS) {
        for (int i = 0; i < num; i++)
            add_model(w, parts[i].model, parts[i].model_size);
        return;
    }
    int64_t lengths[NUM_CLASSES], changes[NUM_CLASSES * MOST_MODEL], known[MOST_MODEL];
    Py_ssize_t num_changes = 0;
    for (int j = 0; j < MOST_MODEL; j++)
        known[j] = HALF;
    for (int i = 0; i < num; i++) {
        lengths[i] = parts[i].model_size;
        for (int j = 0; j < parts[i].model_size; j++) {
            changes[num_changes++] = parts[i].model[j] - known[j];
            known[j] = parts[i].model[j];
        }
    }
    add_changes(w, lengths, num);
    add_stream(w, changes, num_changes, &large);
}

/* Cuts the low bits off a class's values; 0 without memory. */
static int cut_low_bits(Part *part, Py_ssize_t size)
{
    part->owned = malloc(2 * (size_t)part->num * sizeof *part->owned);
    if (!part->owned)
        return 0;
    int low = part->kind->low_bits;
    for (Py_ssize_t i = 0; i < part->num; i++) {
        int64_t v = size == 1   ? ((const int8_t *)part->values)[i]
                    : size == 2 ? ((const int16_t *)part->values)[i]
                                : ((const int32_t *)part->values)[i];
        v += (int64_t)1 << low >> 1;
        /* Rounded down, so that what is left is not negative. */
        int64_t left = v & (((int64_t)1 << low) - 1);
        part->owned[i] = (v - left) / ((int64_t)1 << low);
        part->owned[part->num + i] = left;
    }
    part->values = (const char *)part->owned;
    part->itemsize = 8;
    return 1;
}

static Py_ssize_t pack_part(const Part *part, uint8_t *symbols)
{
    const Digits *d = &part->kind->digits;
    const void *values = part->values;
    if (part->itemsize == 1)
        return pack_int8_t(d, values, part->num, symbols, part->num_symbols);
    if (part->itemsize == 2)
        return pack_int16_t(d, values, part->num, symbols, part->num_symbols);
    if (part->itemsize == 4)
        return pack_int32_t(d, values, part->num, symbols, part->num_symbols);
    return pack_int64_t(d, values, part->num, symbols, part->num_symbols);
}

static Py_ssize_t excess_of_part(const Part *part, int64_t *excess)
{
    int64_t limit = part->kind->digits.limit;
    const void *values = part->values;
    if (part->itemsize == 1)
        return excess_of_int8_t(values, part->num, limit, excess);
    if (part->itemsize == 2)
        return excess_of_int16_t(values, part->num, limit, excess);
    if (part->itemsize == 4)
        return excess_of_int32_t(values, part->num, limit, excess);
    return excess_of_int64_t(values, part->num, limit, excess);
}

/* Adds what saturated digits leave: for each kind, of its classes in their order. */
static void add_excess(Writer *w, const Part *parts, int num)
{
    for (int i = 0; i < num && !w->failed; i++) {
        const Digits *d = &parts[i].kind->digits;
        int is_first = 1;
        size_t total = 0;
        for (int j = 0; j < i; j++)
            is_first &= !is_same(&parts[j].kind->digits, d);
        for (int j = i; j < num; j++)
            total += is_same(&parts[j].kind->digits, d) ? (size_t)parts[j].saturated : 0;
        if (!is_first || !total)
            continue;
        /* One more is written before it is kept. */
        int64_t *excess = malloc((total + 1) * sizeof *excess);
        Py_ssize_t found = 0;
        for (int j = i; excess && j < num; j++)
            if (is_same(&parts[j].kind->digits, d) && parts[j].saturated)
                found += excess_of_part(parts + j, excess + found);
        if (excess)
            add_stream(w, excess, found, &excess_digits);
        else
            w->failed = 1;
        free(excess);
    }
}

static void add_bulk(Writer *w, Part *parts, int num, Py_ssize_t itemsize)
{
    Bytes symbols = {0};
    for (int i = 0; i < num && !w->failed; i++) {
        Part *p = parts + i;
        p->itemsize = itemsize;
        if (p->kind->low_bits && !cut_low_bits(p, itemsize)) {
            w->failed = 1;
            break;
        }
        p->num_symbols = num_symbols_of(&p->kind->digits, p->num);
        p->at = symbols.size;
        uint8_t *place = extend(&symbols, (size_t)p->num_symbols);
        if (!place) {
            w->failed = 1;
            break;
        }
        p->saturated = pack_part(p, place);
        p->model_size = model_symbols(w, &p->kind->digits, place, p->num_symbols, p->counts,
                                      p->model);
        p->saturated = p->model_size ? p->saturated : 0;
    }
    if (!w->failed)
        add_models(w, parts, num);
    int begins = 1;
    for (int i = 0; i < num && !w->failed; i++) {
        const Part *p = parts + i;
        uint16_t frequencies[NUM_SYMBOLS];
        if (!p->model_size)
            continue;
        frequencies_of(&p->kind->digits, &w->chances, p->model, p->model_size, frequencies);
        int64_t cost = cost_of_counts(p->counts, frequencies);
        uint8_t *place = add_segment(w, p->num_symbols, begins, cost, frequencies);
        if (place)
            memcpy(place, symbols.data + p->at, (size_t)p->num_symbols);
        begins = 0;
    }
    free(symbols.data);
    add_excess(w, parts, num);
    for (int i = 0; i < num; i++) {
        if (parts[i].owned && !w->failed)
            add_raw(w, parts[i].owned + parts[i].num, parts[i].num,
                    parts[i].kind->low_bits);
        free(parts[i].owned);
    }
}

/* Brings the levels of each class together, one class after the other. */
static void gather(const Classes *c, const char *levels, Py_ssize_t size, char *out)
{
    Py_ssize_t at[NUM_CLASSES], next = 0, stop;
    for (int i = 0; i < NUM_CLASSES; i++) {
        at[i] = next * size;
        next += (Py_ssize_t)c->counts[i];
    }
    for (Py_ssize_t i = 0; i < c->num_rows; i++) {
        Py_ssize_t line = c->rows[i] * c->num_columns;
        for (Py_ssize_t j = 0; j < c->num_runs; j = stop) {
            int number = class_of(c, i, j);
            stop = alike(c, i, j, number);
            size_t bytes = (size_t)((c->starts[stop] - c->starts[j]) * size);
            memcpy(out + at[number], levels + (line + c->starts[j]) * size, bytes);
            at[number] += (Py_ssize_t)bytes;
        }
    }
}

/* Codes all streams of a frame; what is wrong with them, or NULL. */
static const char *write_streams(Writer *w, Bytes *words, Buffer lists, Buffer sizes,
                                 const Energies *e, Buffer shifts, Buffer levels,
                                 Py_ssize_t size, const Kind *kinds)
{
    Classes c = {0};
    Part *parts = calloc(NUM_CLASSES, sizeof *parts);
    int num = 0;
    char *values = NULL;
    const char *wrong = parts ? classes_of(&c, e, levels.size / size) : no_memory;
    const int64_t *list = (int64_t *)lists.data, *length = (int64_t *)sizes.data;
    Py_ssize_t left = lists.size / 8;
    for (Py_ssize_t i = 0; !wrong && i < sizes.size / 8; i++) {
        if (length[i] < 0 || length[i] > left) {
            wrong = "lists are shorter than they are said to be";
            break;
        }
        add_stream(w, list, (Py_ssize_t)length[i], &large);
        list += length[i];
        left -= (Py_ssize_t)length[i];
    }
    if (!wrong && !(values = malloc((size_t)levels.size)))
        wrong = no_memory;
    if (!wrong) {
        int64_t taken[NUM_CLASSES];
        gather(&c, (char *)levels.data, size, values);
        const char *next = values;
        for (int i = 0; i < NUM_CLASSES; i++) {
            if (!c.counts[i])
                continue;
            taken[num] = ((int64_t *)shifts.data)[i];
            parts[num].kind = kinds + i;
            parts[num].num = (Py_ssize_t)c.counts[i];
            parts[num++].values = next;
            next += (Py_ssize_t)c.counts[i] * size;
        }
        add_around_median(w, (int64_t *)e->samples.data, e->samples.size / 8);
        add_changes(w, (int64_t *)e->channels.data, e->channels.size / 8);
        add_changes(w, (int64_t *)e->frequencies.data, e->frequencies.size / 8);
        add_changes(w, taken, num);
        add_bulk(w, parts, num, size);
        if (w->failed || !write_words(w, words))
            wrong = no_memory;
    }
    free(parts);
    free(values);
    free(c.owned);
    return wrong;
}

PyDoc_STRVAR(write_doc,
"write_streams(lists, sizes, samples, channels, frequencies, groups, offset, shifts, "
"levels, itemsize, kinds, midpoints, chances) -> (bytes, bytes)\n\n"
"Parameters and words of a frame, see frames.py in the folder of this file.");

static PyObject *write_frame(PyObject *self, PyObject *args)
{
    PyObject *o[11], *result = NULL;
    Py_ssize_t size;
    Buffer lists, sizes, shifts, levels, table, midpoints, chances;
    Energies e;
    Kind kinds[NUM_CLASSES];
    Writer w = {0};
    Bytes words = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOOOnOOnOOO", &o[0], &o[1], &o[2], &o[3], &o[4], &o[5],
                          &e.offset, &o[6], &o[7], &size, &o[8], &o[9], &o[10]) ||
        as_buffer(o[0], &lists, 0) || as_buffer(o[1], &sizes, 0) ||
        as_buffer(o[2], &e.samples, 0) || as_buffer(o[3], &e.channels, 0) ||
        as_buffer(o[4], &e.frequencies, 0) || as_buffer(o[5], &e.groups, 0) ||
        as_buffer(o[6], &shifts, 0) || as_buffer(o[7], &levels, 0) ||
        as_buffer(o[8], &table, 0) || as_buffer(o[9], &midpoints, 0) ||
        as_buffer(o[10], &chances, 0))
        return NULL;
    const char *wrong = kinds_of(kinds, table, midpoints, chances, &w.chances);
    if (!wrong && ((size != 1 && size != 2 && size != 4) || !holds(shifts, NUM_CLASSES, 8) ||
                   !holds(levels, levels.size / size, size) ||
                   !holds(lists, lists.size / 8, 8) || !holds(sizes, sizes.size / 8, 8)))
        wrong = "lists, shifts or levels have another size";
    if (wrong)
        return refuse(wrong);
    Py_BEGIN_ALLOW_THREADS
    wrong = write_streams(&w, &words, lists, sizes, &e, shifts, levels, size, kinds);
    Py_END_ALLOW_THREADS
    if (!wrong)
        result = Py_BuildValue("(y#y#)", w.parameters.data, (Py_ssize_t)w.parameters.size,
                               words.data, (Py_ssize_t)words.size);
    else if (wrong == no_memory)
        PyErr_NoMemory();
    else
        refuse(wrong);
    free(words.data);
    free_writer(&w);
    return result;
}

/* ------------------------------------------------------------------ read */

static const uint8_t *take_parameters(Reader *r, Py_ssize_t num)
{
    const uint8_t *taken = r->parameters;
    if (r->parameters_end - taken < num) {
        r->wrong = "the parameters of the streams end early";
        return NULL;
    }
    r->parameters += num;
    return taken;
}

/* A model with its length before it; its length is 0 where something is wrong too. */
static const uint8_t *take_model(Reader *r, int *size)
{
    const uint8_t *length = take_parameters(r, 1);
    *size = length ? *length : 0;
    const uint8_t *model = length ? take_parameters(r, *size) : NULL;
    *size = model ? *size : 0;
    return model;
}

static void *room_for(Reader *r, Py_ssize_t num, size_t size)
{
    void *room = r->wrong ? NULL : malloc(((size_t)num + 1) * size);
    if (!room && !r->wrong)
        r->wrong = no_memory;
    return room;
}

static void read_raw(Reader *r, int64_t *out, Py_ssize_t num, int num_bits)
{
    uint16_t frequencies[NUM_SYMBOLS];
    uint8_t *symbols = room_for(r, num, 1);
    int64_t count = num;
    if (symbols)
        memset(out, 0, (size_t)num * sizeof *out);
    for (int shift = 0; num && symbols && !r->wrong && shift < num_bits; shift += 8) {
        uniform_frequencies(num_bits - shift < 8 ? num_bits - shift : 8, frequencies);
        read_batch(r, 1, &count, frequencies, symbols);
        for (Py_ssize_t i = 0; !r->wrong && i < num; i++)
            out[i] |= (int64_t)symbols[i] << shift;
    }
    free(symbols);
}

static void read_large_excess(Reader *r, int64_t *excess, Py_ssize_t num)
{
    int64_t *lengths = room_for(r, 2 * num, sizeof *lengths);
    if (!lengths)
        return;
    int64_t *some = lengths + num;
    read_raw(r, lengths, num, LENGTH_BITS);
    for (Py_ssize_t i = 0; !r->wrong && i < num; i++) {
        excess[i] = 0;
        if (lengths[i] > MOST_EXCESS_BITS)
            r->wrong = "an integer of more than 40 bits";
    }
    for (int shift = 0; !r->wrong && shift <= HALF_EXCESS_BITS; shift += HALF_EXCESS_BITS) {
        Py_ssize_t long_enough = 0;
        for (Py_ssize_t i = 0; i < num; i++)
            long_enough += lengths[i] > shift;
        read_raw(r, some, long_enough, HALF_EXCESS_BITS);
        for (Py_ssize_t i = 0, j = 0; !r->wrong && i < num; i++)
            if (lengths[i] > shift)
                excess[i] |= some[j++] << shift;
    }
    free(lengths);
}

static void read_stream(Reader *r, int64_t *out, Py_ssize_t num, const Digits *d)
{
    uint16_t frequencies[NUM_SYMBOLS];
    int size = 0;
    const uint8_t *model = num && !r->wrong ? take_model(r, &size) : NULL;
    if (!num || r->wrong)
        return;
    if (!size) {
        memset(out, 0, (size_t)num * sizeof *out);
        return;
    }
    if (!frequencies_of(d, &r->chances, model, size, frequencies)) {
        r->wrong = "a stream's model is not valid";
        return;
    }
    int64_t num_symbols = num_symbols_of(d, num);
    uint8_t *symbols = room_for(r, num_symbols + num, 1);
    if (!symbols)
        return;
    int8_t *digits = (int8_t *)symbols + num_symbols;
    read_batch(r, 1, &num_symbols, frequencies, symbols);
    Py_ssize_t saturated = 0;
    if (!r->wrong)
        saturated = unpack_symbols(d, symbols, num_symbols, digits, num);
    for (Py_ssize_t i = 0; !r->wrong && i < num; i++)
        out[i] = digits[i];
    free(symbols);
    int64_t *excess = saturated ? room_for(r, saturated, sizeof *excess) : NULL;
    if (!excess)
        return;
    if (d->is_signed)
        read_stream(r, excess, saturated, &excess_digits);
    else
        read_large_excess(r, excess, saturated);
    for (Py_ssize_t i = 0, j = 0; !r->wrong && i < num; i++)
        if (out[i] >= d->limit || out[i] <= -d->limit) {
            out[i] += out[i] < 0 ? -excess[j] : excess[j];
            j++;
        }
    free(excess);
}

/* Undoes `add_changes`; sums wrap, and are checked by whoever uses them. */
static void read_changes(Reader *r, int64_t *out, Py_ssize_t num)
{
    read_stream(r, out, num, &large);
    for (Py_ssize_t i = 1; !r->wrong && i < num; i++)
        out[i] = (int64_t)((uint64_t)out[i] + (uint64_t)out[i - 1]);
}

/* One class of the bulk. */
typedef struct {
    Py_ssize_t num;
    int64_t num_symbols;
    Py_ssize_t saturated;
    int8_t *narrow; /* its levels where all are small, */
    int64_t *wide;  /* else these, owned */
    const Kind *kind;
    uint8_t model[NUM_SYMBOLS];
    int model_size;
    float taken;
} Levels;

static void read_models(Reader *r, Levels *parts, int num)
{
    if (num <= FEW_MODELS) {
        for (int i = 0; i < num && !r->wrong; i++) {
            const uint8_t *model = take_model(r, &parts[i].model_size);
            if (parts[i].model_size)
                memcpy(parts[i].model, model, (size_t)parts[i].model_size);
        }
        return;
    }
    int64_t lengths[NUM_CLASSES], known[NUM_SYMBOLS], *changes;
    Py_ssize_t total = 0, at = 0;
    read_changes(r, lengths, num);
    for (int i = 0; i < num && !r->wrong; i++) {
        if (lengths[i] < 0 || lengths[i] > NUM_SYMBOLS - 1)
            r->wrong = "the length of a model is out of range";
        else if (lengths[i] == 1)
            r->wrong = "a model of one byte";
        else
            total += (Py_ssize_t)lengths[i];
    }
    if (!(changes = room_for(r, total, sizeof *changes)))
        return;
    read_stream(r, changes, total, &large);
    for (int i = 0; i < NUM_SYMBOLS; i++)
        known[i] = HALF;
    for (int i = 0; i < num && !r->wrong; i++) {
        parts[i].model_size = (int)lengths[i];
        for (int j = 0; j < parts[i].model_size; j++) {
            known[j] += changes[at++];
            if (known[j] < 0 || known[j] >= NUM_SYMBOLS) {
                r->wrong = "a stream's model holds a chance that is none";
                break;
            }
            parts[i].model[j] = (uint8_t)known[j];
        }
    }
    free(changes);
}

static void widen(Reader *r, Levels *p)
{
    p->wide = room_for(r, p->num, sizeof *p->wide);
    for (Py_ssize_t i = 0; p->wide && i < p->num; i++)
        p->wide[i] = p->narrow[i];
}

/* Which of 64 values or fewer saturate, a byte each; those that are not there do not. */
FOR_AVX2_TOO
static void find_saturated(const int8_t *restrict values, Py_ssize_t num, int limit,
                           uint8_t *restrict found)
{
    int8_t high = (int8_t)limit, low = (int8_t)-limit;
    if (num == 64)
        for (int i = 0; i < 64; i++)
            found[i] = (uint8_t)((values[i] >= high) | (values[i] <= low));
    else
        for (int i = 0; i < 64; i++)
            found[i] = i < num && (values[i] >= high || values[i] <= low);
}

static void apply_to_narrow(int8_t *values, Py_ssize_t num, int limit,
                            const int64_t *excess)
{
    for (Py_ssize_t i = 0; i < num; i += 64, values += 64) {
        uint64_t words[8];
        find_saturated(values, num - i < 64 ? num - i : 64, limit, (uint8_t *)words);
        for (int j = 0; j < 8; j++)
            for (uint64_t left = words[j]; left; left &= left - 1) {
                int8_t *v = values + 8 * j + lowest_bit(left) / 8;
                int more = (int)*excess++;
                *v = (int8_t)(*v < 0 ? *v - more : *v + more);
            }
    }
}

static void apply_excess(Levels *p, const int64_t *excess)
{
    int64_t limit = p->kind->digits.limit;
    if (!p->wide)
        apply_to_narrow(p->narrow, p->num, (int)limit, excess);
    for (Py_ssize_t i = 0; p->wide && i < p->num; i++) {
        int64_t v = p->wide[i];
        if (v >= limit || v <= -limit)
            p->wide[i] += v < 0 ? -*excess++ : *excess++;
    }
}

/* Undoes `add_excess`. */
static void read_excess(Reader *r, Levels *parts, int num)
{
    for (int i = 0; i < num && !r->wrong; i++) {
        const Digits *d = &parts[i].kind->digits;
        int is_first = 1;
        Py_ssize_t total = 0, at = 0;
        for (int j = 0; j < i; j++)
            is_first &= !is_same(&parts[j].kind->digits, d);
        for (int j = i; j < num; j++)
            total += is_same(&parts[j].kind->digits, d) ? parts[j].saturated : 0;
        if (!is_first || !total)
            continue;
        int64_t *excess = room_for(r, total, sizeof *excess), most = 0;
        if (!excess)
            return;
        excess[total] = 0;
        read_stream(r, excess, total, &excess_digits);
        for (Py_ssize_t j = 0; !r->wrong && j < total; j++)
            most = excess[j] > most ? excess[j] : most;
        for (int j = i; j < num && !r->wrong; j++) {
            if (!is_same(&parts[j].kind->digits, d) || !parts[j].saturated)
                continue;
            if (d->limit + most > 127)
                widen(r, parts + j);
            if (!r->wrong)
                apply_excess(parts + j, excess + at);
            at += parts[j].saturated;
        }
        free(excess);
    }
}

/* Undoes `add_bulk`; levels of the parts lie in `flat` where they are small. */
static void read_bulk(Reader *r, Levels *parts, int num, int8_t *flat)
{
    uint16_t (*frequencies)[NUM_SYMBOLS] = room_for(r, num, sizeof *frequencies);
    int64_t counts[NUM_CLASSES], total = 0;
    int num_coded = 0;
    if (frequencies)
        read_models(r, parts, num);
    for (int i = 0; i < num && !r->wrong; i++) {
        Levels *p = parts + i;
        p->narrow = flat;
        flat += p->num;
        p->num_symbols = num_symbols_of(&p->kind->digits, p->num);
        if (!p->model_size)
            continue;
        if (!frequencies_of(&p->kind->digits, &r->chances, p->model, p->model_size,
                            frequencies[num_coded]))
            r->wrong = "a stream's model is not valid";
        counts[num_coded++] = p->num_symbols;
        total += p->num_symbols;
    }
    uint8_t *symbols = room_for(r, (Py_ssize_t)total, 1), *next = symbols;
    if (symbols && num_coded)
        read_batch(r, num_coded, counts, frequencies[0], symbols);
    for (int i = 0; i < num && !r->wrong; i++) {
        Levels *p = parts + i;
        if (!p->model_size) {
            memset(p->narrow, 0, (size_t)p->num);
            continue;
        }
        p->saturated = unpack_symbols(&p->kind->digits, next, (Py_ssize_t)p->num_symbols,
                                      p->narrow, p->num);
        next += p->num_symbols;
    }
    free(symbols);
    free(frequencies);
    read_excess(r, parts, num);
    for (int i = 0; i < num && !r->wrong; i++) {
        Levels *p = parts + i;
        int low_bits = p->kind->low_bits;
        int64_t *low = low_bits ? room_for(r, p->num, sizeof *low) : NULL;
        if (!low)
            continue;
        read_raw(r, low, p->num, low_bits);
        if (!p->wide)
            widen(r, p);
        for (Py_ssize_t j = 0; !r->wrong && j < p->num; j++)
            p->wide[j] = p->wide[j] * ((int64_t)1 << low_bits) + low[j] -
                         ((int64_t)1 << low_bits >> 1);
        free(low);
    }
}

/* Brings levels to the values that they stand for, each to its place. */
static void scatter(const Classes *c, const Levels *parts, const int *part_of, float step,
                    float *out)
{
    Py_ssize_t at[NUM_CLASSES] = {0}, stop;
    for (Py_ssize_t i = 0; i < c->num_rows; i++) {
        float *line = out + c->rows[i] * c->num_columns;
        for (Py_ssize_t j = 0; j < c->num_runs; j = stop) {
            int number = class_of(c, i, j);
            const Levels *p = parts + part_of[number];
            stop = alike(c, i, j, number);
            Py_ssize_t num = c->starts[stop] - c->starts[j];
            if (p->wide)
                values_of_int64_t(p->wide + at[number], num, step, p->taken,
                                  line + c->starts[j]);
            else
                values_of_int8_t(p->narrow + at[number], num, step, p->taken,
                                 line + c->starts[j]);
            at[number] += num;
        }
    }
}

/* The sum of sizes of lists, -1 if one is negative or they are too many to count. */
static Py_ssize_t total_of(Buffer sizes)
{
    int64_t total = 0;
    for (Py_ssize_t i = 0; i < sizes.size / 8; i++) {
        int64_t size = ((const int64_t *)sizes.data)[i];
        if (size < 0 || size > PY_SSIZE_T_MAX / 16 - total)
            return -1;
        total += size;
    }
    return (Py_ssize_t)total;
}

/* Reads the lists before all other streams. */
static void read_lists(Reader *r, Buffer sizes, int64_t *out)
{
    for (Py_ssize_t i = 0; i < sizes.size / 8; i++) {
        Py_ssize_t num = (Py_ssize_t)((const int64_t *)sizes.data)[i];
        read_stream(r, out, num, &large);
        out += num;
    }
}

PyDoc_STRVAR(lists_doc,
"read_lists(parameters, words, sizes, kinds, midpoints, chances, out) -> str\n\n"
"The first lists of write_streams; what is wrong with the bytes, or nothing.");

static PyObject *read_first_lists(PyObject *self, PyObject *args)
{
    PyObject *o[7];
    Buffer b[7];
    Kind kinds[NUM_CLASSES];
    Reader r = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOOOO", &o[0], &o[1], &o[2], &o[3], &o[4], &o[5], &o[6]))
        return NULL;
    for (int i = 0; i < 7; i++)
        if (as_buffer(o[i], b + i, i == 6))
            return NULL;
    const char *wrong = kinds_of(kinds, b[3], b[4], b[5], &r.chances);
    if (!wrong && (!holds(b[2], b[2].size / 8, 8) || !holds(b[6], total_of(b[2]), 8)))
        wrong = "lists and their sizes do not go together";
    if (wrong)
        return refuse(wrong);
    Py_BEGIN_ALLOW_THREADS
    r.parameters = b[0].data;
    r.parameters_end = b[0].data + b[0].size;
    open_words(&r, b[1]);
    read_lists(&r, b[2], (int64_t *)b[6].data);
    free_reader(&r);
    Py_END_ALLOW_THREADS
    if (r.wrong == no_memory)
        return PyErr_NoMemory();
    return PyUnicode_FromString(r.wrong ? r.wrong : "");
}

/* Reads all streams of a frame, lists aside; what is wrong is in the reader. */
static void read_streams(Reader *r, Buffer lists, Py_ssize_t num_samples, Py_ssize_t num_channels,
                         Py_ssize_t num_groups, Buffer groups, Py_ssize_t offset,
                         float step, const Kind *kinds, int64_t *order, float *out)
{
    Levels parts[NUM_CLASSES];
    int part_of[NUM_CLASSES], num = 0;
    Classes c = {0};
    int64_t shifts[NUM_CLASSES], median = 0;
    Py_ssize_t num_rows = groups.size / 8, num_columns = num_samples * num_channels;
    int64_t *a = room_for(r, num_samples + num_channels + num_groups, sizeof *a);
    int8_t *flat = room_for(r, num_rows * num_columns, 1);
    if (!r->wrong && !allocate_classes(&c, num_rows, num_columns))
        r->wrong = no_memory;
    int64_t *skipped = room_for(r, total_of(lists), sizeof *skipped);
    if (skipped)
        read_lists(r, lists, skipped);
    free(skipped);
    if (!r->wrong) {
        int64_t *u = a + num_samples, *v = u + num_channels;
        read_stream(r, a, num_samples, &large);
        read_stream(r, &median, 1, &large);
        for (Py_ssize_t i = 0; !r->wrong && i < num_samples; i++)
            a[i] += median;
        read_changes(r, u, num_channels);
        read_changes(r, v, num_groups);
        if (!r->wrong)
            r->wrong = find_classes(&c, a, num_samples, u, num_channels, v, num_groups,
                                    (int64_t *)groups.data, offset);
    }
    for (int i = 0; !r->wrong && i < NUM_CLASSES; i++) {
        part_of[i] = num;
        if (c.counts[i])
            parts[num++] = (Levels){.num = (Py_ssize_t)c.counts[i], .kind = kinds + i};
    }
    read_changes(r, shifts, num);
    for (int i = 0; !r->wrong && i < num; i++) {
        if (shifts[i] < -CENTROID_UNIT || shifts[i] > CENTROID_UNIT)
            r->wrong = "a centroid of codec 'waterfill' is out of range";
        parts[i].taken = (float)shifts[i] / CENTROID_UNIT * step;
    }
    if (!r->wrong)
        read_bulk(r, parts, num, flat);
    close_words(r);
    if (!r->wrong && r->parameters != r->parameters_end)
        r->wrong = "parameters of streams are left over";
    if (!r->wrong) {
        scatter(&c, parts, part_of, step, out);
        memcpy(order, c.planes, (size_t)num_columns * sizeof *order);
    }
    for (int i = 0; i < num; i++)
        free(parts[i].wide);
    free(flat);
    free(a);
    free(c.owned);
}

PyDoc_STRVAR(read_doc,
"read_streams(parameters, words, sizes, samples, channels, num_groups, groups, offset, "
"step, kinds, midpoints, chances, order, out) -> str\n\n"
"Undoes write_streams, but lists of these sizes; what is wrong with the bytes, or "
"nothing.");

static PyObject *read_frame(PyObject *self, PyObject *args)
{
    PyObject *o[9];
    Py_ssize_t num_samples, num_channels, num_groups, offset;
    double step;
    Buffer parameters, words, lists, groups, table, midpoints, chances, order, out;
    Kind kinds[NUM_CLASSES];
    Reader r = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOnnnOndOOOOO", &o[0], &o[1], &o[8], &num_samples, &num_channels,
                          &num_groups, &o[2], &offset, &step, &o[3], &o[4], &o[5], &o[6],
                          &o[7]) ||
        as_buffer(o[0], &parameters, 0) || as_buffer(o[1], &words, 0) ||
        as_buffer(o[8], &lists, 0) || as_buffer(o[2], &groups, 0) || as_buffer(o[3], &table, 0) ||
        as_buffer(o[4], &midpoints, 0) || as_buffer(o[5], &chances, 0) ||
        as_buffer(o[6], &order, 1) || as_buffer(o[7], &out, 1))
        return NULL;
    const char *wrong = kinds_of(kinds, table, midpoints, chances, &r.chances);
    Py_ssize_t num_rows = groups.size / 8, num_columns = order.size / 8;
    if (!wrong && (!holds(lists, lists.size / 8, 8) || total_of(lists) < 0))
        wrong = "sizes of lists are out of range";
    if (!wrong && (num_samples < 1 || num_channels < 1 || num_groups < 1 || num_rows < 1 ||
                   num_groups > num_rows || !holds(groups, num_rows, 8) ||
                   !holds(order, num_columns, 8) ||
                   num_columns / num_samples != num_channels ||
                   num_columns != num_samples * num_channels ||
                   out.size / 4 / num_columns != num_rows ||
                   !holds(out, num_rows * num_columns, 4)))
        wrong = "coefficients and what is told of them do not go together";
    if (wrong)
        return refuse(wrong);
    Py_BEGIN_ALLOW_THREADS
    r.parameters = parameters.data;
    r.parameters_end = parameters.data + parameters.size;
    open_words(&r, words);
    read_streams(&r, lists, num_samples, num_channels, num_groups, groups, offset, (float)step,
                 kinds, (int64_t *)order.data, (float *)out.data);
    free_reader(&r);
    Py_END_ALLOW_THREADS
    if (r.wrong == no_memory)
        return PyErr_NoMemory();
    return PyUnicode_FromString(r.wrong ? r.wrong : "");
}

PyMethodDef waterfill_methods[] = {
    {"quantize", quantize, METH_VARARGS, quantize_doc},
    {"read_lists", read_first_lists, METH_VARARGS, lists_doc},
    {"read_streams", read_frame, METH_VARARGS, read_doc},
    {"write_streams", write_frame, METH_VARARGS, write_doc},
    {NULL, NULL, 0, NULL},
};
