/* Spectra of rows: two components each, and codes of their widths. The reference is in
 * PyTorch, in codec/slfac: `afd.decompose`, `fqc.quantize` and `fqc.dequantize`.
 *
 * A row's coefficients, in their order, lie by their place in groups of eight, so that
 * what is done to a coefficient is done to many neighbours in memory at once:
 *
 *     place j of group g is at j * G + g, G groups a row, one row after the other
 */
#include "buffers.h"
#include "turn.h"

#include <stdlib.h>

/* Rows worked on at a time: a cache line of one coefficient. */
enum { ROWS = 16 };
/* 1.5 * 2**23: a float32 sum with it is rounded to a whole number, halves to even. */
static const float ROUNDER = 12582912.0f;

typedef struct {
    Py_ssize_t n, groups, stride; /* coefficients, groups, and floats a row */
} Layout;

static Layout layout_of(Py_ssize_t n)
{
    Py_ssize_t groups = n / 8 + (n % 8 != 0), floats = 8 * groups;
    /* Rows a multiple of a kibibyte apart would share few sets of the cache. */
    return (Layout){n, groups, floats % 256 ? floats : floats + 16};
}

/* NULL if the order is of n coefficients, else why not. */
static const char *check_order(Buffer order, Py_ssize_t n)
{
    if (!holds(order, n, 8))
        return "the order is not of all coefficients";
    for (Py_ssize_t i = 0; i < n; i++)
        if (((const int64_t *)order.data)[i] < 0 || ((const int64_t *)order.data)[i] >= n)
            return "the order names a coefficient that is none";
    return NULL;
}

/* ------------------------------------------------------------------ split */

static void put_in_order(const Layout *l, const float *coeffs, Py_ssize_t num_rows,
                         Py_ssize_t first, Py_ssize_t num, const int64_t *order,
                         float *store)
{
    for (Py_ssize_t j = 0; j < 8; j++) {
        Py_ssize_t g = 0;
        for (; num == ROWS && 8 * (g + 3) + j < l->n; g += 4) {
            for (Py_ssize_t r = 0; r < ROWS; r += 4) {
                const float *from[4];
                float *to[4];
                for (Py_ssize_t i = 0; i < 4; i++) {
                    from[i] = coeffs + order[8 * (g + i) + j] * num_rows + first + r;
                    to[i] = store + (r + i) * l->stride + j * l->groups + g;
                }
                turn_four(from, to);
            }
        }
        for (; g < l->groups; g++) {
            Py_ssize_t c = 8 * g + j < l->n ? 8 * g + j : l->n - 1;
            const float *from = coeffs + order[c] * num_rows + first;
            float *to = store + j * l->groups + g;
            for (Py_ssize_t r = 0; r < num; r++)
                to[r * l->stride] = from[r];
        }
    }
}

/* Energy and ends of every group of a row; what fills the last one up has no energy. */
FOR_AVX2_TOO
static void describe_groups(const Layout *l, const float *restrict row,
                            float *restrict energy, float *restrict low,
                            float *restrict high)
{
    Py_ssize_t groups = l->groups;
    for (int j = 0; j < 4; j++) {
        const float *one = row + j * groups, *other = one + 4 * groups;
        for (Py_ssize_t g = 0; g < groups; g++) {
            float a = one[g], b = other[g], sum = a * a + b * b;
            float less = b < a ? b : a, more = b > a ? b : a;
            energy[g] = j ? energy[g] + sum : sum;
            low[g] = j && low[g] < less ? low[g] : less;
            high[g] = j && high[g] > more ? high[g] : more;
        }
    }
    if (l->n % 8) {
        float sum[4] = {0};
        for (Py_ssize_t j = 0; j < l->n % 8; j++) {
            float v = row[j * groups + groups - 1];
            sum[j % 4] += v * v;
        }
        energy[groups - 1] = sum[0] + sum[1] + sum[2] + sum[3];
    }
}

static float least(const float *values, Py_ssize_t num, float found)
{
    for (Py_ssize_t i = 0; i < num; i++)
        found = values[i] < found ? values[i] : found;
    return found;
}

static float largest(const float *values, Py_ssize_t num, float found)
{
    for (Py_ssize_t i = 0; i < num; i++)
        found = values[i] > found ? values[i] : found;
    return found;
}

typedef struct {
    int64_t split;
    double energy[2];
    float low[2], high[2];
} Row;

static Row split_row(const Layout *l, const float *row, double theta, float *scratch)
{
    Py_ssize_t groups = l->groups, index = 0;
    float *energy = scratch, *low = energy + groups, *high = low + groups;
    describe_groups(l, row, energy, low, high);
    double total = 0, reached = 0, before = 0, inside[8], sum = 0;
    for (Py_ssize_t g = 0; g < groups; g++)
        total += energy[g];
    double goal = theta * total;
    for (reached = energy[0]; index < groups - 1 && reached < goal; index++) {
        before = reached;
        reached += energy[index + 1];
    }
    Py_ssize_t left = l->n - 8 * index, num = left < 8 ? left : 8;
    for (int j = 0; j < 8; j++) {
        double v = row[j * groups + index];
        sum += j < num ? v * v : 0;
        inside[j] = sum;
    }
    Py_ssize_t in_low = 1;
    for (int j = 0; j < 7; j++)
        in_low += inside[j] < goal - before;
    in_low = in_low < num ? in_low : num;
    Row found;
    found.split = 8 * index + in_low;
    found.energy[0] = before + inside[in_low - 1];
    found.energy[1] = total - reached + sum - inside[in_low - 1];
    /* The boundary group's are looked at one by one. */
    float first = row[index], last = row[(num - 1) * groups + index];
    found.low[0] = least(low, index, first);
    found.high[0] = largest(high, index, first);
    found.low[1] = least(low + index + 1, groups - index - 1, last);
    found.high[1] = largest(high + index + 1, groups - index - 1, last);
    for (Py_ssize_t j = 0; j < num; j++) {
        float v = row[j * groups + index];
        int which = j >= in_low;
        found.low[which] = v < found.low[which] ? v : found.low[which];
        found.high[which] = v > found.high[which] ? v : found.high[which];
    }
    if (found.split == l->n)
        found.low[1] = found.high[1] = 0;
    else if (in_low == num) {
        /* Its last coefficient is low; the high ones begin with the next group. */
        found.low[1] = least(low + index + 1, groups - index - 1, low[index + 1]);
        found.high[1] = largest(high + index + 1, groups - index - 1, high[index + 1]);
    }
    return found;
}

PyDoc_STRVAR(split_doc,
"spectra_split(coeffs, n, num_rows, order, theta, store, first, split, energy, ends)\n\n"
"See spectra.SpectraLoops.split in the module beside this one.");

static PyObject *spectra_split(PyObject *self, PyObject *args)
{
    PyObject *o[6];
    Py_ssize_t n, num_rows, first;
    double theta;
    Buffer coeffs, order, store, split, energy, ends;
    (void)self;
    if (!PyArg_ParseTuple(args, "OnnOdOnOOO", &o[0], &n, &num_rows, &o[1], &theta, &o[2],
                          &first, &o[3], &o[4], &o[5]) ||
        as_buffer(o[0], &coeffs, 0) || as_buffer(o[1], &order, 0) ||
        as_buffer(o[2], &store, 1) || as_buffer(o[3], &split, 1) ||
        as_buffer(o[4], &energy, 1) || as_buffer(o[5], &ends, 1))
        return NULL;
    Py_ssize_t all = split.size / 8;
    if (n < 1 || n > PY_SSIZE_T_MAX / 128 || num_rows < 0 ||
        coeffs.size / 4 / n != num_rows || !holds(coeffs, n * num_rows, 4) ||
        !holds(split, all, 8) || !holds(energy, 2 * all, 8) || !holds(ends, 4 * all, 4) ||
        first < 0 || first > all || num_rows > all - first)
        return refuse("the rows and what is told of them do not go together");
    Layout l = layout_of(n);
    if (!holds(store, store.size / 4, 4) || store.size / 4 / l.stride < first + num_rows)
        return refuse("too little room for the rows in order");
    float *scratch = malloc(3 * (size_t)l.groups * sizeof *scratch);
    if (!scratch)
        return PyErr_NoMemory();
    const char *wrong;
    Py_BEGIN_ALLOW_THREADS
    wrong = check_order(order, n);
    for (Py_ssize_t r = 0; !wrong && r < num_rows; r += ROWS) {
        Py_ssize_t num = num_rows - r < ROWS ? num_rows - r : ROWS;
        float *rows = (float *)store.data + (first + r) * l.stride;
        put_in_order(&l, (float *)coeffs.data, num_rows, r, num, (int64_t *)order.data,
                     rows);
        for (Py_ssize_t i = 0; i < num; i++) {
            Row found = split_row(&l, rows + i * l.stride, theta, scratch);
            Py_ssize_t at = first + r + i;
            ((int64_t *)split.data)[at] = found.split;
            float *end = (float *)ends.data + at;
            for (int which = 0; which < 2; which++) {
                ((double *)energy.data)[which * all + at] = found.energy[which];
                end[which * all] = found.low[which] + 0.0f;
            }
            /* Zeros have the signs of the reference, whatever theirs were. */
            end[2 * all] = -(found.high[0] + 0.0f);
            end[3 * all] = -found.high[1] + 0.0f;
        }
    }
    Py_END_ALLOW_THREADS
    free(scratch);
    if (wrong)
        return refuse(wrong);
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ ranges */

/* Within +-1000. */
static double power_of_two(int exponent)
{
    uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double found;
    memcpy(&found, &bits, 8);
    return found;
}

/* The largest float16 at most x, which lies within +-1; zero keeps its sign. */
static uint16_t half_below(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, 8);
    /* Of the last place: 11 digits count, and none below 2**-24. */
    int exponent = (int)(bits >> 52 & 0x7ff) - 1022 - 11;
    exponent = exponent > -24 ? exponent : -24;
    double exact = x * power_of_two(-exponent);
    int32_t digits = (int32_t)exact;
    digits -= digits > exact;
    uint32_t sign = bits >> 63 ? 0x8000 : 0, size = (uint32_t)(digits < 0 ? -digits : digits);
    /* The first digit of a number that is not subnormal is not written. */
    return (uint16_t)(sign | (size < 1024 ? size
                                          : ((uint32_t)(exponent + 24) << 10) + size));
}

static float float_of_half(uint32_t half)
{
    uint32_t exponent = half >> 10 & 31, digits = half & 1023;
    double size = exponent ? (digits | 1024) * power_of_two((int)exponent - 25)
                           : digits * power_of_two(-24);
    return (float)(half & 0x8000 ? -size : size);
}

PyDoc_STRVAR(ranges_doc,
"spectra_ranges(ends, exponent, halves)\n\n"
"See ranges.round_outward in codec/slfac.");

static PyObject *spectra_ranges(PyObject *self, PyObject *args)
{
    PyObject *o[2];
    int exponent, outside = 0;
    Buffer ends, halves;
    (void)self;
    if (!PyArg_ParseTuple(args, "OiO", &o[0], &exponent, &o[1]) ||
        as_buffer(o[0], &ends, 0) || as_buffer(o[1], &halves, 1))
        return NULL;
    Py_ssize_t num = ends.size / 4;
    if (num % 2 || !holds(ends, num, 4) || !holds(halves, num, 2) ||
        exponent < -1000 || exponent > 1000)
        return refuse("ends and their halves do not go together");
    Py_BEGIN_ALLOW_THREADS
    double scale = power_of_two(-exponent);
    for (Py_ssize_t i = 0; i < num; i++) {
        double x = ((float *)ends.data)[i] * scale;
        int is_inside = x >= -1 && x <= 1;
        outside |= !is_inside;
        uint16_t half = half_below(is_inside ? x : 0);
        /* The second half of the ends are those above, negative. */
        ((uint16_t *)halves.data)[i] = i < num / 2 ? half : half ^ 0x8000;
    }
    Py_END_ALLOW_THREADS
    if (outside)
        return refuse("an end lies outside of the range of all");
    Py_RETURN_NONE;
}

PyDoc_STRVAR(levels_doc,
"spectra_levels(halves, exponent, widths, decodes, low, scale, used) -> bool\n\n"
"See spectra.SpectraLoops.levels in the module beside this one.");

static PyObject *spectra_levels(PyObject *self, PyObject *args)
{
    PyObject *o[5];
    int exponent, decodes, valid = 1;
    Buffer halves, widths, low, scale, used;
    (void)self;
    if (!PyArg_ParseTuple(args, "OiOpOOO", &o[0], &exponent, &o[1], &decodes, &o[2], &o[3],
                          &o[4]) ||
        as_buffer(o[0], &halves, 0) || as_buffer(o[1], &widths, 0) ||
        as_buffer(o[2], &low, 1) || as_buffer(o[3], &scale, 1) ||
        as_buffer(o[4], &used, 1))
        return NULL;
    Py_ssize_t num = widths.size / 4;
    if (!holds(halves, 2 * num, 2) || !holds(widths, num, 4) || !holds(low, num, 4) ||
        !holds(scale, num, 4) || !holds(used, num, 4) || exponent < -1000 ||
        exponent > 1000)
        return refuse("ranges and widths do not go together");
    Py_BEGIN_ALLOW_THREADS
    const uint16_t *half = (uint16_t *)halves.data;
    double factor = power_of_two(exponent);
    for (Py_ssize_t i = 0; i < num; i++) {
        int32_t width = ((int32_t *)widths.data)[i];
        float least = float_of_half(half[i]), most = float_of_half(half[num + i]);
        valid &= least <= most && (half[i] & 0x7c00) != 0x7c00 &&
                 (half[num + i] & 0x7c00) != 0x7c00 && width >= 0 && width <= 8;
        if (!valid)
            break;
        width = least == most ? 0 : width;
        float from = (float)(least * factor), to = (float)(most * factor);
        float top = (float)((1 << width) - 1), span = to - from;
        ((float *)low.data)[i] = from;
        ((float *)scale.data)[i] = decodes ? span * (top > 0 ? 1 / top : 0)
                                           : top * (span > 0 ? 1 / span : 0);
        ((int32_t *)used.data)[i] = width;
    }
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(valid);
}

/* ------------------------------------------------------------------ bits */

typedef struct {
    uint8_t *next;
    uint64_t word; /* bits that are not written yet */
    unsigned fill; /* how many */
} Writer;

static inline void put_bits(Writer *w, uint64_t value, unsigned bits)
{
    w->word |= value << w->fill;
    w->fill += bits;
    if (w->fill >= 64) {
        memcpy(w->next, &w->word, 8);
        w->next += 8;
        w->fill -= 64;
        w->word = w->fill ? value >> (bits - w->fill) : 0;
    }
}

static void flush_bits(Writer *w)
{
    memcpy(w->next, &w->word, (w->fill + 7) / 8);
}

/* The 64 bits from `position` on, zeros past the end. */
static inline uint64_t get_bits(Buffer data, uint64_t position)
{
    uint64_t byte = position / 8, word = 0, shift = position % 8;
    if (byte + 9 <= (uint64_t)data.size) {
        memcpy(&word, data.data + byte, 8);
        word >>= shift;
        return word | (uint64_t)data.data[byte + 8] << 1 << (63 - shift);
    }
    for (uint64_t i = 0; i < 9 && byte + i < (uint64_t)data.size; i++) {
        uint64_t part = data.data[byte + i];
        if (i == 0)
            word = part >> shift;
        else
            word |= i == 8 ? part << 1 << (63 - shift) : part << (8 * i - shift);
    }
    return word;
}

static inline uint64_t mask_of(unsigned bits)
{
    return bits < 64 ? ((uint64_t)1 << bits) - 1 : ~(uint64_t)0;
}

/* ------------------------------------------------------------------ grid */

/* The levels of both components of all rows; see `Grid.encoder` and `Grid.decoder`. */
typedef struct {
    const int64_t *split;
    const float *low, *scale;
    const int32_t *widths;
    Py_ssize_t all;
} Grid;

static const char *grid_of(Grid *g, Buffer *b, Py_ssize_t n, Py_ssize_t first,
                           Py_ssize_t num_rows, Py_ssize_t *num_bits)
{
    Py_ssize_t all = b[0].size / 8, bits = 0;
    *g = (Grid){(int64_t *)b[0].data, (float *)b[1].data, (float *)b[2].data,
                (int32_t *)b[3].data, all};
    if (!holds(b[0], all, 8) || !holds(b[1], 2 * all, 4) || !holds(b[2], 2 * all, 4) ||
        !holds(b[3], 2 * all, 4) || n < 1 || n > PY_SSIZE_T_MAX / 128 || first < 0 ||
        first > all || num_rows < 0 || num_rows > all - first)
        return "the rows and their levels do not go together";
    for (Py_ssize_t r = first; r < first + num_rows; r++) {
        int32_t low = g->widths[r], high = g->widths[all + r];
        if (g->split[r] < 1 || g->split[r] > n || low < 0 || low > 8 || high < 0 || high > 8)
            return "a split or a width is out of range";
        Py_ssize_t more = (Py_ssize_t)g->split[r] * low + (n - g->split[r]) * high;
        if (more > PY_SSIZE_T_MAX - bits)
            return "too many bits";
        bits += more;
    }
    *num_bits = bits;
    return NULL;
}

static inline uint32_t code_of(float value, float low, float scale)
{
    float rounded = (value - low) * scale + ROUNDER;
    uint32_t bits;
    memcpy(&bits, &rounded, 4);
    return bits & 0xff;
}

FOR_AVX2_TOO
static void quantize_groups(const Layout *l, const float *restrict row, Py_ssize_t from,
                            Py_ssize_t to, float low, float scale, unsigned width,
                            uint64_t *restrict words)
{
    Py_ssize_t G = l->groups;
    for (Py_ssize_t g = from; g < to; g++) {
        const float *v = row + g;
        uint32_t quads[2];
        for (int q = 0; q < 2; q++, v += 4 * G)
            quads[q] = code_of(v[0], low, scale) | code_of(v[G], low, scale) << width |
                       code_of(v[2 * G], low, scale) << 2 * width |
                       code_of(v[3 * G], low, scale) << 3 * width;
        words[g] = quads[0] | (uint64_t)quads[1] << 4 * width;
    }
}

static void pack_row(const Layout *l, const float *row, const Grid *g, Py_ssize_t at,
                     uint64_t *words, Writer *writer)
{
    Py_ssize_t split = (Py_ssize_t)g->split[at], index = (split - 1) / 8, all = g->all;
    unsigned width[2] = {(unsigned)g->widths[at], (unsigned)g->widths[all + at]};
    float low[2] = {g->low[at], g->low[all + at]};
    float scale[2] = {g->scale[at], g->scale[all + at]};
    quantize_groups(l, row, 0, index, low[0], scale[0], width[0], words);
    quantize_groups(l, row, index + 1, l->groups, low[1], scale[1], width[1], words);
    for (Py_ssize_t i = 0; i < index; i++)
        put_bits(writer, words[i] & mask_of(8 * width[0]), 8 * width[0]);
    for (Py_ssize_t c = 8 * index; c < l->n && c < 8 * index + 8; c++) {
        int which = c >= split;
        uint32_t code = code_of(row[c % 8 * l->groups + index], low[which], scale[which]);
        put_bits(writer, code & mask_of(width[which]), width[which]);
    }
    for (Py_ssize_t i = index + 1; i < l->groups; i++) {
        Py_ssize_t num = l->n - 8 * i < 8 ? l->n - 8 * i : 8;
        unsigned bits = (unsigned)num * width[1];
        put_bits(writer, words[i] & mask_of(bits), bits);
    }
}

PyDoc_STRVAR(pack_doc,
"spectra_pack(store, n, split, low, scale, widths, out)\n\n"
"See spectra.SpectraLoops.pack in the module beside this one.");

static PyObject *spectra_pack(PyObject *self, PyObject *args)
{
    PyObject *o[6];
    Py_ssize_t n, num_bits;
    Buffer store, out, b[4];
    (void)self;
    if (!PyArg_ParseTuple(args, "OnOOOOO", &o[0], &n, &o[1], &o[2], &o[3], &o[4],
                          &o[5]) ||
        as_buffer(o[0], &store, 0) || as_buffer(o[5], &out, 1))
        return NULL;
    for (int i = 0; i < 4; i++)
        if (as_buffer(o[i + 1], b + i, 0))
            return NULL;
    Grid g;
    Py_ssize_t all = b[0].size / 8;
    const char *wrong = grid_of(&g, b, n, 0, all, &num_bits);
    if (wrong)
        return refuse(wrong);
    Layout l = layout_of(n);
    if (!holds(store, store.size / 4, 4) || store.size / 4 / l.stride < all ||
        out.size != num_bits / 8 + (num_bits % 8 != 0))
        return refuse("the rows or their codes have another size");
    uint64_t *words = malloc((size_t)l.groups * sizeof *words);
    if (!words)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    Writer writer = {out.data, 0, 0};
    for (Py_ssize_t r = 0; r < all; r++)
        pack_row(&l, (float *)store.data + r * l.stride, &g, r, words, &writer);
    flush_bits(&writer);
    Py_END_ALLOW_THREADS
    free(words);
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ unpack */

FOR_AVX2_TOO
static void dequantize_groups(const Layout *l, const uint64_t *restrict words,
                              Py_ssize_t from, Py_ssize_t to, float low, float step,
                              unsigned width, float *restrict row)
{
    Py_ssize_t G = l->groups;
    const uint32_t mask = (uint32_t)mask_of(width);
    for (Py_ssize_t g = from; g < to; g++) {
        float *v = row + g;
        uint32_t quads[2] = {(uint32_t)words[g], (uint32_t)(words[g] >> 4 * width)};
        for (int q = 0; q < 2; q++, v += 4 * G) {
            v[0] = low + (float)(int32_t)(quads[q] & mask) * step;
            v[G] = low + (float)(int32_t)(quads[q] >> width & mask) * step;
            v[2 * G] = low + (float)(int32_t)(quads[q] >> 2 * width & mask) * step;
            v[3 * G] = low + (float)(int32_t)(quads[q] >> 3 * width & mask) * step;
        }
    }
}

static uint64_t unpack_row(const Layout *l, Buffer data, uint64_t position, const Grid *g,
                           Py_ssize_t at, uint64_t *words, float *row)
{
    Py_ssize_t split = (Py_ssize_t)g->split[at], index = (split - 1) / 8, all = g->all;
    unsigned width[2] = {(unsigned)g->widths[at], (unsigned)g->widths[all + at]};
    float low[2] = {g->low[at], g->low[all + at]};
    float step[2] = {g->scale[at], g->scale[all + at]};
    for (Py_ssize_t i = 0; i < index; i++, position += 8 * width[0])
        words[i] = get_bits(data, position);
    for (Py_ssize_t c = 8 * index; c < l->n && c < 8 * index + 8; c++) {
        int which = c >= split;
        uint64_t code = get_bits(data, position) & mask_of(width[which]);
        position += width[which];
        row[c % 8 * l->groups + index] = low[which] + (float)(int32_t)code * step[which];
    }
    for (Py_ssize_t i = index + 1; i < l->groups; i++) {
        Py_ssize_t num = l->n - 8 * i < 8 ? l->n - 8 * i : 8;
        words[i] = get_bits(data, position);
        position += (unsigned)num * width[1];
    }
    dequantize_groups(l, words, 0, index, low[0], step[0], width[0], row);
    dequantize_groups(l, words, index + 1, l->groups, low[1], step[1], width[1], row);
    return position;
}

static void put_back(const Layout *l, const float *rows, Py_ssize_t num_rows,
                     Py_ssize_t first, Py_ssize_t num, const int64_t *order,
                     float *coeffs)
{
    for (Py_ssize_t j = 0; j < 8; j++) {
        Py_ssize_t g = 0;
        for (; num == ROWS && 8 * (g + 3) + j < l->n; g += 4) {
            for (Py_ssize_t r = 0; r < ROWS; r += 4) {
                const float *from[4];
                float *to[4];
                for (Py_ssize_t i = 0; i < 4; i++) {
                    from[i] = rows + (r + i) * l->stride + j * l->groups + g;
                    to[i] = coeffs + order[8 * (g + i) + j] * num_rows + first + r;
                }
                turn_four(from, to);
            }
        }
        for (; 8 * g + j < l->n; g++) {
            const float *from = rows + j * l->groups + g;
            float *to = coeffs + order[8 * g + j] * num_rows + first;
            for (Py_ssize_t r = 0; r < num; r++)
                to[r] = from[r * l->stride];
        }
    }
}

PyDoc_STRVAR(unpack_doc,
"spectra_unpack(data, position, n, first, num_rows, split, low, step, widths, order, "
"coeffs) -> int\n\n"
"See spectra.SpectraLoops.unpack in the module beside this one.");

static PyObject *spectra_unpack(PyObject *self, PyObject *args)
{
    PyObject *o[7];
    Py_ssize_t n, position, first, num_rows, num_bits;
    Buffer data, order, coeffs, b[4];
    (void)self;
    if (!PyArg_ParseTuple(args, "OnnnnOOOOOO", &o[0], &position, &n, &first, &num_rows,
                          &o[1], &o[2], &o[3], &o[4], &o[5], &o[6]) ||
        as_buffer(o[0], &data, 0) || as_buffer(o[5], &order, 0) ||
        as_buffer(o[6], &coeffs, 1))
        return NULL;
    for (int i = 0; i < 4; i++)
        if (as_buffer(o[i + 1], b + i, 0))
            return NULL;
    Grid g;
    const char *wrong = grid_of(&g, b, n, first, num_rows, &num_bits);
    if (wrong)
        return refuse(wrong);
    if (position < 0 || coeffs.size / 4 / n != num_rows || !holds(coeffs, n * num_rows, 4))
        return refuse("the rows or their codes have another size");
    Layout l = layout_of(n);
    float *rows = malloc((size_t)(ROWS * l.stride) * sizeof *rows);
    uint64_t *words = malloc((size_t)l.groups * sizeof *words), next = (uint64_t)position;
    if (!words || !rows) {
        free(words);
        free(rows);
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    wrong = check_order(order, n);
    for (Py_ssize_t r = 0; !wrong && r < num_rows; r += ROWS) {
        Py_ssize_t num = num_rows - r < ROWS ? num_rows - r : ROWS;
        for (Py_ssize_t i = 0; i < num; i++)
            next = unpack_row(&l, data, next, &g, first + r + i, words,
                              rows + i * l.stride);
        put_back(&l, rows, num_rows, r, num, (int64_t *)order.data,
                 (float *)coeffs.data);
    }
    Py_END_ALLOW_THREADS
    free(words);
    free(rows);
    return wrong ? refuse(wrong) : PyLong_FromUnsignedLongLong(next);
}

/* ------------------------------------------------------------------ transpose */

/* One line of the cache each way. */
enum { TILE = 16 };

static void transpose_tile(const float *from, Py_ssize_t rows, Py_ssize_t columns,
                           float *to)
{
    for (Py_ssize_t k = 0; k < TILE; k += 4) {
        for (Py_ssize_t i = 0; i < TILE; i += 4) {
            const float *lines[4];
            float *turned[4];
            for (Py_ssize_t x = 0; x < 4; x++) {
                lines[x] = from + (i + x) * columns + k;
                turned[x] = to + (k + x) * rows + i;
            }
            turn_four(lines, turned);
        }
    }
}

static void transpose_floats(const float *from, Py_ssize_t rows, Py_ssize_t columns,
                             float *to)
{
    for (Py_ssize_t k = 0; k < columns; k += TILE) {
        for (Py_ssize_t i = 0; i < rows; i += TILE) {
            if (rows - i >= TILE && columns - k >= TILE) {
                transpose_tile(from + i * columns + k, rows, columns, to + k * rows + i);
                continue;
            }
            for (Py_ssize_t x = k; x < k + TILE && x < columns; x++)
                for (Py_ssize_t y = i; y < i + TILE && y < rows; y++)
                    to[x * rows + y] = from[y * columns + x];
        }
    }
}

PyDoc_STRVAR(transpose_doc,
"transpose(matrix, rows, columns, out)\n\n"
"Of four bytes an element.");

static PyObject *transpose(PyObject *self, PyObject *args)
{
    PyObject *o[2];
    Py_ssize_t rows, columns;
    Buffer from, to;
    (void)self;
    if (!PyArg_ParseTuple(args, "OnnO", &o[0], &rows, &columns, &o[1]) ||
        as_buffer(o[0], &from, 0) || as_buffer(o[1], &to, 1))
        return NULL;
    if (rows < 1 || columns < 1 || from.size / 4 / rows != columns ||
        !holds(from, rows * columns, 4) || !holds(to, rows * columns, 4))
        return refuse("the matrix has another size");
    Py_BEGIN_ALLOW_THREADS
    transpose_floats((float *)from.data, rows, columns, (float *)to.data);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(place_doc,
"place_columns(matrix, rows, columns, index, out)\n\n"
"Column k of a matrix of floats becomes row index[k] of the result.");

static PyObject *place_columns(PyObject *self, PyObject *args)
{
    PyObject *o[3];
    Py_ssize_t rows, columns;
    Buffer from, index, to;
    (void)self;
    if (!PyArg_ParseTuple(args, "OnnOO", &o[0], &rows, &columns, &o[1], &o[2]) ||
        as_buffer(o[0], &from, 0) || as_buffer(o[1], &index, 0) ||
        as_buffer(o[2], &to, 1))
        return NULL;
    if (rows < 1 || columns < 1 || from.size / 4 / rows != columns ||
        !holds(from, rows * columns, 4) || !holds(index, columns, 8) ||
        !holds(to, to.size / 4 / rows * rows, 4))
        return refuse("the matrix has another size");
    const float *matrix = (const float *)from.data;
    const int64_t *places = (const int64_t *)index.data;
    float *out = (float *)to.data;
    int inside = 1;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t k = 0; k < columns; k++)
        inside &= places[k] >= 0 && places[k] < to.size / 4 / rows;
    for (Py_ssize_t k = 0; inside && k < columns; k += 4) {
        Py_ssize_t i = 0;
        for (; columns - k >= 4 && i + 4 <= rows; i += 4) {
            const float *lines[4];
            float *turned[4];
            for (Py_ssize_t x = 0; x < 4; x++) {
                lines[x] = matrix + (i + x) * columns + k;
                turned[x] = out + places[k + x] * rows + i;
            }
            turn_four(lines, turned);
        }
        for (; i < rows; i++)
            for (Py_ssize_t x = k; x < k + 4 && x < columns; x++)
                out[places[x] * rows + i] = matrix[i * columns + x];
    }
    Py_END_ALLOW_THREADS
    if (!inside)
        return refuse("the index names a row that is none");
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ records */

PyDoc_STRVAR(pack_records_doc,
"pack_records(words, bits, out)\n\n"
"Lays 64-bit words end to end, of each its lowest bits.");

static PyObject *pack_records(PyObject *self, PyObject *args)
{
    PyObject *o[2];
    Py_ssize_t bits;
    Buffer words, out;
    (void)self;
    if (!PyArg_ParseTuple(args, "OnO", &o[0], &bits, &o[1]) ||
        as_buffer(o[0], &words, 0) || as_buffer(o[1], &out, 1))
        return NULL;
    Py_ssize_t num = words.size / 8;
    if (bits < 0 || bits > 64 || !holds(words, num, 8) || num > PY_SSIZE_T_MAX / 64 ||
        out.size != num * bits / 8 + (num * bits % 8 != 0))
        return refuse("the records or their bits have another size");
    Py_BEGIN_ALLOW_THREADS
    Writer writer = {out.data, 0, 0};
    for (Py_ssize_t i = 0; bits && i < num; i++)
        put_bits(&writer, ((uint64_t *)words.data)[i] & mask_of((unsigned)bits),
                 (unsigned)bits);
    flush_bits(&writer);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(unpack_records_doc,
"unpack_records(data, bits, out)\n\n"
"Undoes `pack_records`.");

static PyObject *unpack_records(PyObject *self, PyObject *args)
{
    PyObject *o[2];
    Py_ssize_t bits;
    Buffer data, out;
    (void)self;
    if (!PyArg_ParseTuple(args, "OnO", &o[0], &bits, &o[1]) ||
        as_buffer(o[0], &data, 0) || as_buffer(o[1], &out, 1))
        return NULL;
    Py_ssize_t num = out.size / 8;
    if (bits < 0 || bits > 64 || !holds(out, num, 8) || num > PY_SSIZE_T_MAX / 64 ||
        data.size != num * bits / 8 + (num * bits % 8 != 0))
        return refuse("the records or their bits have another size");
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < num; i++)
        ((uint64_t *)out.data)[i] =
            get_bits(data, (uint64_t)(i * bits)) & mask_of((unsigned)bits);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyMethodDef spectra_methods[] = {
    {"pack_records", pack_records, METH_VARARGS, pack_records_doc},
    {"spectra_pack", spectra_pack, METH_VARARGS, pack_doc},
    {"spectra_split", spectra_split, METH_VARARGS, split_doc},
    {"spectra_unpack", spectra_unpack, METH_VARARGS, unpack_doc},
    {"spectra_levels", spectra_levels, METH_VARARGS, levels_doc},
    {"spectra_ranges", spectra_ranges, METH_VARARGS, ranges_doc},
    {"place_columns", place_columns, METH_VARARGS, place_doc},
    {"transpose", transpose, METH_VARARGS, transpose_doc},
    {"unpack_records", unpack_records, METH_VARARGS, unpack_records_doc},
    {NULL, NULL, 0, NULL},
};
